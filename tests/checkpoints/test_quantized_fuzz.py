"""Whatever happens to a quantization config or to the tensors, opening and reading gives
CheckpointError or matrices that are whole."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import handmade
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from quantized_models import Model
from test_damaged_quantized import BASES

from trimtab.checkpoints import open_checkpoint
from trimtab.errors import CheckpointError

ODD_VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2, 3, 4, 5, 8, 16, 32, 64, 96, 128, 2**31, 2**63, -(2**63), 0.5,
    "", "x", "int", "float", "group", "channel", "tensor", "block", "gptq", "gptq_v2", "awq", "fp8",
    "compressed-tensors", "dense", "pack-quantized", "int-quantized", "float-quantized",
    "naive-quantized", "mixed-precision", "Linear", "re:.*", "re:.*mlp", "re:(", "lm_head",
    [], [1], ["Linear"], ["re:.*_proj"], [32, 32], [1, 64], [[]], {}, {"a": 1}, {"bits": 8},
    {"-:.*": {}}, {"num_bits": 8}, {"targets": ["Linear"], "weights": {"num_bits": 4}},
]  # fmt: skip
KINDS = ["dtype", "shape", "swap", "bytes"]
DTYPES = ["F32", "F16", "BF16", "I8", "I32", "I64", "U8", "F8_E4M3", "F8_E5M2", "I16", "U32"]


def places_in(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a JSON value, as the keys that lead there."""
    children = value.items() if isinstance(value, dict) else ()
    if isinstance(value, list):
        children = enumerate(value)
    found = [(*path, key) for key, _ in children]
    for key, child in children:
        found += places_in(child, (*path, key))
    return found


def set_place(value: Any, path: tuple[Any, ...], new: Any) -> None:
    for key in path[:-1]:
        value = value[key]
    value[path[-1]] = new


def outcome(directory: Path) -> str:
    """Empty: everything could be read."""
    try:
        checkpoint = open_checkpoint(directory)
        for name in checkpoint.names():
            form, matrix = checkpoint.format(name), checkpoint.matrix(name)
            elements = matrix.to_float32()
            assert elements.shape in ((40, 64), (64,), (64, 64), (32, 64), (96, 64), (64, 96))
            assert isinstance(form, str) or form == matrix.format  # type: ignore[union-attr]
        assert len(checkpoint.identity) == 64
    except CheckpointError as error:
        message = str(error)
    else:
        return ""
    assert "\n" not in message
    assert len(message) < 700
    return message


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: BASES[name].write(tmp_path_factory.mktemp(name)) for name in BASES}


@settings(max_examples=600, deadline=None)
@given(data=st.data(), base=st.sampled_from(list(BASES)))
def test_configs(directories: dict[str, Path], base: str, data: st.DataObject) -> None:
    directory = directories[base]
    config = copy.deepcopy(BASES[base].config)
    quantization = config["quantization_config"]
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.sampled_from(places_in(quantization)))
        set_place(quantization, place, copy.deepcopy(data.draw(st.sampled_from(ODD_VALUES))))
    (directory / "config.json").write_text(json.dumps(config))
    outcome(directory)


@settings(max_examples=300, deadline=None)
@given(
    base=st.sampled_from(list(BASES)),
    method=st.sampled_from(list(BASES)),
    drop=st.integers(0, 30),
)
@example(base="gptq", method="awq", drop=0)
def test_configs_of_other_formats(
    directories: dict[str, Path], base: str, method: str, drop: int
) -> None:
    """The tensors of one format under the config of another, less one key."""
    quantization = dict(BASES[method].config["quantization_config"])
    if drop < len(quantization):
        del quantization[list(quantization)[drop]]
    config = {**BASES[base].config, "quantization_config": quantization}
    (directories[base] / "config.json").write_text(json.dumps(config))
    outcome(directories[base])


@settings(max_examples=600, deadline=None)
@given(data=st.data(), base=st.sampled_from(list(BASES)))
def test_headers(directories: dict[str, Path], base: str, data: st.DataObject) -> None:
    """Dtypes and shapes that hold the same bytes, names that change places, values."""
    directory, model = directories[base], BASES[base]
    (directory / "config.json").write_text(json.dumps(model.config))
    header = handmade.header_of(model.tensors)
    content = bytearray(b"".join(value.tobytes() for value in model.tensors.values()))
    small = [name for name in header if "norm" not in name]
    for _ in range(data.draw(st.integers(1, 2))):
        name = data.draw(st.sampled_from(small))
        entry, kind = header[name], data.draw(st.sampled_from(KINDS))
        if kind == "dtype":
            entry["dtype"] = data.draw(st.sampled_from(DTYPES))
        elif kind == "shape":
            size = int(np.prod(entry["shape"]))
            rows = data.draw(st.sampled_from([d for d in (1, 2, 4, 8, 32, 64) if size % d == 0]))
            entry["shape"] = [rows, size // rows]
        elif kind == "swap":
            other = data.draw(st.sampled_from(small))
            header[name], header[other] = header[other], header[name]
        else:
            start, end = entry["data_offsets"]
            position = data.draw(st.integers(start, end - 1))
            content[position] = data.draw(st.integers(0, 255))
    (directory / "model.safetensors").unlink()  # a file that is mapped must never change
    (directory / "model.safetensors").write_bytes(handmade.file_bytes(header, bytes(content)))
    try:
        outcome(directory)
    finally:
        (directory / "model.safetensors").unlink()
        handmade.write_file(directory / "model.safetensors", model.tensors)


@pytest.mark.parametrize("base", BASES)
def test_the_undamaged_models_open(base: str, tmp_path: Path) -> None:
    model: Model = BASES[base]
    assert not outcome(model.write(tmp_path))
