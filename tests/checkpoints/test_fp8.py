"""Float8 checkpoints against torch's own float8."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import quantized_models as models
import torch

from trimtab.checkpoints import open_checkpoint
from trimtab.numerics.stored import Fp8Format, Fp8Matrix


def config_of(block: tuple[int, int] | None, **more: Any) -> dict[str, Any]:
    config: dict[str, Any] = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic"}
    if block is not None:
        config["weight_block_size"] = list(block)
    return {**config, **more}


def writer(
    block: tuple[int, int] | None, scale_name: str = "weight_scale_inv", dtype: Any = torch.float32
) -> models.Writer:
    def write(name: str, rows: int, cols: int) -> tuple[models.Tensors, np.ndarray]:
        generator = torch.Generator().manual_seed(models.seed_of(name))
        height, width = block or (rows, cols)
        weight = (torch.randn(rows, cols, generator=generator) * 100).to(torch.float8_e4m3fn)
        shape = (-(-rows // height), -(-cols // width))
        scales = (torch.rand(shape, generator=generator) + 0.5).to(dtype)
        matrix = weight.to(torch.float32)
        for i in range(rows):
            for j in range(0, cols, width):
                matrix[i, j : j + width] *= scales[i // height, j // width].to(torch.float32)
        stored = scales if block is not None else scales.view(())
        bits = stored.view(torch.uint16) if dtype == torch.bfloat16 else stored
        parts = {"weight": weight.view(torch.uint8).numpy(), scale_name: bits.numpy()}
        return parts, matrix.numpy()

    return write


@pytest.mark.parametrize("block", [(16, 16), (128, 128), (24, 40), (40, 7), (1, 64)], ids=str)
@pytest.mark.parametrize("config", [models.CONFIG, models.PHI3], ids=["llama", "phi3"])
def test_blocks(block: tuple[int, int], config: dict[str, Any], tmp_path: Path) -> None:
    """Those at the ends are ragged; those larger than the matrix are cut to it."""
    model = models.build(config_of(block), writer(block), config)
    checkpoint = models.check_reads(model.write(tmp_path, shards=2), model)
    assert checkpoint.format("layers.0.down") == Fp8Format(min(block[0], 64), min(block[1], 96))


@pytest.mark.parametrize("block", [(24, 40), (32, 64)], ids=str)
def test_blocks_as_compressed_tensors_dequantizes_them(
    block: tuple[int, int], tmp_path: Path
) -> None:
    from compressed_tensors.entrypoints.convert.converters import FP8BlockDequantizer

    model = models.build(config_of(block), writer(block))
    checkpoint = open_checkpoint(model.write(tmp_path))
    module = "model.layers.0.mlp.down_proj"
    converter = FP8BlockDequantizer(weight_block_size=block, dtype=torch.float32)
    weight = torch.from_numpy(model.tensors[f"{module}.weight"]).view(torch.float8_e4m3fn)
    scale = torch.from_numpy(model.tensors[f"{module}.weight_scale_inv"])
    stored = {f"{module}.weight": weight, f"{module}.weight_scale_inv": scale}
    theirs = converter.process(stored)[f"{module}.weight"]
    assert torch.equal(torch.from_numpy(checkpoint.tensor("layers.0.down").data), theirs)


def test_the_config_as_transformers_writes_it(tmp_path: Path) -> None:
    import transformers

    config = transformers.FineGrainedFP8Config(
        weight_block_size=(32, 32), modules_to_not_convert=["lm_head"]
    )
    model = models.build(config.to_dict(), writer((32, 32)))
    models.check_reads(model.write(tmp_path), model)


@pytest.mark.parametrize("name", ["weight_scale", "weight_scale_inv"])
@pytest.mark.parametrize("config", [models.CONFIG, models.PHI3], ids=["llama", "phi3"])
def test_one_scale_a_matrix(name: str, config: dict[str, Any], tmp_path: Path) -> None:
    model = models.build(config_of(None), writer(None, name, torch.bfloat16), config)
    checkpoint = models.check_reads(model.write(tmp_path), model)
    assert checkpoint.format("layers.0.up") == Fp8Format(96, 64)


def test_static_scales_of_activations_are_left_alone(tmp_path: Path) -> None:
    model = models.build(config_of(None, activation_scheme="static"), writer(None, "weight_scale"))
    for module in model.matrices:
        model.tensors[f"{module}.input_scale"] = np.ones((), np.float32)
    models.check_reads(model.write(tmp_path), model)


@pytest.mark.parametrize("key", ["modules_to_not_convert", "ignored_layers"])
def test_modules_that_stay_floats(key: str, tmp_path: Path) -> None:
    def chosen(name: str) -> bool:
        return "_proj" in name and not name.endswith("v_proj")

    names = ["lm_head", "model.layers.0.self_attn.v_proj", "model.norm"]
    block = (32, 32)
    model = models.build(config_of(block, **{key: names}), writer(block), chosen=chosen)
    models.check_reads(model.write(tmp_path), model)


@pytest.mark.parametrize("names", [None, ["lm_head"]])
def test_a_quantized_head(names: list[str] | None, tmp_path: Path) -> None:
    """Configs do not say it of heads reliably; the stored dtype does."""
    block = (16, 32)
    config = config_of(block, modules_to_not_convert=names)
    model = models.build(
        config, writer(block), chosen=lambda name: "_proj" in name or name == "lm_head"
    )
    checkpoint = models.check_reads(model.write(tmp_path), model)
    assert checkpoint.format("lm_head") == Fp8Format(16, 32)


def test_every_bit_pattern_comes_through(tmp_path: Path) -> None:
    """Subnormals, both zeros and NaN."""
    block = (128, 128)
    model = models.build(config_of(block), writer(block))
    name = "model.layers.0.mlp.up_proj.weight"
    model.tensors[name] = np.arange(96 * 64, dtype=np.uint32).astype(np.uint8).reshape(96, 64)
    matrix = open_checkpoint(model.write(tmp_path)).matrix("layers.0.up")
    assert isinstance(matrix, Fp8Matrix)
    assert (matrix.values == model.tensors[name]).all()
    scale = torch.from_numpy(model.tensors[f"{name}_scale_inv"])
    theirs = torch.from_numpy(model.tensors[name]).view(torch.float8_e4m3fn).to(torch.float32)
    np.testing.assert_array_equal(matrix.to_float32(), (theirs * scale).numpy())
