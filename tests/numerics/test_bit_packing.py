"""Packed integers against scalar references written from the formats, and against their owner."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32

from trimtab.numerics import bit_packing as packing

BITS = range(2, 9)
COUNTS = (1, 7, 8, 10, 31, 32, 33, 64, 95)
AWQ_COLUMNS = [0, 2, 4, 6, 1, 3, 5, 7]


def unsigned(rows: int, count: int, bits: int) -> np.ndarray:
    """Random elements, both ends of the range among them."""
    values = np.random.default_rng(bits * 1000 + count).integers(0, 1 << bits, (rows, count))
    values[0, 0], values[-1, -1] = (1 << bits) - 1, 0
    return values.astype(np.uint8)


def as_words(number: int, count: int) -> list[int]:
    """A number of any length as 32-bit words, the lowest first, signed as int32."""
    words = [number >> 32 * i & 0xFFFFFFFF for i in range(count)]
    return [word - (1 << 32) if word >> 31 else word for word in words]


def stream_of(elements: list[int], bits: int) -> list[int]:
    number = 0
    for i, element in enumerate(elements):
        number |= element << i * bits
    return as_words(number, (len(elements) * bits + 31) // 32)


@pytest.mark.parametrize(("bits", "count"), list(itertools.product(BITS, COUNTS)))
def test_streams(bits: int, count: int) -> None:
    values = unsigned(3, count, bits)
    words = packing.pack_stream(values, bits)
    assert words.dtype == np.int32
    assert words.shape == (3, packing.stream_words(count, bits))
    assert words.tolist() == [stream_of(row, bits) for row in values.tolist()]
    assert (packing.unpack_stream(words, bits, count) == values).all()


@pytest.mark.parametrize(("bits", "count"), list(itertools.product(BITS, COUNTS)))
def test_streams_are_those_of_compressed_tensors(bits: int, count: int) -> None:
    values = unsigned(5, count, bits)
    signed = torch.from_numpy(packing.centred(values, bits).copy())
    theirs = pack_to_int32(signed, bits)
    assert (theirs.numpy() == packing.pack_stream(values, bits)).all()
    ours = torch.from_numpy(packing.pack_stream(values, bits))
    assert (unpack_from_int32(ours, bits, signed.shape) == signed).all()
    down = pack_to_int32(signed, bits, packed_dim=0)
    assert (down.numpy() == packing.pack_zeros_down(values, bits)).all()
    assert (packing.unpack_zeros_down(down.numpy(), bits, 5) == values).all()


@pytest.mark.parametrize(("bits", "count"), list(itertools.product(BITS, COUNTS)))
def test_padded_words(bits: int, count: int) -> None:
    values = unsigned(2, count, bits)
    words = packing.pack_padded(values, bits)
    each = 32 // bits
    for row, packed in zip(values.tolist(), words.tolist(), strict=True):
        pieces = [row[i : i + each] for i in range(0, count, each)]
        assert packed == [stream_of(piece, bits)[0] for piece in pieces]
    assert words.shape == (2, packing.padded_words(count, bits))
    assert (packing.unpack_padded(words, bits, count) == values).all()


@pytest.mark.parametrize("bits", BITS)
def test_centred_and_back(bits: int) -> None:
    values = np.arange(1 << bits, dtype=np.uint8)[None]
    signed = packing.centred(values, bits)
    half = 1 << (bits - 1)
    assert signed.tolist() == [list(range(-half, half))]
    assert (packing.uncentred(signed, bits) == values).all()
    with pytest.raises(ValueError, match=f"do not fit {bits} bits"):
        packing.uncentred(np.array([[half]], np.int16), bits)
    with pytest.raises(ValueError, match="do not fit"):
        packing.uncentred(np.array([[-half - 1]], np.int16), bits)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_gptq_weights_are_streams_down_the_columns(bits: int) -> None:
    values = unsigned(5, 64, bits)
    words = packing.pack_gptq_weight(values, bits)
    assert words.shape == (64 * bits // 32, 5)
    for row in range(5):
        assert words[:, row].tolist() == stream_of(values[row].tolist(), bits)
    assert (packing.unpack_gptq_weight(words, bits) == values).all()


def test_gptq_three_bits_straddle_as_10_1_10_1_10() -> None:
    """The layout as AutoGPTQ's code spells it: ten fields, then two or one bits of the next."""
    q = unsigned(1, 32, 3)[0].tolist()
    first = sum(q[i] << 3 * i for i in range(10)) | (q[10] & 3) << 30
    second = q[10] >> 2 | sum(q[11 + i] << 3 * i + 1 for i in range(10)) | (q[21] & 1) << 31
    third = q[21] >> 1 | sum(q[22 + i] << 3 * i + 2 for i in range(10))
    words = packing.pack_gptq_weight(np.array([q], np.uint8), 3)
    assert words.ravel().view(np.uint32).tolist() == [first, second, third]


@pytest.mark.parametrize(
    ("bits", "version", "word"),
    [
        (2, 1, 0x55555555),
        (2, 2, 0xAAAAAAAA),
        (4, 1, 0x77777777),
        (4, 2, 0x88888888),
        (8, 1, 0x7F7F7F7F),
        (8, 2, 0x80808080),
    ],
)
def test_symmetric_gptq_zeros_are_known_words(bits: int, version: int, word: int) -> None:
    middle = np.full((32, 3), 1 << (bits - 1), np.uint8)
    words = packing.pack_gptq_zeros(middle, bits, version=version)
    assert words.shape == (3, bits)
    assert (words.view(np.uint32) == word).all()
    assert (packing.unpack_gptq_zeros(words, bits, version=version) == middle).all()


@pytest.mark.parametrize(("bits", "version"), list(itertools.product((2, 3, 4, 8), (1, 2))))
def test_gptq_zeros(bits: int, version: int) -> None:
    """Version 1 against whole-word (3 bits: field by field) arithmetic in Python integers."""
    zeros = unsigned(32, 4, bits)
    zeros[:, 1], zeros[:, 2] = 0, (1 << bits) - 1  # all borrow; none does
    words = packing.pack_gptq_zeros(zeros, bits, version=version)
    ones = sum(1 << i for i in range(0, 32, bits))
    for group in range(4):
        row = zeros[:, group].tolist()
        if version == 1 and bits == 3:
            expected = stream_of([(zero - 1) % 8 for zero in row], 3)
        else:
            expected = stream_of(row, bits)
            if version == 1:
                expected = [as_words((word - ones) % (1 << 32), 1)[0] for word in expected]
        assert words[group].tolist() == expected
    assert (packing.unpack_gptq_zeros(words, bits, version=version) == zeros).all()


def test_a_zero_that_borrows_from_its_neighbour() -> None:
    """Fields 0 and 5: the word 0x50 - 0x11111111 is what version 1 stores."""
    zeros = np.array([[0], [5], [0], [0], [0], [0], [0], [0]], np.uint8)
    words = packing.pack_gptq_zeros(zeros, 4, version=1)
    assert words.view(np.uint32).tolist() == [[0xEEEEEF3F]]
    assert (packing.unpack_gptq_zeros(words, 4, version=1) == zeros).all()


def test_awq_words() -> None:
    values = unsigned(24, 5, 4)
    words = packing.pack_awq(values)
    assert words.shape == (5, 3)
    for k, eight in itertools.product(range(5), range(3)):
        fields = [int(values[8 * eight + AWQ_COLUMNS[i], k]) for i in range(8)]
        assert words[k, eight] == stream_of(fields, 4)[0]
    assert (packing.unpack_awq(words) == values).all()


def test_an_awq_word_by_hand() -> None:
    columns = np.arange(8, dtype=np.uint8)[:, None]  # column j holds j
    assert packing.pack_awq(columns).view(np.uint32).tolist() == [[0x75316420]]


def test_views_that_are_not_contiguous() -> None:
    words = packing.pack_stream(unsigned(6, 64, 3), 3)
    wide = np.zeros((6, 12), np.int32)
    wide[:, ::2] = words
    assert (packing.unpack_stream(wide[:, ::2], 3, 64) == packing.unpack_stream(words, 3, 64)).all()
