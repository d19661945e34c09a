"""Paged attention alone: against numpy in float64, and bit for bit against itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from trimtab import _native

ISAS = _native.available_isas()
Array = npt.NDArray[np.float32]

BLOCK = 16


def round_bf16(x: Array) -> Array:
    bits = x.view(np.uint32).astype(np.uint64)
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    return bits.astype(np.uint32).view(np.float32)


def as_stored(x: Array, kv_cache: str) -> npt.NDArray[np.float64]:
    """What the cache makes of K or V [tokens, heads, dim]."""
    if kv_cache == "bf16":
        return round_bf16(x).astype(np.float64)
    if kv_cache == "int8":
        scale = np.abs(x).max(axis=-1, keepdims=True) / np.float32(127)
        factor = np.float32(127) / np.abs(x).max(axis=-1, keepdims=True)
        return np.rint(x * factor).astype(np.float64) * scale.astype(np.float64)
    return x.astype(np.float64)


def reference(
    query: Array, keys: Array, values: Array, window: int, softcap: float, scale: float, kv: str
) -> npt.NDArray[np.float64]:
    rows, heads, _ = query.shape
    tokens, kv_heads, _ = keys.shape
    k, v = (np.repeat(as_stored(x, kv), heads // kv_heads, axis=1) for x in (keys, values))
    scores = np.einsum("rhd,thd->hrt", query.astype(np.float64), k) * scale
    if softcap:
        scores = softcap * np.tanh(scores / softcap)
    position = np.arange(tokens - rows, tokens)[:, None]
    key = np.arange(tokens)[None]
    hidden = (key > position) | ((key <= position - window) if window else False)
    scores = np.where(hidden, -np.inf, scores)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return np.einsum("hrt,thd->rhd", weights, v)


def random_case(
    seed: int, rows: int, tokens: int, heads: int, kv_heads: int, dim: int
) -> tuple[Array, Array, Array]:
    rng = np.random.default_rng(seed)
    shapes = ((rows, heads, dim), (tokens, kv_heads, dim), (tokens, kv_heads, dim))
    q, k, v = (rng.standard_normal(shape).astype(np.float32) for shape in shapes)
    return q, k, v


def attend(q: Array, k: Array, v: Array, table: Any = None, **options: Any) -> Array:
    blocks = -(-k.shape[0] // BLOCK)
    if table is None:
        table = np.arange(blocks, dtype=np.int32)
    num_blocks = max(int(table.max()) + 1, 1)
    return _native.paged_attention(q, k, v, table, num_blocks, **options)


CASES = [
    # rows, tokens, heads, kv heads, dim
    (1, 1, 1, 1, 16),
    (1, 17, 5, 5, 80),
    (3, 3, 6, 2, 64),
    (16, 16, 4, 1, 48),
    (33, 70, 3, 3, 96),
    (7, 512, 8, 1, 64),
    (2, 513, 6, 3, 128),
    (1, 1030, 40, 1, 32),
    (40, 530, 2, 1, 256),
    (2, 50_001, 2, 1, 16),
]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kv_cache", ["f32", "bf16", "int8"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_against_float64(isa: str, kv_cache: str, case: tuple[int, ...]) -> None:
    q, k, v = random_case(sum(case), *case)
    scale = case[4] ** -0.5
    out = attend(q, k, v, scale=scale, kv_cache=kv_cache, isa=isa)
    expected = reference(q, k, v, 0, 0.0, scale, kv_cache)
    np.testing.assert_allclose(out, expected, rtol=0, atol=2e-6 * np.abs(v).max())


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("window", [1, 5, 16, 17, 64, 100, 511, 512, 700])
def test_sliding_windows(isa: str, window: int) -> None:
    q, k, v = random_case(window, 50, 1100, 4, 2, 32)
    out = attend(q, k, v, window=window, scale=0.2, isa=isa, threads=2)
    expected = reference(q, k, v, window, 0.0, 0.2, "f32")
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("isa", ISAS)
def test_soft_cap_and_large_scores(isa: str) -> None:
    q, k, v = random_case(4, 5, 90, 4, 2, 64)
    for scale, softcap in ((0.1, 2.0), (3.0, 50.0), (40.0, 0.0)):
        out = attend(q, k, v, softcap=softcap, scale=scale, isa=isa)
        expected = reference(q, k, v, 0, softcap, scale, "f32")
        # The scores themselves carry a float32 error that grows with them.
        np.testing.assert_allclose(out, expected, rtol=0, atol=1e-5 * max(1.0, 4 * scale))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kv_cache", ["f32", "bf16", "int8"])
@pytest.mark.parametrize("window", [0, 37, 530])
def test_a_row_never_depends_on_its_company(isa: str, kv_cache: str, window: int) -> None:
    """Any cut of a chunk, any number of threads, any block table: the same bits."""
    tokens, rows = 1060, 50
    q, k, v = random_case(9, rows, tokens, 4, 2, 32)
    options = {"window": window, "scale": 0.15, "kv_cache": kv_cache, "isa": isa}
    whole = attend(q, k, v, **options)
    assert np.isfinite(whole).all()
    rng = np.random.default_rng(window)
    table = rng.permutation(200)[: -(-tokens // BLOCK)].astype(np.int32)
    assert (attend(q, k, v, table=table, threads=2, **options) == whole).all()
    for size in (1, 2, 5, 31):
        first = int(rng.integers(0, rows - size))
        end = tokens - rows + first + size
        part = attend(
            q[first : first + size].copy(),
            k[:end].copy(),
            v[:end].copy(),
            threads=int(rng.integers(1, 4)),
            **options,
        )
        assert (part == whole[first : first + size]).all()


@pytest.mark.parametrize("isa", ISAS)
def test_heads_do_not_mix(isa: str) -> None:
    q, k, v = random_case(2, 4, 40, 6, 3, 32)
    whole = attend(q, k, v, isa=isa)
    for head in range(3):
        group = slice(2 * head, 2 * head + 2)
        one = attend(
            q[:, group].copy(), k[:, head : head + 1].copy(), v[:, head : head + 1].copy(), isa=isa
        )
        assert (one == whole[:, group]).all()


def test_a_zero_head_and_huge_values_in_int8() -> None:
    q, k, v = random_case(3, 2, 20, 2, 1, 16)
    k[3] = 0
    v[5] = 0
    v[7] *= 1e20
    out = attend(q, k, v, kv_cache="int8")
    expected = reference(q, k, np.where(v == 0, 1e-30, v), 0, 0.0, 1.0, "f32")
    assert np.isfinite(out).all()
    np.testing.assert_allclose(out, expected, rtol=0, atol=0.02 * np.abs(v).max())


def test_tables_are_checked() -> None:
    q, k, v = random_case(1, 1, 20, 1, 1, 16)
    with pytest.raises(ValueError, match="too few"):
        attend(q, k, v, table=np.array([0], np.int32))
    with pytest.raises(ValueError, match="outside"):
        _native.paged_attention(q, k, v, np.array([0, 5], np.int32), 2)
    with pytest.raises(ValueError, match="multiple of 16"):
        attend(*random_case(1, 1, 20, 1, 1, 24))
