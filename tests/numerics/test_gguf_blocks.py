"""Blocks of GGUF files, bit for bit as the `gguf` package reads them."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from trimtab.numerics import gguf_blocks
from trimtab.numerics.gguf_blocks import BLOCKS, BlockType
from trimtab.numerics.stored import GroupedMatrix

gguf = pytest.importorskip("gguf")

QUANTIZED = [kind for kind, block in BLOCKS.items() if block.format is not None]

# Where a block has float16 fields: random bytes would be NaN or infinite there.
HALVES = {
    "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,),
    "Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,),
    "IQ4_NL": (0,), "IQ4_XS": (0,),
}  # fmt: skip


def random_rows(block: BlockType, rows: int, blocks: int, seed: int) -> np.ndarray:
    """[rows, bytes], every field at random; scales of either sign, zeros of either sign and
    denormals among them."""
    random = np.random.default_rng(seed)
    data = random.integers(0, 256, (rows * blocks, block.num_bytes), np.uint8)
    for place in HALVES.get(block.name, ()):
        halves = (random.normal(0, 1, len(data)) * 10.0 ** random.integers(-7, 3)).astype("<f2")
        halves[:6] = [0, -0.0, 6e-8, -6e-8, 6e-5, 65504]
        random.shuffle(halves)
        data[:, place : place + 2] = halves.view(np.uint8).reshape(-1, 2)
    if block.name == "MXFP4":
        data[:, 0] = random.integers(60, 200, len(data))
        data[:4, 0] = [0, 1, 2, 251]
    return data.reshape(rows, -1)


def is_whole(values: np.ndarray, low: int, high: int) -> bool:
    return bool(values.min() >= low and values.max() <= high)


def check_form(matrix: GroupedMatrix, block: BlockType) -> None:
    """What `numerics/stored.py` promises of a matrix."""
    assert matrix.format == block.format
    rows, columns = matrix.shape
    groups = columns // matrix.group_size
    half = 1 << (matrix.bits - 1)
    assert matrix.values.dtype == np.int8
    assert is_whole(matrix.values, -half, half - 1)
    assert matrix.scales.shape == (rows, groups)
    assert matrix.scales.dtype == np.float32
    one_level = {"f16": np.float16, "bf16": None}
    if matrix.scale_type == "super":
        check_supers(matrix)
    elif matrix.scale_type == "f16":
        for floats in (matrix.scales, matrix.offsets):
            if floats is not None:
                assert (floats.astype(one_level["f16"]).astype(np.float32) == floats).all()
    else:
        assert not (matrix.scales.view(np.uint32) & 0xFFFF).any()
    assert (matrix.supers is not None) == (matrix.scale_type == "super")


def check_supers(matrix: GroupedMatrix) -> None:
    supers = matrix.supers
    assert supers is not None
    rows, columns = matrix.shape
    assert supers.super_scales.shape == (rows, columns // 256)
    spread = 256 // matrix.group_size
    assert supers.sub_scales.dtype == np.int8
    wide = np.repeat(supers.super_scales, spread, axis=1)
    assert (wide * supers.sub_scales.astype(np.float32) == matrix.scales).all()
    assert (supers.super_scales.astype(np.float16) == supers.super_scales).all()
    assert (matrix.offsets is None) == (supers.sub_offsets is None)
    if matrix.offsets is not None:
        assert supers.super_offsets is not None
        assert supers.sub_offsets is not None
        assert supers.sub_offsets.dtype == np.uint8
        wide = np.repeat(supers.super_offsets, spread, axis=1)
        assert (-(wide * supers.sub_offsets.astype(np.float32)) == matrix.offsets).all()


@pytest.mark.parametrize("kind", QUANTIZED)
@pytest.mark.parametrize("seed", range(3))
def test_every_block_type_equals_the_reference(
    kind: int, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    block = BLOCKS[kind]
    monkeypatch.setattr(gguf_blocks, "PIECE_ELEMENTS", 2 * 7 * block.elements)  # 3 pieces
    rows = random_rows(block, 5, 7, seed)
    found = block.unpack(rows)
    check_form(found, block)
    assert found.shape == (5, 7 * block.elements)
    expected = gguf.quants.dequantize(rows, gguf.GGMLQuantizationType(kind))
    assert np.isfinite(expected).all()
    assert (found.to_float32().view(np.uint32) == expected.view(np.uint32)).all()


@pytest.mark.parametrize("kind", BLOCKS)
def test_names_and_sizes(kind: int) -> None:
    block, reference = BLOCKS[kind], gguf.GGMLQuantizationType(kind)
    assert reference.name == block.name
    assert gguf.GGML_QUANT_SIZES[reference] == (block.elements, block.num_bytes)


def test_unpacking_takes_little_more_than_its_result() -> None:
    block = BLOCKS[14]
    rows = random_rows(block, 512, 32, 0)  # 4 Mi elements
    tracemalloc.start()
    matrix = block.unpack(rows)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert matrix.values.nbytes == 4 << 20
    assert peak < 11 << 20


def test_names_of_other_types() -> None:
    for kind, name in gguf_blocks.OTHER_TYPES.items():
        assert kind not in BLOCKS
        assert gguf.GGMLQuantizationType(kind).name == name
