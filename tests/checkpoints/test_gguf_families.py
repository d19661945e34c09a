"""Every family as a GGUF file: the spec and the tensors are those of the original checkpoint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf_models
import numpy as np
import pytest
import tiny_models
import torch
from test_families import as_stored, expected_tensors

from trimtab.checkpoints import open_checkpoint
from trimtab.checkpoints.base import StoredTensor
from trimtab.numerics.stored import GroupedMatrix

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}

# qwen2-windows: neither llama.cpp's converter nor llama.cpp itself know windows there.
NAMES = [name for name in tiny_models.FAMILIES if name != "qwen2-windows"]
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10_000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
    "beta_fast": 16.0,
}


def is_gemma_norm(model: str, tensor: str) -> bool:
    return model.startswith("gemma") and tensor.endswith("norm")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_every_tensor_is_the_models_own(name: str, dtype: str, tmp_path: Path) -> None:
    """Vectors are F32; the 1 that the format adds to the norms of Gemma stays in them."""
    model = tiny_models.build(name, DTYPES[dtype])
    checkpoint = open_checkpoint(gguf_models.write(model, tmp_path / "x.gguf", dtype))
    expected = expected_tensors(name, model)
    assert set(checkpoint.names()) == set(expected)
    for tensor_name, theirs in expected.items():
        ours = checkpoint.tensor(tensor_name)
        matrix = checkpoint.matrix(tensor_name)
        assert isinstance(matrix, StoredTensor)
        assert matrix.dtype == ours.dtype == checkpoint.format(tensor_name)
        assert ours.dtype == (dtype.lower() if theirs.ndim == 2 else "f32")
        values = theirs.float() if theirs.ndim == 1 else theirs
        if is_gemma_norm(name, tensor_name):
            values = values + 1
        assert ours.data.shape == values.shape
        assert ours.data.tobytes() == np.ascontiguousarray(as_stored(values)).tobytes()
        assert ours.data.flags.c_contiguous
        assert ours.data.flags.aligned
        assert not ours.data.flags.writeable


def same_but_for_norms(spec: Any) -> Any:
    return replace(spec, norm_weight_offset=0.0)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("max_context", [0, 64])
def test_the_spec_is_that_of_the_original(name: str, max_context: int, tmp_path: Path) -> None:
    model = tiny_models.build(name)
    original = open_checkpoint(tiny_models.save(model, tmp_path / "hf"), max_context).spec
    found = open_checkpoint(gguf_models.write(model, tmp_path / "x.gguf"), max_context).spec
    if name == "llama-3.1":  # its scaling is stored as float32 factors
        for ours, theirs in zip(found.ropes, original.ropes, strict=True):
            np.testing.assert_allclose(ours.inv_freq, theirs.inv_freq, rtol=3e-7)
            assert ours.amplitude == theirs.amplitude
        found = replace(found, ropes=original.ropes)
    if name == "mistral-no-window":
        assert found.architecture == "LlamaForCausalLM"
        found = replace(found, architecture=original.architecture)
    assert found == same_but_for_norms(original)


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("kind", ["linear", "yarn"])
def test_rope_scalings(name: str, kind: str, tmp_path: Path) -> None:
    linear = {"rope_type": "linear", "rope_theta": 5e5, "factor": 2.5}
    model = tiny_models.build(name, rope_parameters=YARN if kind == "yarn" else linear)
    original = open_checkpoint(tiny_models.save(model, tmp_path / "hf")).spec
    found = open_checkpoint(gguf_models.write(model, tmp_path / "x.gguf")).spec
    assert found == original
    assert found.ropes != replace(original, ropes=()).ropes


@pytest.mark.parametrize("name", ["llama", "phi3", "gemma3"])
@pytest.mark.parametrize("tied", [True, False])
def test_tied_and_untied_embeddings(name: str, tied: bool, tmp_path: Path) -> None:
    model = tiny_models.build(name, tie_word_embeddings=tied)
    checkpoint = open_checkpoint(gguf_models.write(model, tmp_path / "x.gguf"))
    assert checkpoint.spec.tied_embeddings == tied
    assert ("lm_head" in checkpoint.names()) == (not tied)
    if not tied:
        head = model.lm_head.weight.detach().numpy()
        assert (checkpoint.tensor("lm_head").data == head).all()


BIG = {"hidden_size": 512, "intermediate_size": 768, "num_attention_heads": 8, "head_dim": 32}


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
@pytest.mark.parametrize("name", ["llama", "phi3"])
def test_quantized_rows_go_back_to_their_places(name: str, kind: str, tmp_path: Path) -> None:
    """What the gguf package makes of the original matrices is what the file gives for them."""
    changes = {key: value for key, value in BIG.items() if name == "llama" or key != "head_dim"}
    model = tiny_models.build(name, **changes, num_hidden_layers=1)
    checkpoint = open_checkpoint(gguf_models.write(model, tmp_path / "x.gguf", kind))
    stored = gguf_models.Quantization[kind]
    for tensor_name, theirs in expected_tensors(name, model).items():
        ours = checkpoint.matrix(tensor_name)
        if theirs.ndim == 1:
            assert isinstance(ours, StoredTensor)
            continue
        assert isinstance(ours, GroupedMatrix)
        assert ours.format == checkpoint.format(tensor_name)
        rounded = gguf_models.gguf.quants.quantize(theirs.numpy(), stored)
        expected = gguf_models.gguf.quants.dequantize(rounded, stored)
        assert (ours.to_float32() == expected).all()
        assert (checkpoint.tensor(tensor_name).data == expected).all()


def test_a_split_file(tmp_path: Path) -> None:
    model = tiny_models.build("qwen3")
    (tmp_path / "whole").mkdir()
    whole = open_checkpoint(gguf_models.write(model, tmp_path / "whole" / "x.gguf"))
    first = gguf_models.write(model, tmp_path / "x.gguf", parts=3)
    assert len(list(tmp_path.glob("*.gguf"))) == 3
    for path in (first, tmp_path):
        split = open_checkpoint(path)
        assert split.spec == whole.spec
        assert len(split.weight_files) == 3
        for name in whole.names():
            assert (split.tensor(name).data == whole.tensor(name).data).all()


def test_identity(tmp_path: Path) -> None:
    model = tiny_models.build("llama")
    path = gguf_models.write(model, tmp_path / "x.gguf")
    identity = open_checkpoint(path).identity
    assert open_checkpoint(gguf_models.write(model, tmp_path / "y.gguf")).identity == identity
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert open_checkpoint(path).identity != identity


def test_a_directory_with_one_file(tmp_path: Path) -> None:
    model = tiny_models.build("llama")
    path = gguf_models.write(model, tmp_path / "x.gguf")
    assert open_checkpoint(tmp_path).path == path


def nothing_more(writer: Any, config: Any) -> None:
    pass


@pytest.mark.parametrize(("name", "deep"), [("gemma2", 46), ("gemma3", 62)])
def test_the_attention_scale_of_gemma_follows_from_its_depth(
    name: str, deep: int, tmp_path: Path
) -> None:
    """48 hidden, 6 heads of 16: the models of 27 billion weights scale by 48 / 6, others by 16."""
    for layers, scalar in ((2, 16), (deep, 8)):
        model = tiny_models.build(name, num_hidden_layers=layers, query_pre_attn_scalar=scalar)
        path = gguf_models.write(model, tmp_path / f"{layers}.gguf", add_more=nothing_more)
        original = open_checkpoint(tiny_models.save(model, tmp_path / str(layers))).spec
        assert open_checkpoint(path).spec == same_but_for_norms(original)


@pytest.mark.parametrize("name", ["gemma2", "gemma3"])
def test_patterns_of_windows(name: str, tmp_path: Path) -> None:
    kinds = ["full_attention", "sliding_attention", "sliding_attention", "full_attention"] * 2
    kinds = kinds[: 7 if name == "gemma3" else 3]
    model = tiny_models.build(name, layer_types=kinds)
    original = open_checkpoint(tiny_models.save(model, tmp_path / "hf")).spec

    def pattern(writer: Any, config: Any) -> None:
        writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in kinds])
        gguf_models.attention_scale(writer, config)

    found = open_checkpoint(gguf_models.write(model, tmp_path / "x.gguf", add_more=pattern)).spec
    assert found == same_but_for_norms(original)

    def period(writer: Any, config: Any) -> None:
        writer.add_sliding_window_pattern(3)

    found = open_checkpoint(gguf_models.write(model, tmp_path / "y.gguf", add_more=period)).spec
    assert [layer.sliding_window for layer in found.layers] == ([32, 32, 0] * 3)[: len(kinds)]
