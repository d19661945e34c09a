"""The law: an output element has the same bits whatever rows and panels a call holds."""

from __future__ import annotations

from itertools import pairwise

import gemm_cases as cases
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab import _native


@pytest.mark.parametrize("isa", cases.ISAS)
@pytest.mark.parametrize(("weight_format", "group_size"), cases.FORMATS, ids=cases.FORMAT_IDS)
def test_any_number_of_rows_equals_each_row_alone(
    isa: str, weight_format: str, group_size: int
) -> None:
    n, k = 97, 140
    x, w = cases.matrix(70, k), cases.matrix(n, k, seed=1)
    packed = _native.KernelMatrix(isa, weight_format, w, group_size)
    rows = packed.prepare(x)
    alone = np.full((70, n), np.nan, np.float32)
    for m in range(70):
        packed.gemm(rows, alone, m, m + 1, 0, packed.num_panels)
    for m in range(1, 71):
        together = np.full((70, n), np.nan, np.float32)
        packed.gemm(rows, together, 0, m, 0, packed.num_panels)
        assert np.array_equal(together[:m], alone[:m])
        assert np.isnan(together[m:]).all()


# columns beyond the blocks in which many rows walk K (gemm.cpp): 512 units, 512 columns of int4
LONG = {"f32": 1100, "bf16": 2100, "int8": 4300, "int4": 1300}


@pytest.mark.parametrize("isa", cases.ISAS)
@pytest.mark.parametrize(("weight_format", "group_size"), cases.FORMATS, ids=cases.FORMAT_IDS)
def test_blocks_of_columns_change_nothing(isa: str, weight_format: str, group_size: int) -> None:
    k = LONG[weight_format]
    x, w = cases.matrix(66, k), cases.matrix(48, k, seed=1)
    packed = _native.KernelMatrix(isa, weight_format, w, group_size)
    rows = packed.prepare(x)
    together, alone = (np.full((66, 48), np.nan, np.float32) for _ in range(2))
    packed.gemm(rows, together, 0, 66, 0, packed.num_panels)
    for m in range(0, 66, 5):
        packed.gemm(rows, alone, m, m + 1, 0, packed.num_panels)
    assert np.array_equal(together[::5], alone[::5])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    data=st.data(),
    isa=st.sampled_from(cases.ISAS),
    how=st.sampled_from(cases.FORMATS),
    epilogue=st.integers(0, 3),
    biased=st.booleans(),
)
def test_any_split_into_rows_and_panels_equals_the_whole(
    data: st.DataObject, isa: str, how: tuple[str, int], epilogue: int, biased: bool
) -> None:
    m = data.draw(st.integers(1, 40), label="m")
    gated = epilogue >= cases.GATED_SILU
    n = data.draw(st.integers(1, 6), label="n32") * 32
    if not gated:
        n -= data.draw(st.integers(0, 31), label="short")
    k = data.draw(st.integers(1, 200), label="k")
    packed = _native.KernelMatrix(isa, how[0], cases.matrix(n, k, seed=n), how[1])
    rows = packed.prepare(cases.matrix(m, k, seed=k))
    bias = cases.matrix(1, n, seed=2)[0] if biased else None
    start = cases.matrix(m, n // 2 if gated else n, seed=3)

    whole = start.copy()
    packed.gemm(rows, whole, 0, m, 0, packed.num_panels, bias, epilogue)

    split = start.copy()
    unit = 2 if gated or how[0] == "int4" else 1
    row_bounds = [0, *sorted(data.draw(st.lists(st.integers(0, m), max_size=4), label="rows")), m]
    top = packed.num_panels // unit
    panels = data.draw(st.lists(st.integers(0, top), max_size=3), label="panels")
    panel_bounds = [0, *sorted(panels), top]
    for p0, p1 in pairwise(panel_bounds):
        for m0, m1 in pairwise(row_bounds):
            packed.gemm(rows, split, m0, m1, p0 * unit, p1 * unit, bias, epilogue)
    assert np.array_equal(whole, split)


@pytest.mark.parametrize(("weight_format", "group_size"), cases.FORMATS, ids=cases.FORMAT_IDS)
def test_every_path_gives_the_same_bits(weight_format: str, group_size: int) -> None:
    """Stronger than promised: only vdpbf16ps (bf16 on avx512) rounds in a way of its own."""
    x, w = cases.matrix(21, 333), cases.matrix(70, 333, seed=1)
    want = cases.gemm("portable", weight_format, group_size, x, w)
    for isa in cases.ISAS:
        if (isa, weight_format) != ("avx512", "bf16"):
            y = cases.gemm(isa, weight_format, group_size, x, w)
            assert np.array_equal(y, want)
