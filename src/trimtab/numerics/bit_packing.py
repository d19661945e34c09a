"""Integers of 2 to 8 bits in 32-bit words: the layouts of GPTQ, AWQ and compressed-tensors.

Everything here is unsigned (u = centred value + 2^(bits - 1), see `centred` and `uncentred`) and
has the outputs of a matrix as rows; the transposes that a layout needs are made here.

    stream     element i of a row in bits [i b, (i + 1) b) of a row of little-endian words;
               3, 5, 6 and 7 bits straddle words; 32 elements are exactly b words
    words of   an older layout of the same: 32 // b elements a word, no straddling, high bits unused
    padded

    GPTQ                   qweight [K b / 32, N]: streams down the columns
                           qzeros [groups, N b / 32]: streams along the rows; in version 1 the
                           stored words are short of the zero points' by 1 in every field
    AWQ (gemm)             qweight [K, N / 8], qzeros [groups, N / 8]: 4 bits, the eight columns
                           of a word in the order 0 2 4 6 1 3 5 7
    compressed-tensors     weight_packed [N, ceil(K b / 32)]: streams along the rows
                           weight_zero_point [ceil(N b / 32), groups]: streams down the columns

Sources: AutoGPTQ and GPTQModel (qlinear, convert_gptq_v2_to_v1_format), AutoAWQ (gemm), and
compressed-tensors (pack_to_int32).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from trimtab.numerics.stored import Int8Array, Int32Array, UInt8Array

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # field i of a word holds column AWQ_ORDER[i] of its eight
_AWQ_PLACE = (0, 4, 1, 5, 2, 6, 3, 7)  # column j is in field _AWQ_PLACE[j]

_WORD = np.dtype("<i4")
_ONES = {2: 0x55555555, 4: 0x11111111, 8: 0x01010101}  # 1 in every field of a word


def centred(unsigned: UInt8Array, bits: int) -> Int8Array:
    """u - 2^(bits - 1); elements below 2^bits."""
    result: Int8Array = (unsigned - np.uint8(1 << (bits - 1))).view(np.int8)
    return result


def uncentred(values: npt.NDArray[np.signedinteger[Any]], bits: int) -> UInt8Array:
    """value + 2^(bits - 1). Raises ValueError for values that `bits` bits do not hold: a file
    with such an element would change its neighbours."""
    half = 1 << (bits - 1)
    if values.size and (int(values.min()) < -half or int(values.max()) >= half):
        raise ValueError(f"values outside [{-half}, {half - 1}] do not fit {bits} bits")
    result: UInt8Array = values.astype(np.uint8) + np.uint8(half)
    return result


def stream_words(count: int, bits: int) -> int:
    """Words of a stream of `count` elements."""
    return -(-count * bits // 32)


def _period(bits: int) -> tuple[int, int]:
    """The least number of elements that are exactly some bytes, and how many bytes."""
    common = math.gcd(bits, 8)
    return 8 // common, bits // common


def pack_stream(unsigned: UInt8Array, bits: int) -> Int32Array:
    """[rows, count] -> [rows, ceil(count bits / 32)]; elements below 2^bits."""
    rows, count = unsigned.shape
    each, width = _period(bits)
    periods = -(-count // each)
    elements = np.zeros((rows, periods * each), np.uint8)
    elements[:, :count] = unsigned
    elements = elements.reshape(rows, periods, each)
    stream = np.zeros((rows, periods, width), np.uint8)
    for i in range(each):
        byte, shift = divmod(i * bits, 8)
        stream[:, :, byte] |= elements[:, :, i] << np.uint8(shift)
        if shift + bits > 8:
            stream[:, :, byte + 1] |= elements[:, :, i] >> np.uint8(8 - shift)
    words = np.zeros((rows, stream_words(count, bits) * 4), np.uint8)
    used = min(words.shape[1], periods * width)
    words[:, :used] = stream.reshape(rows, -1)[:, :used]
    return words.view(_WORD)


def unpack_stream(words: Int32Array, bits: int, count: int) -> UInt8Array:
    """[rows, ceil(count bits / 32)] -> [rows, count]; bits behind the last element are ignored."""
    rows = words.shape[0]
    stream = np.ascontiguousarray(words, _WORD).view(np.uint8)
    each, width = _period(bits)
    periods = -(-count // each)
    if stream.shape[1] < periods * width:
        stream = np.pad(stream, ((0, 0), (0, periods * width - stream.shape[1])))
    stream = stream[:, : periods * width].reshape(rows, periods, width)
    elements = np.empty((rows, periods, each), np.uint8)
    mask = np.uint8((1 << bits) - 1)
    for i in range(each):
        byte, shift = divmod(i * bits, 8)
        element = stream[:, :, byte] >> np.uint8(shift)
        if shift + bits > 8:
            element |= stream[:, :, byte + 1] << np.uint8(8 - shift)
        elements[:, :, i] = element & mask
    return elements.reshape(rows, -1)[:, :count]


def padded_words(count: int, bits: int) -> int:
    """Words of `count` elements in the older, padded layout."""
    return -(-count // (32 // bits))


def pack_padded(unsigned: UInt8Array, bits: int) -> Int32Array:
    """[rows, count] -> [rows, ceil(count / (32 // bits))]"""
    rows, count = unsigned.shape
    each = 32 // bits
    elements = np.zeros((rows, padded_words(count, bits) * each), np.uint32)
    elements[:, :count] = unsigned
    shifts = np.arange(each, dtype=np.uint32) * np.uint32(bits)
    fields = elements.reshape(rows, -1, each) << shifts
    words: Int32Array = np.bitwise_or.reduce(fields, axis=2).astype("<u4").view(_WORD)
    return words


def unpack_padded(words: Int32Array, bits: int, count: int) -> UInt8Array:
    """[rows, ceil(count / (32 // bits))] -> [rows, count]"""
    rows = words.shape[0]
    each = 32 // bits
    unsigned = np.ascontiguousarray(words, _WORD).view("<u4")
    elements = np.empty((rows, words.shape[1], each), np.uint8)
    for i in range(each):
        elements[:, :, i] = unsigned >> np.uint32(i * bits) & np.uint32((1 << bits) - 1)
    return elements.reshape(rows, -1)[:, :count]


def pack_gptq_weight(unsigned: UInt8Array, bits: int) -> Int32Array:
    """[N, K] -> qweight [K bits / 32, N]; K bits is a multiple of 32."""
    return np.ascontiguousarray(pack_stream(unsigned, bits).T)


def unpack_gptq_weight(qweight: Int32Array, bits: int) -> UInt8Array:
    """qweight [K bits / 32, N] -> [N, K]"""
    return unpack_stream(qweight.T, bits, qweight.shape[0] * 32 // bits)


def pack_gptq_zeros(unsigned: UInt8Array, bits: int, *, version: int) -> Int32Array:
    """Zero points [N, groups] -> qzeros [groups, N bits / 32]; N bits is a multiple of 32.

    Version 1 stores them less 1: of 2, 4 and 8 bits whole words are subtracted from, modulo 2^32
    (a zero point of 0 borrows from its neighbour); of 3 bits each field, modulo 8.
    """
    zeros = np.ascontiguousarray(unsigned.T)
    if version == 1 and bits not in _ONES:
        zeros = (zeros - np.uint8(1)) & np.uint8((1 << bits) - 1)
    words = pack_stream(zeros, bits)
    return _add_to_words(words, -_ONES[bits]) if version == 1 and bits in _ONES else words


def unpack_gptq_zeros(qzeros: Int32Array, bits: int, *, version: int) -> UInt8Array:
    """qzeros [groups, N bits / 32] -> zero points [N, groups], as `pack_gptq_zeros` stores them."""
    words = _add_to_words(qzeros, _ONES[bits]) if version == 1 and bits in _ONES else qzeros
    zeros = unpack_stream(words, bits, words.shape[1] * 32 // bits)
    if version == 1 and bits not in _ONES:
        zeros = (zeros + np.uint8(1)) & np.uint8((1 << bits) - 1)
    return np.ascontiguousarray(zeros.T)


def _add_to_words(words: Int32Array, constant: int) -> Int32Array:
    """Modulo 2^32."""
    unsigned = np.ascontiguousarray(words, _WORD).view("<u4")
    result: Int32Array = (unsigned + np.uint32(constant % (1 << 32))).astype("<u4").view(_WORD)
    return result


def pack_awq(unsigned: UInt8Array) -> Int32Array:
    """[N, K] of 4 bits -> qweight [K, N / 8]; zero points [N, groups] -> qzeros [groups, N / 8].
    N is a multiple of 8."""
    rows = unsigned.shape[0]
    fields = unsigned.reshape(rows // 8, 8, -1)[:, AWQ_ORDER].reshape(rows, -1)
    return pack_stream(np.ascontiguousarray(fields.T), 4)


def unpack_awq(words: Int32Array) -> UInt8Array:
    """qweight [K, N / 8] -> [N, K]; qzeros [groups, N / 8] -> [N, groups]"""
    cols, eights = words.shape
    shifts = np.asarray(_AWQ_PLACE, np.uint32) * np.uint32(4)
    # The transpose moves whole words, an eighth of what the elements would be.
    unsigned = np.ascontiguousarray(words.T, _WORD).view("<u4")
    elements = np.empty((eights, 8, cols), np.uint8)
    for column, shift in enumerate(shifts):
        elements[:, column] = unsigned >> shift & np.uint32(15)
    return elements.reshape(eights * 8, cols)


def pack_zeros_down(unsigned: UInt8Array, bits: int) -> Int32Array:
    """Zero points [N, groups] -> weight_zero_point [ceil(N bits / 32), groups]"""
    return np.ascontiguousarray(pack_stream(np.ascontiguousarray(unsigned.T), bits).T)


def unpack_zeros_down(words: Int32Array, bits: int, rows: int) -> UInt8Array:
    """weight_zero_point [ceil(rows bits / 32), groups] -> zero points [rows, groups]"""
    return np.ascontiguousarray(unpack_stream(words.T, bits, rows).T)
