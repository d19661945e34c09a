"""GPTQ and AWQ against scalar references written from their formats."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import quantized_models as models
import torch
from quantized_models import Awq, Gptq

from trimtab.checkpoints import open_checkpoint
from trimtab.checkpoints.base import Checkpoint
from trimtab.errors import CheckpointError
from trimtab.numerics.stored import GroupedMatrix, GroupFormat

Q = "model.layers.0.self_attn.q_proj"

GPTQ_KINDS = [
    *(Gptq(bits, version=version) for bits in (2, 3, 4, 8) for version in (1, 2)),
    *(Gptq(bits, 16, version, symmetric=False) for bits in (2, 3, 4, 8) for version in (1, 2)),
    Gptq(4, -1),
    Gptq(4, 24, symmetric=False),  # the last group is short
    Gptq(8, -1, symmetric=False, with_g_idx=False),
    Gptq(4, 32, with_g_idx=False, dtype=np.float32),
    Gptq(4, 32, act_order=True),
    Gptq(3, 24, 2, symmetric=False, act_order=True),
    Gptq(2, -1, act_order=True),
]


def grouped(checkpoint: Checkpoint, name: str) -> GroupedMatrix:
    matrix = checkpoint.matrix(name)
    assert isinstance(matrix, GroupedMatrix)
    return matrix


@pytest.mark.parametrize("kind", GPTQ_KINDS, ids=str)
def test_gptq(kind: Gptq, tmp_path: Path) -> None:
    model = models.build(kind.config(), kind.write)
    checkpoint = models.check_reads(model.write(tmp_path), model)
    matrix = grouped(checkpoint, "layers.0.up")
    size = 64 if kind.group_size == -1 else kind.group_size
    scale_type: Any = "f16" if kind.dtype == np.float16 else "f32"
    offset: Any = "none" if kind.symmetric else "zero"
    in_order = GroupFormat(kind.bits, size, scale_type, offset, matrix.order)
    assert checkpoint.format("layers.0.up") == in_order
    assert (matrix.columns is not None) == (kind.act_order and kind.group_size != -1)
    assert bool(matrix.order) == (matrix.columns is not None)


@pytest.mark.parametrize(
    "kind",
    [Gptq(3, 32, symmetric=False), Gptq(4, 32, 2, act_order=True, symmetric=False), Awq()],
    ids=str,
)
def test_fused_rows_and_shards(kind: Gptq | Awq, tmp_path: Path) -> None:
    """Query, key and value, gate and up are ranges of rows of one stored matrix."""
    model = models.build(kind.config(), kind.write, models.PHI3)
    checkpoint = models.check_reads(model.write(tmp_path, shards=3), model)
    orders = {grouped(checkpoint, f"layers.0.{name}").order for name in "qkv"}
    assert len(orders) == 1


def test_rows_of_awq_that_start_within_a_word(tmp_path: Path) -> None:
    config = {**models.PHI3, "head_dim": 6, "num_attention_heads": 6, "num_key_value_heads": 3}
    kind = Awq(-1)
    model = models.build(kind.config(), kind.write, config)
    # 36 + 18 + 18 rows: key starts at row 36, value at row 54
    models.check_reads(model.write(tmp_path), model)


def test_the_order_of_columns_has_a_name(tmp_path: Path) -> None:
    """Equal permutations, equal names: what reads one order needs its inputs permuted once."""
    kind = Gptq(act_order=True)
    model = models.build(kind.config(), kind.write)
    g_idx = model.tensors[f"{Q}.g_idx"]
    for name in ("k_proj", "v_proj"):
        other = f"model.layers.0.self_attn.{name}"
        q, _ = Gptq().write(other, 32, 64)
        model.tensors.update({f"{other}.{part}": data for part, data in q.items()})
    model.tensors["model.layers.0.self_attn.k_proj.g_idx"] = g_idx
    checkpoint = open_checkpoint(model.write(tmp_path))
    orders = {name: grouped(checkpoint, f"layers.0.{name}").order for name in "qkvo"}
    assert orders["q"] == orders["k"] != orders["o"]
    assert orders["v"] == ""
    columns = grouped(checkpoint, "layers.0.q").columns
    assert columns is not None
    assert sorted(columns.tolist()) == list(range(64))
    assert (g_idx[columns] == np.arange(64) // 32).all()


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_zero_points_tell_the_version_where_the_config_does_not(
    bits: int, version: int, tmp_path: Path
) -> None:
    kind = Gptq(bits, version=version)
    config = kind.config()
    del config["checkpoint_format"]
    model = models.build(config, kind.write)
    checkpoint = models.check_reads(model.write(tmp_path), model)
    assert grouped(checkpoint, "layers.0.q").zeros is None


def test_without_any_hint_zero_points_are_of_version_1(tmp_path: Path) -> None:
    kind = Gptq(4, symmetric=False)
    config = kind.config()
    del config["checkpoint_format"]
    model = models.build(config, kind.write)
    models.check_reads(model.write(tmp_path), model)


def test_symmetric_in_name_only(tmp_path: Path) -> None:
    """The stored zero points count; the config alone cannot make a matrix symmetric."""
    kind = Gptq(4, symmetric=False)
    model = models.build(kind.config(sym=True), kind.write)
    checkpoint = models.check_reads(model.write(tmp_path), model)
    assert grouped(checkpoint, "layers.0.q").zeros is not None


def test_middle_zero_points_of_an_asymmetric_model_stay(tmp_path: Path) -> None:
    model = models.build(Gptq().config(sym=False), Gptq().write)
    checkpoint = models.check_reads(model.write(tmp_path), model)
    zeros = grouped(checkpoint, "layers.0.q").zeros
    assert zeros is not None
    assert not zeros.any()


def test_config_in_a_file_of_its_own(tmp_path: Path) -> None:
    """AutoGPTQ's quantize_config.json; it is part of the model's identity."""
    kind = Gptq(symmetric=False)
    model = models.build(None, kind.write)
    own = {"bits": 4, "group_size": 32, "damp_percent": 0.01, "desc_act": False, "sym": False}
    directory = model.write(tmp_path)
    (directory / "quantize_config.json").write_text(json.dumps(own))
    before = models.check_reads(directory, model).identity
    (directory / "quantize_config.json").write_text(
        json.dumps({**own, "checkpoint_format": "gptq_v2"})
    )
    assert open_checkpoint(directory).identity != before


def test_dynamic_rules(tmp_path: Path) -> None:
    """The first rule that matches: `-:` leaves modules out, `+:` and none change settings."""
    dynamic = {
        r"-:.*\.(?:q|k)_proj": {},
        r"+:.*\.down_proj": {"bits": 8, "group_size": -1, "sym": False},
        r"model\.layers\.\d+\.mlp": {"group_size": 16, "desc_act": True, "damp_percent": 0.1},
        r".*": {},
    }
    base = Gptq()

    def write(name: str, rows: int, cols: int) -> tuple[models.Tensors, np.ndarray]:
        if name.endswith("down_proj"):
            return Gptq(8, -1, symmetric=False).write(name, rows, cols)
        if ".mlp." in name:
            return Gptq(4, 16, act_order=True).write(name, rows, cols)
        return base.write(name, rows, cols)

    def chosen(name: str) -> bool:
        return "_proj" in name and not name.endswith(("q_proj", "k_proj"))

    model = models.build(base.config(dynamic=dynamic), write, chosen=chosen)
    checkpoint = models.check_reads(model.write(tmp_path), model)
    assert checkpoint.format("layers.0.q") == "f32"
    assert checkpoint.format("layers.0.down") == GroupFormat(8, 96, "f16", "zero")
    assert grouped(checkpoint, "layers.0.gate").group_size == 16


def test_quantized_heads_and_blocks_in_part(tmp_path: Path) -> None:
    kind = Gptq(4, 16)
    inside = [["self_attn.k_proj", "self_attn.v_proj"], ["mlp.down_proj"]]
    config = kind.config(lm_head=True, modules_in_block_to_quantize=inside)
    names = ("k_proj", "v_proj", "down_proj", "lm_head")
    model = models.build(config, kind.write, chosen=lambda name: name.endswith(names))
    models.check_reads(model.write(tmp_path), model)


def test_biases(tmp_path: Path) -> None:
    """Those of the model are read; those that it has not must be zeros."""
    config = {**models.CONFIG, "architectures": ["Qwen2ForCausalLM"]}
    kind = Gptq()
    model = models.build(kind.config(), kind.write, config)
    model.tensors["model.layers.0.self_attn.o_proj.bias"] = np.zeros(64, np.float16)
    models.check_reads(model.write(tmp_path), model)
    model.tensors["model.layers.0.self_attn.o_proj.bias"][3] = 1
    with pytest.raises(CheckpointError, match=r"o_proj.bias is not zero, but the model has no"):
        open_checkpoint(model.write(tmp_path))


AWQ_KINDS = [Awq(), Awq(16), Awq(-1), Awq(zero=8), Awq(dtype=np.float32)]


@pytest.mark.parametrize("kind", AWQ_KINDS, ids=str)
def test_awq(kind: Awq, tmp_path: Path) -> None:
    model = models.build(kind.config(), kind.write)
    checkpoint = models.check_reads(model.write(tmp_path), model)
    assert (grouped(checkpoint, "layers.0.q").zeros is None) == (kind.zero == 8)


def test_awq_as_gptqmodel_writes_it(tmp_path: Path) -> None:
    """Without zero points in name; the words hold the middle."""
    more = {"sym": True, "desc_act": False, "lm_head": False, "checkpoint_format": "gemm"}
    kind = Awq(zero=8)
    config = kind.config(zero_point=False, pack_dtype="int32", meta={"uri": "x"}, **more)
    model = models.build(config, kind.write)
    checkpoint = models.check_reads(model.write(tmp_path), model)
    assert checkpoint.format("layers.0.q") == GroupFormat(4, 32, "f16", "none")


def test_awq_without_stored_zero_points(tmp_path: Path) -> None:
    model = models.build(Awq(zero=8).config(zero_point=False), Awq(zero=8).write)
    for name in [name for name in model.tensors if name.endswith("qzeros")]:
        del model.tensors[name]
    checkpoint = models.check_reads(model.write(tmp_path), model)
    assert checkpoint.format("layers.0.q") == GroupFormat(4, 32, "f16", "none")


def test_awq_as_compressed_tensors_converts_it(tmp_path: Path) -> None:
    """The package's converter unpacks AWQ, and its compressor multiplies."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.entrypoints.convert.converters import AutoAWQConverter

    model = models.build(Awq().config(), Awq().write)
    checkpoint = open_checkpoint(model.write(tmp_path))
    converter = AutoAWQConverter.from_autoawq_config(Awq().config())
    parts = {part: model.tensors[f"{Q}.{part}"] for part in ("qweight", "qzeros", "scales")}
    converted = converter.process(
        {f"{Q}.{part}": torch.from_numpy(data) for part, data in parts.items()}
    )
    scheme = converter.update_config(None).config_groups["config_group_0"]
    compressor = BaseCompressor.get_value_from_registry("pack-quantized")
    state = {name.removeprefix(f"{Q}."): tensor for name, tensor in converted.items()}
    theirs = compressor.decompress(state, scheme)["weight"]
    ours = torch.from_numpy(checkpoint.tensor("layers.0.q").data).to(torch.float16)
    assert torch.equal(ours, theirs)


def test_configs_as_transformers_writes_them(tmp_path: Path) -> None:
    import transformers

    gptq = transformers.GPTQConfig(bits=4, group_size=32, damp_percent=0.05)
    model = models.build(gptq.to_dict(), Gptq().write)
    models.check_reads(model.write(tmp_path), model)
    awq = transformers.AwqConfig(group_size=32, modules_to_not_convert=["lm_head"])
    model = models.build(awq.to_dict(), Awq().write)
    models.check_reads(model.write(tmp_path), model)


@pytest.mark.parametrize("names", [["o_proj", "lm_head"], ["model.layers.0.self_attn.o_proj"]])
def test_awq_modules_that_stay_floats(names: list[str], tmp_path: Path) -> None:
    config = Awq().config(modules_to_not_convert=names)
    model = models.build(
        config, Awq().write, chosen=lambda name: "_proj" in name and "o_proj" not in name
    )
    models.check_reads(model.write(tmp_path), model)


def test_any_change_of_the_quantization_config_is_another_model(tmp_path: Path) -> None:
    kind = Gptq()
    model = models.build(kind.config(), kind.write)
    first = open_checkpoint(model.write(tmp_path)).identity
    model.config["quantization_config"]["checkpoint_format"] = "gptq_v2"
    assert open_checkpoint(model.write(tmp_path)).identity != first


def test_every_tensor_counts_for_the_identity(tmp_path: Path) -> None:
    model = models.build(Gptq().config(), Gptq().write)
    first = open_checkpoint(model.write(tmp_path)).identity
    model.tensors[f"{Q}.qzeros"][0, 0] ^= 1
    assert open_checkpoint(model.write(tmp_path)).identity != first
