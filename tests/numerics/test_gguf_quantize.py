"""Quantizers of GGUF types: ggml's own where it has a reference, never worse where it searches.

`TRIMTAB_LLAMA_PYTHON` names a Python that has llama-cpp-python: its ggml then quantizes the same
data.
"""

from __future__ import annotations

import json
import os
import subprocess

import gguf
import numpy as np
import pytest
from gguf.constants import GGMLQuantizationType as GgmlType

from trimtab.numerics.gguf_blocks import BLOCKS
from trimtab.numerics.gguf_pack import pack_grouped
from trimtab.numerics.gguf_quantize import QUANTIZERS, quantize
from trimtab.numerics.stored import GroupedMatrix

BLOCK_OF = {block.name: block for block in BLOCKS.values()}
REFERENCE = ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1")


def samples(rows: int = 48, columns: int = 768) -> np.ndarray:
    """Normal and heavy-tailed rows, of all sizes, with what is special."""
    generator = np.random.default_rng(3)
    x = generator.standard_normal((rows, columns)) * 0.02
    x[::3] = generator.standard_t(3, x[::3].shape) * 0.5
    x[1] = 0
    x[4, :300] = 0
    x[5] = np.abs(x[5])
    x[7] = -np.abs(x[7])
    x[8] = 0.25
    x[10] *= 1e4
    x[11] *= 1e-5
    x[13, 17] = 80
    x[14] = np.arange(columns) - 300
    return x.astype(np.float32)


def decoded(name: str, data: np.ndarray) -> np.ndarray:
    return gguf.quants.dequantize(data, GgmlType[name])


def relative_error(x: np.ndarray, y: np.ndarray, weights: np.ndarray | float = 1.0) -> float:
    return float((weights * (x - y) ** 2).sum() / (weights * x**2).sum())


@pytest.mark.parametrize("name", REFERENCE)
def test_equal_to_the_reference(name: str) -> None:
    x = samples()
    assert np.array_equal(quantize(name, x), gguf.quants.quantize(x, GgmlType[name]))


@pytest.mark.parametrize("name", QUANTIZERS)
@pytest.mark.parametrize("weighted", [False, True])
def test_our_reader_and_theirs_agree_on_the_bytes(name: str, weighted: bool) -> None:
    x = samples()
    importance = np.random.default_rng(1).random(x.shape[1], np.float32) if weighted else None
    data = quantize(name, x, importance)
    assert np.array_equal(BLOCK_OF[name].unpack(data).to_float32(), decoded(name, data))


# Of normal data, the squared error relative to the data that a good quantizer has, and 5 %.
LIMITS = {"Q8_0": 3.0e-5, "Q4_K": 5.1e-3, "Q5_K": 1.26e-3, "Q6_K": 3.0e-4}


@pytest.mark.parametrize("name", LIMITS)
def test_the_error_is_small(name: str) -> None:
    x = np.random.default_rng(0).standard_normal((64, 1024), np.float32)
    assert relative_error(x, decoded(name, quantize(name, x))) < LIMITS[name]


@pytest.mark.parametrize("name", [name for name in QUANTIZERS if name != "Q8_0"])
def test_importance_lessens_the_error_of_what_matters(name: str) -> None:
    x = samples()[20:]
    importance = np.random.default_rng(2).gamma(0.3, size=x.shape[1]).astype(np.float32)
    plain = relative_error(x, decoded(name, quantize(name, x)), importance)
    weighted = relative_error(x, decoded(name, quantize(name, x, importance)), importance)
    assert weighted < 0.97 * plain


@pytest.mark.parametrize("name", QUANTIZERS)
def test_zero_stays_zero(name: str) -> None:
    zeros = np.zeros((3, 512), np.float32)
    assert not decoded(name, quantize(name, zeros)).any()
    assert not decoded(name, quantize(name, zeros, np.ones(512, np.float32))).any()
    assert not decoded(name, quantize(name, zeros, np.zeros(512, np.float32))).any()


@pytest.mark.parametrize("name", QUANTIZERS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38])
def test_what_no_block_can_hold(name: str, bad: float) -> None:
    x = samples()
    x[2, 100] = bad
    with pytest.raises(ValueError, match=r"not finite|too large"):
        quantize(name, x)


@pytest.mark.parametrize("name", QUANTIZERS)
def test_columns_must_fill_blocks(name: str) -> None:
    with pytest.raises(ValueError, match="no multiple"):
        quantize(name, np.zeros((2, 100), np.float32))


@pytest.mark.parametrize("name", QUANTIZERS)
def test_rows_do_not_depend_on_each_other(name: str) -> None:
    x = samples()
    whole = quantize(name, x)
    assert np.array_equal(np.concatenate([quantize(name, x[:7]), quantize(name, x[7:])]), whole)


def grouped(bits: int, kind: str) -> GroupedMatrix:
    generator = np.random.default_rng(bits)
    half = 1 << (bits - 1)
    values = generator.integers(-half, half, (6, 96)).astype(np.int8)
    scales = generator.random((6, 3)).astype(np.float16).astype(np.float32)
    zeros = offsets = None
    if kind == "zero":
        zeros = generator.integers(-half, half, (6, 3)).astype(np.int16)
        scales = 2.0 ** generator.integers(-5, 2, (6, 3)).astype(np.float32)
    if kind == "float":
        offsets = generator.random((6, 3)).astype(np.float16).astype(np.float32)
    return GroupedMatrix(values, bits, 32, scales, "f16", zeros, offsets)


@pytest.mark.parametrize(
    ("bits", "kind", "name"),
    [
        (4, "none", "Q4_0"),
        (4, "zero", "Q4_1"),
        (4, "float", "Q4_1"),
        (5, "none", "Q5_0"),
        (5, "zero", "Q5_1"),
        (8, "none", "Q8_0"),
    ],
)
def test_integers_keep_their_values(bits: int, kind: str, name: str) -> None:
    matrix = grouped(bits, kind)
    packed = pack_grouped(matrix)
    assert packed is not None
    assert packed[0] == name
    assert np.array_equal(decoded(name, packed[1]), matrix.to_float32())


def test_integers_that_no_type_holds() -> None:
    matrix = grouped(4, "none")
    fields = {"values": matrix.values, "bits": 4, "group_size": 32, "scale_type": "f16"}
    scales = matrix.scales
    odd = np.full((6, 3), 0.1, np.float32)
    zeros = np.full((6, 3), 1, np.int16)
    assert pack_grouped(GroupedMatrix(**fields, scales=odd)) is None
    assert pack_grouped(GroupedMatrix(**{**fields, "group_size": 96}, scales=scales[:, :1])) is None
    columns = np.arange(96, dtype=np.int32)[::-1]
    assert pack_grouped(GroupedMatrix(**fields, scales=scales, columns=columns)) is None
    assert pack_grouped(GroupedMatrix(**{**fields, "bits": 8}, scales=scales, zeros=zeros)) is None
    assert pack_grouped(GroupedMatrix(**{**fields, "bits": 6}, scales=scales)) is None
    # 9 times a scale of 11 significant bits takes more of them than float16 has
    inexact = np.full((6, 3), np.float32(np.float16(0.3334)))
    assert pack_grouped(GroupedMatrix(**fields, scales=inexact, zeros=zeros)) is None


GGML = """
import ctypes, json, sys
import llama_cpp, numpy as np
from pathlib import Path
library = ctypes.CDLL(str(next(Path(llama_cpp.__file__).parent.glob("lib/libggml-base.so"))))
library.ggml_quantize_chunk.restype = library.ggml_row_size.restype = ctypes.c_size_t
library.ggml_row_size.argtypes = [ctypes.c_int, ctypes.c_int64]
library.ggml_quantize_chunk.argtypes = [
    ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 3, ctypes.c_void_p]
x, weights = np.load(sys.argv[1] + "/x.npy"), np.load(sys.argv[1] + "/weights.npy")
for number in json.loads(sys.argv[2]):
    for name, w in (("plain", None), ("weighted", weights.ctypes.data)):
        out = np.zeros((len(x), library.ggml_row_size(number, x.shape[1])), np.uint8)
        library.ggml_quantize_chunk(number, x.ctypes.data, out.ctypes.data, 0, *x.shape, w)
        np.save(f"{sys.argv[1]}/{number}-{name}.npy", out)
"""


def test_never_worse_than_ggml(tmp_path: object) -> None:
    python = os.environ.get("TRIMTAB_LLAMA_PYTHON")
    if not python:
        pytest.skip("TRIMTAB_LLAMA_PYTHON is not set")
    x = np.random.default_rng(5).standard_t(5, (64, 1024)).astype(np.float32)
    weights = np.random.default_rng(2).gamma(0.5, size=x.shape[1]).astype(np.float32)
    np.save(f"{tmp_path}/x.npy", x)
    np.save(f"{tmp_path}/weights.npy", weights)
    numbers = {name: int(GgmlType[name]) for name in QUANTIZERS}
    arguments = [python, "-c", GGML, str(tmp_path), json.dumps(list(numbers.values()))]
    subprocess.run(arguments, check=True, capture_output=True, timeout=120)
    for name, number in numbers.items():
        theirs = decoded(name, np.load(f"{tmp_path}/{number}-plain.npy"))
        assert relative_error(x, decoded(name, quantize(name, x))) <= relative_error(x, theirs)
        theirs = decoded(name, np.load(f"{tmp_path}/{number}-weighted.npy"))
        ours = relative_error(x, decoded(name, quantize(name, x, weights)), weights)
        assert ours <= 1.005 * relative_error(x, theirs, weights), name
