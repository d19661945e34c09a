"""compressed-tensors files, read by the package itself and run by transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationConfig, QuantizationScheme
from quantized_matrices import quantized, round_to_nearest
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, CompressedTensorsConfig

from trimtab.checkpoints import open_checkpoint
from trimtab.checkpoints.writing import open_writer
from trimtab.errors import CheckpointError
from trimtab.models.registry import FAMILIES
from trimtab.numerics.stored import GroupedMatrix

PROMPT = torch.tensor([[1, 7, 55, 100, 3, 3, 28]])


def write(
    name: str, tmp_path: Path, activation_bits: int | None = None, **settings: Any
) -> tuple[Any, dict[str, GroupedMatrix], Path]:
    """A model, its matrices, and where they are written."""
    model = tiny_models.build(name, intermediate_size=96)
    source = open_checkpoint(tiny_models.save(model, tmp_path / "source"))
    matrices = quantized(source, **settings)
    out = tmp_path / "out"
    with open_writer(source, out, "compressed-tensors", activation_bits=activation_bits) as writer:
        for key, matrix in matrices.items():
            writer.add(key, matrix)
        report = writer.finish()
    assert sorted(report.quantized) == sorted(matrices)
    return model, matrices, out


def put_back(model: Any, matrices: dict[str, GroupedMatrix], source: Path) -> None:
    """The floats that the integers stand for, into the model."""
    spec = open_checkpoint(source).spec
    places = FAMILIES[spec.architecture].tensors(spec)
    state = model.state_dict()
    with torch.no_grad():
        for key, matrix in matrices.items():
            place = places[key]
            rows = slice(place.first_row, place.first_row + matrix.shape[0])
            state[place.name][rows] = torch.from_numpy(matrix.to_float32())


def decompressed(out: Path) -> dict[str, torch.Tensor]:
    """Every matrix, dequantized by the package."""
    section = json.loads((out / "config.json").read_text())["quantization_config"]
    config = QuantizationConfig.model_validate(section)
    assert config.quantization_status == "compressed"
    stored = load_file(out / "model.safetensors")
    result = {}
    for scale in [key for key in stored if key.endswith(".weight_scale")]:
        module = scale.removesuffix(".weight_scale")
        scheme = scheme_of(config, module)
        state = {
            key.rpartition(".")[2]: value
            for key, value in stored.items()
            if key.startswith(module + ".weight")
        }
        state["weight_scale"] = state["weight_scale"].float()
        compressor = BaseCompressor.get_value_from_registry(config.format)
        assert set(compressor.compression_param_names(scheme)) == set(state)
        result[module] = compressor.decompress(state, scheme)["weight"]
    return result


def scheme_of(config: QuantizationConfig, module: str) -> QuantizationScheme:
    for group in config.config_groups.values():
        if module in group.targets or "Linear" in group.targets:
            return group
    raise AssertionError(module)


FORMATS: dict[str, dict[str, Any]] = {
    f"{bits} bits, {group or 'row'}, {'symmetric' if symmetric else 'asymmetric'}": {
        "bits": bits,
        "group_size": group,
        "symmetric": symmetric,
    }
    for bits, group, symmetric in [
        (4, 16, True),
        (4, 8, False),
        (8, None, True),
        (8, 16, False),
        (3, None, False),
        (2, 8, True),
        (5, 8, False),
        (6, None, True),
        (7, 8, True),
    ]
}


@pytest.mark.parametrize(
    ("name", "activation_bits"),
    [
        *((name, None) for name in FORMATS),
        *((name, 8) for name in FORMATS if FORMATS[name]["bits"] in (4, 8)),
    ],
)
def test_the_package_dequantizes_what_was_meant(
    name: str, activation_bits: int | None, tmp_path: Path
) -> None:
    _, matrices, out = write("qwen2", tmp_path, activation_bits, **FORMATS[name])
    theirs = decompressed(out)
    assert len(theirs) == len(matrices)
    spec = open_checkpoint(tmp_path / "source").spec
    places = FAMILIES[spec.architecture].tensors(spec)
    for key, matrix in matrices.items():
        module = places[key].name.removesuffix(".weight")
        assert np.array_equal(theirs[module].numpy(), matrix.to_float32()), key


@pytest.mark.parametrize("name", [n for n in FORMATS if " symmetric" in n])
def test_transformers_computes_the_logits_of_the_dequantized_model(
    name: str, tmp_path: Path
) -> None:
    model, matrices, out = write("qwen3", tmp_path, **FORMATS[name])
    put_back(model, matrices, tmp_path / "source")
    loaded = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    with torch.no_grad():
        theirs, ours = loaded(PROMPT).logits, model(PROMPT).logits
    assert torch.equal(theirs, ours)


@pytest.mark.filterwarnings("ignore:You passed `quantization_config`")
@pytest.mark.parametrize("name", [n for n in FORMATS if "asymmetric" in n])
def test_transformers_dequantizes_zero_points(name: str, tmp_path: Path) -> None:
    """Packed zero points: this version of transformers makes room for unpacked ones unless it
    dequantizes at load."""
    model, matrices, out = write("llama", tmp_path, **FORMATS[name], scale_type="f32")
    put_back(model, matrices, tmp_path / "source")
    loaded = AutoModelForCausalLM.from_pretrained(
        out, dtype=torch.float32, quantization_config=CompressedTensorsConfig(dequantize=True)
    )
    with torch.no_grad():
        theirs, ours = loaded(PROMPT).logits, model(PROMPT).logits
    assert torch.equal(theirs, ours)


def test_transformers_runs_quantized_activations(tmp_path: Path) -> None:
    model, matrices, out = write("llama", tmp_path, 8, bits=8, group_size=None)
    section = json.loads((out / "config.json").read_text())["quantization_config"]
    assert section["format"] == "int-quantized"
    group = section["config_groups"]["group_0"]
    assert group["input_activations"]["dynamic"] is True
    put_back(model, matrices, tmp_path / "source")
    loaded = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    with torch.no_grad():
        theirs, ours = loaded(PROMPT).logits, model(PROMPT).logits
    assert 0 < (theirs - ours).abs().max() < 0.2 * ours.std()


def test_mixed_precision_has_a_group_for_each_scheme(tmp_path: Path) -> None:
    model = tiny_models.build("llama", intermediate_size=96, tie_word_embeddings=False)
    source = open_checkpoint(tiny_models.save(model, tmp_path / "source"))
    matrices = quantized(source, bits=4, group_size=16)
    for key in matrices:
        if key.endswith("down"):
            matrices[key] = round_to_nearest(source.tensor(key).to_float32(), 8, None)
    del matrices["layers.1.o"]
    matrices["lm_head"] = round_to_nearest(source.tensor("lm_head").to_float32(), 8, 16)
    with open_writer(source, tmp_path / "out", "compressed-tensors") as writer:
        for key, matrix in matrices.items():
            writer.add(key, matrix)
        assert writer.finish().notes == ()
    section = json.loads((tmp_path / "out/config.json").read_text())["quantization_config"]
    assert len(section["config_groups"]) == 3
    assert section["ignore"] == ["model.layers.1.self_attn.o_proj"]
    put_back(model, matrices, tmp_path / "source")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    with torch.no_grad():
        theirs, ours = loaded(PROMPT).logits, model(PROMPT).logits
    assert torch.equal(theirs, ours)


def test_fused_matrices_are_stored_as_one(tmp_path: Path) -> None:
    model, matrices, out = write("phi3", tmp_path, bits=4, group_size=16)
    stored = load_file(out / "model.safetensors")
    assert "model.layers.0.self_attn.qkv_proj.weight_packed" in stored
    put_back(model, matrices, tmp_path / "source")
    loaded = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    with torch.no_grad():
        theirs, ours = loaded(PROMPT).logits, model(PROMPT).logits
    assert torch.equal(theirs, ours)


def test_what_vllm_would_refuse_is_said(tmp_path: Path) -> None:
    source = open_checkpoint(
        tiny_models.save(tiny_models.build("llama", intermediate_size=96), tmp_path / "source")
    )
    matrices = quantized(source, group_size=16)
    matrices["layers.0.v"] = round_to_nearest(source.tensor("layers.0.v").to_float32(), 8, 16)
    with open_writer(source, tmp_path / "out", "compressed-tensors") as writer:
        for key, matrix in matrices.items():
            writer.add(key, matrix)
        notes = writer.finish().notes
    assert len(notes) == 1
    assert "vLLM cannot load this" in notes[0]


def test_what_the_format_cannot_hold(tmp_path: Path) -> None:
    source = open_checkpoint(
        tiny_models.save(tiny_models.build("llama", intermediate_size=96), tmp_path / "source")
    )
    weights = source.tensor("layers.0.q").to_float32()
    odd = round_to_nearest(weights, 4, 32)  # 48 columns
    ordered = round_to_nearest(weights, 4, 16)
    ordered = GroupedMatrix(
        ordered.values, 4, 16, ordered.scales, "bf16", columns=np.arange(48, dtype=np.int32)[::-1]
    )
    for matrix, reason in ((odd, "48 columns in groups of 32"), (ordered, "activation order")):
        with (
            pytest.raises(CheckpointError, match=reason),
            open_writer(source, tmp_path / "out", "compressed-tensors") as writer,
        ):
            writer.add("layers.0.q", matrix)
    with (
        pytest.raises(CheckpointError, match="nothing was quantized"),
        open_writer(source, tmp_path / "out", "compressed-tensors") as writer,
    ):
        writer.finish()
    with (
        pytest.raises(CheckpointError, match="only 8"),
        open_writer(source, tmp_path / "out", "compressed-tensors", activation_bits=4),
    ):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]
