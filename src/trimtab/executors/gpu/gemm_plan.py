"""How a product is cut into tiles, and why that changes no bit.

Every kernel computes y^T = W x^T: rows of W are the M of the matrix instruction (64 of a wgmma),
rows of x its N (8 to 256). So one row of x and four thousand go through the same instruction, and
an element's sum has one order: within a split the columns of K ascending, 16 (of bytes: 32) an
instruction, in one accumulator; then the splits, ascending, in float32. The number of splits
depends on the matrix's shape alone. The tile does not appear in that order, so it may follow the
number of rows.

    split kernel   a program a (tile, split); the last to finish a tile adds up the splits in order.
                   Decode: W is read once, at 2 N K bytes a step of bf16 for 2 T N K operations, so
                   up to about 180 rows memory is the limit (4.3 TB/s, 790 TFLOP/s). A program keeps
                   four 16 KiB tiles of W in flight; about one program for each of 132
                   multiprocessors then asks for more than bandwidth times latency (about 5 MB)
    whole kernel   a program a tile, all splits in turn. Prefill: tiles of 128 x 128 (two
                   accumulators, where there are splits) or 128 x 256
"""

from __future__ import annotations

from dataclasses import dataclass

UNIT = 128  # columns: splits begin at multiples of it
SMALL_ROWS = 64  # of W, a tile of the split kernel
LARGE_ROWS = 128  # of W, a tile of the whole kernel
MULTIPROCESSORS = 132  # a constant of the arithmetic, not of the card: splits follow from it
LONGEST_TILE = 128  # rows of x


@dataclass(frozen=True)
class Splits:
    """Split s sums columns [s * columns, (s + 1) * columns), as far as K goes."""

    count: int
    columns: int


@dataclass(frozen=True)
class Tile:
    """block_n rows of W, block_m rows of x, block_k columns at a time."""

    block_n: int
    block_m: int
    block_k: int
    num_warps: int
    num_stages: int


def splits_of(rows: int, cols: int) -> Splits:
    """Of a matrix [rows, cols]: enough programs of 64 rows to occupy the card, at least 256 columns
    each."""
    return _splits(rows, cols, int(MULTIPROCESSORS * 0.9), 2, 8)


def packed_splits_of(rows: int, cols: int) -> Splits:
    """Of a PackedMatrix: three programs a multiprocessor, so that one reads while others turn
    integers into floats; at least 512 columns each."""
    return _splits(rows, cols, int(MULTIPROCESSORS * 2.5), 4, 4)


def _splits(rows: int, cols: int, programs: int, least_units: int, most: int) -> Splits:
    tiles, units = -(-rows // SMALL_ROWS), -(-cols // UNIT)
    count = 1
    while tiles * count < programs and units >= 2 * least_units * count and count < most:
        count *= 2
    each = -(-units // count)
    return Splits(-(-units // each), each * UNIT)


def small_tile(num_rows: int) -> Tile:
    """For so many rows of floats, with a program for each split. 96 KiB and more of shared memory:
    two programs a multiprocessor, 70 KiB of W on the way in each."""
    if num_rows <= 16:
        return Tile(SMALL_ROWS, 16, 128, 4, 5)
    if num_rows <= 32:
        return Tile(SMALL_ROWS, 32, 128, 4, 4)
    if num_rows <= 64:
        return Tile(SMALL_ROWS, 64, 128, 4, 3)
    return Tile(SMALL_ROWS, LONGEST_TILE, 64, 4, 4)


def small_tile_bytes(num_rows: int) -> Tile:
    """The same of int8 and float8, whose columns come 128 at a time."""
    if num_rows <= 16:
        return Tile(SMALL_ROWS, 16, 128, 4, 6)
    if num_rows <= 32:
        return Tile(SMALL_ROWS, 32, 128, 4, 6)
    if num_rows <= 64:
        return Tile(SMALL_ROWS, 64, 128, 4, 5)
    return Tile(SMALL_ROWS, LONGEST_TILE, 128, 4, 4)


def packed_tile(num_rows: int, chunk: int) -> Tile:
    """Of a PackedMatrix: a tile of words is 4 KiB. Registers allow three or four programs a
    multiprocessor (one or two of 128 rows)."""
    if num_rows <= 16:
        return Tile(SMALL_ROWS, 16, chunk, 4, 5)
    if num_rows <= 32:
        return Tile(SMALL_ROWS, 32, chunk, 4, 4)
    if num_rows <= 64:
        return Tile(SMALL_ROWS, 64, chunk, 4, 3)
    return Tile(SMALL_ROWS, LONGEST_TILE, chunk, 4, 3)


def large_tile(splits: Splits) -> Tile:
    """Of floats: 128 x 256 where one accumulator does (192 KiB of shared memory), else 128 x 128
    with two (96 KiB)."""
    if splits.count > 1:
        return Tile(LARGE_ROWS, 128, 64, 8, 3)
    return Tile(LARGE_ROWS, 256, 64, 8, 4)


def large_tile_bytes(accumulators: int) -> Tile:
    if accumulators > 1:
        return Tile(LARGE_ROWS, 128, 128, 8, 3)
    return Tile(LARGE_ROWS, 256, 128, 8, 4)


def is_large(num_rows: int, rows: int) -> bool:
    """Whether tiles of 128 x 128 alone occupy the card."""
    return num_rows > 64 and num_tiles(num_rows, rows, 128, LARGE_ROWS) >= MULTIPROCESSORS * 0.9


def num_tiles(num_rows: int, rows: int, block_m: int, block_n: int) -> int:
    return -(-num_rows // block_m) * -(-rows // block_n)


# From so many rows on, a PackedMatrix is turned into floats first: 4.5 bytes a weight of traffic
# instead of five instructions a weight for every 128 rows.
DEQUANTIZE_ROWS = 512
