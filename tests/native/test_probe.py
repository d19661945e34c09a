"""The probe measures on every path; that its figures are sane, not how large they are."""

from __future__ import annotations

import math

import pytest

from trimtab import _native
from trimtab.bench.machine import cpu_name

ISAS = _native.available_isas()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("threads", [1, 3])
def test_bandwidth_has_one_positive_figure_a_repeat(isa: str, threads: int) -> None:
    samples = _native.probe_bandwidth(isa, threads, 1 << 20, 3)
    assert len(samples) == 3
    assert all(math.isfinite(value) and value > 0 for value in samples)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("weights", ["f32", "bf16", "int8", "int4"])
def test_arithmetic_has_one_positive_figure_a_repeat(isa: str, weights: str) -> None:
    samples = _native.probe_arithmetic(isa, 1, weights, 2)
    assert len(samples) == 2
    assert all(math.isfinite(value) and value > 0 for value in samples)


@pytest.mark.parametrize(
    "call",
    [
        lambda: _native.probe_bandwidth("mmx", 1, 1 << 20, 1),
        lambda: _native.probe_bandwidth("portable", 0, 1 << 20, 1),
        lambda: _native.probe_bandwidth("portable", 1, 1, 1),
        lambda: _native.probe_arithmetic("portable", 1, "int3", 1),
        lambda: _native.probe_arithmetic("portable", 1, "int8", 0),
    ],
)
def test_bad_arguments_are_refused(call) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError):  # noqa: PT011 - the type is the contract
        call()


def test_the_cpu_has_a_name() -> None:
    assert cpu_name()
