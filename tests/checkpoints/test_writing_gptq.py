"""GPTQ and AWQ files, element by element against their specification, one bit field at a time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
from quantized_matrices import quantized, round_to_nearest
from safetensors.numpy import load_file

from trimtab.checkpoints import open_checkpoint
from trimtab.checkpoints.writing import open_writer
from trimtab.errors import CheckpointError
from trimtab.models.registry import FAMILIES
from trimtab.numerics.stored import GroupedMatrix

SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4}


def write(
    container: Any,
    tmp_path: Path,
    matrices: dict[str, GroupedMatrix] | None = None,
    **settings: Any,
) -> tuple[dict[str, GroupedMatrix], dict[str, np.ndarray], dict[str, Any]]:
    """The matrices, the stored tensors, the quantization_config."""
    model = tiny_models.build("llama", **SIZES)
    source = open_checkpoint(tiny_models.save(model, tmp_path / "source"))
    made = quantized(source, scale_type="f16", **settings)
    made.update(matrices or {})
    out = tmp_path / "out"
    with open_writer(source, out, container) as writer:
        for name, matrix in made.items():
            writer.add(name, matrix)
        writer.finish()
    config = json.loads((out / "config.json").read_text())["quantization_config"]
    stored = load_file(out / "model.safetensors")
    places = FAMILIES["LlamaForCausalLM"].tensors(source.spec)
    by_module = {places[name].name.removesuffix(".weight"): m for name, m in made.items()}
    return by_module, stored, config


def field(stream: np.ndarray, index: int, bits: int) -> int:
    """Field `index` of consecutive little-endian words."""
    number = sum(int(word) << (32 * i) for i, word in enumerate(stream.view(np.uint32)))
    return number >> (index * bits) & ((1 << bits) - 1)


def gptq_matrix(
    stored: dict[str, np.ndarray], module: str, bits: int, zero_step: int
) -> np.ndarray:
    """[N, K] in float32, by the specification."""
    qweight, qzeros, scales, g_idx = (
        stored[f"{module}.{name}"] for name in ("qweight", "qzeros", "scales", "g_idx")
    )
    cols, rows = qweight.shape[0] * 32 // bits, qweight.shape[1]
    assert scales.dtype == np.float16
    assert g_idx.dtype == np.int32
    assert qzeros.shape == (len(scales), rows * bits // 32)
    result = np.empty((rows, cols), np.float32)
    for n in range(rows):
        column = np.ascontiguousarray(qweight[:, n])
        for k in range(cols):
            group = g_idx[k]
            zero = field(qzeros[group], n, bits) + zero_step
            result[n, k] = np.float32(scales[group, n]) * (field(column, k, bits) - zero)
    return result


@pytest.mark.parametrize(
    ("bits", "group_size", "symmetric"),
    [(4, 32, True), (4, 16, False), (8, None, True), (3, 32, False), (2, 8, True), (3, None, True)],
)
def test_gptq(bits: int, group_size: int | None, symmetric: bool, tmp_path: Path) -> None:
    matrices, stored, config = write(
        "gptq", tmp_path, bits=bits, group_size=group_size, symmetric=symmetric
    )
    assert config["quant_method"] == "gptq"
    assert config["checkpoint_format"] == ("gptq" if symmetric else "gptq_v2")
    assert (config["bits"], config["group_size"]) == (bits, group_size or -1)
    assert config["sym"] is symmetric
    assert config["desc_act"] is False
    assert config["dynamic"] == {}
    again = json.loads((tmp_path / "out/quantize_config.json").read_text())
    assert again == config
    for module in ("model.layers.0.self_attn.k_proj", "model.layers.2.mlp.down_proj"):
        theirs = gptq_matrix(stored, module, bits, 1 if symmetric else 0)
        assert np.array_equal(theirs, matrices[module].to_float32())
    if (bits, symmetric) == (4, True):
        assert (stored["model.layers.1.mlp.up_proj.qzeros"].view(np.uint32) == 0x77777777).all()


def test_gptq_in_activation_order(tmp_path: Path) -> None:
    order = np.random.default_rng(1).permutation(64).astype(np.int32)
    source = open_checkpoint(tiny_models.save(tiny_models.build("llama", **SIZES), tmp_path / "a"))
    weights = source.tensor("layers.0.k").to_float32()
    made = round_to_nearest(weights[:, order], 4, 16, scale_type="f16")
    matrix = GroupedMatrix(made.values, 4, 16, made.scales, "f16", columns=order, order="x")
    matrices, stored, config = write("gptq", tmp_path, {"layers.0.k": matrix})
    module = "model.layers.0.self_attn.k_proj"
    assert config["desc_act"] is True
    assert np.array_equal(gptq_matrix(stored, module, 4, 1), matrices[module].to_float32())
    assert np.abs(matrix.to_float32() - weights).max() <= made.scales.max()


def test_gptq_of_several_kinds(tmp_path: Path) -> None:
    source = open_checkpoint(tiny_models.save(tiny_models.build("llama", **SIZES), tmp_path / "a"))
    changed = {
        name: round_to_nearest(source.tensor(name).to_float32(), 8, 16, scale_type="f16")
        for name in ("layers.1.down", "layers.2.down")
    }
    matrices, stored, config = write("gptq", tmp_path, changed)
    assert (config["bits"], config["group_size"]) == (4, 32)
    rule = {"bits": 8, "group_size": 16, "sym": True}
    assert config["dynamic"] == {rf"+:^model\.layers\.{i}\.mlp\.down_proj$": rule for i in (1, 2)}
    module = "model.layers.1.mlp.down_proj"
    assert np.array_equal(gptq_matrix(stored, module, 8, 1), matrices[module].to_float32())


AWQ_COLUMN = [0, 2, 4, 6, 1, 3, 5, 7]  # of a word's eight, by field


def awq_fields(words: np.ndarray) -> np.ndarray:
    rows, width = words.shape
    result = np.empty((rows, width * 8), np.int64)
    for i, column in enumerate(AWQ_COLUMN):
        result[:, column::8] = words.view(np.uint32) >> (4 * i) & 15
    return result


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group_size", [16, None])
def test_awq(group_size: int | None, symmetric: bool, tmp_path: Path) -> None:
    matrices, stored, config = write("awq", tmp_path, group_size=group_size, symmetric=symmetric)
    assert config == {
        "quant_method": "awq",
        "bits": 4,
        "group_size": group_size or -1,
        "zero_point": True,
        "version": "gemm",
        "modules_to_not_convert": None,
    }
    for module, matrix in matrices.items():
        values = awq_fields(stored[f"{module}.qweight"])
        zeros = awq_fields(stored[f"{module}.qzeros"])
        scales = stored[f"{module}.scales"]
        assert scales.dtype == np.float16
        size = group_size or len(values)
        wide = [np.repeat(x, size, axis=0) for x in (zeros, scales.astype(np.float32))]
        theirs = (values - wide[0]).astype(np.float32) * wide[1]
        assert np.array_equal(theirs.T, matrix.to_float32())
        if symmetric:
            assert (zeros == 8).all()


def test_what_stays_in_floats_is_named(tmp_path: Path) -> None:
    source = open_checkpoint(tiny_models.save(tiny_models.build("llama", **SIZES), tmp_path / "a"))
    name = "model.layers.1.self_attn.o_proj"
    for container in ("awq", "gptq"):
        with open_writer(source, tmp_path / container, container) as writer:
            for key, matrix in quantized(source, scale_type="f16").items():
                if key != "layers.1.o":
                    writer.add(key, matrix)
            assert "layers.1.o" in writer.finish().copied
        config = json.loads((tmp_path / container / "config.json").read_text())
        section = config["quantization_config"]
        if container == "awq":
            assert section["modules_to_not_convert"] == [name]
        else:
            assert section["dynamic"] == {r"-:^model\.layers\.1\.self_attn\.o_proj$": {}}


REFUSED: dict[str, tuple[Any, str, dict[str, Any], str]] = {
    "awq of 8 bits": ("awq", "layers.0.q", {"bits": 8}, "no format of 8 bits"),
    "gptq of 5 bits": ("gptq", "layers.0.q", {"bits": 5}, "no format of 5 bits"),
    "gptq of embeddings": ("gptq", "embed", {}, "keeps embeddings in floats"),
    "awq of the head": ("awq", "lm_head", {}, "keeps the output head in floats"),
    "gptq of 101 rows": ("gptq", "lm_head", {}, "101 rows of 4 bits"),
    "awq of odd groups": ("awq", "layers.0.q", {"group_size": 24}, "groups of 24"),
    "scales beyond f16": ("gptq", "layers.0.q", {"scale_type": "f32"}, "not exact in f16"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_formats_cannot_hold(name: str, tmp_path: Path) -> None:
    container, tensor, settings, reason = REFUSED[name]
    model = tiny_models.build("llama", **SIZES, tie_word_embeddings=False)
    source = open_checkpoint(tiny_models.save(model, tmp_path / "source"))
    weights = source.tensor(tensor).to_float32()
    matrix = round_to_nearest(weights, **{"scale_type": "f16", **settings})
    with (
        pytest.raises(CheckpointError, match=reason),
        open_writer(source, tmp_path / "out", container) as writer,
    ):
        writer.add(tensor, matrix)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]
