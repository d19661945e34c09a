"""Numbers as people read them."""

from __future__ import annotations

import pytest

from trimtab.optimizer.report import formatting
from trimtab.optimizer.report.choice import asked_in_words
from trimtab.optimizer.report.measurements import Interval
from trimtab.optimizer.report.svg import Plot, Scale


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0"), (4.984, "4.98"), (9.996, "10.0"), (0.0587, "0.0587"), (12345.6, "12,346"),
     (-0.5, "-0.500"), (5.5e-6, "0.00000550"), (999.6, "1,000")],
)  # fmt: skip
def test_plain_numbers(value: float, shown: str) -> None:
    assert formatting.plain(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.0324, "32.4 ms"), (0.9996, "1.00 s"), (4.04, "4.04 s"), (35e-6, "35 µs"), (0, "0 ms")],
)
def test_latencies(value: float, shown: str) -> None:
    assert formatting.seconds(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0 %"),
        (1, "100 %"),
        (0.994, "99.4 %"),
        (0.9996, "99.96 %"),
        (0.004, "0.40 %"),
        (7e-17, "0 %"),
    ],
)
def test_shares(value: float, shown: str) -> None:
    assert formatting.percent(value) == shown


@pytest.mark.parametrize(
    ("number", "shown"),
    [
        (None, "–"),
        (Interval(0.2), "200 ms"),
        (Interval(0.2, 0.19, 0.21), "200 ms (190–210)"),
        (Interval(0.99, 0.95, 1.1), "990 ms (950 ms–1.10 s)"),
        (Interval(0.2, 0.19), "200 ms (at least 190 ms)"),
        (Interval(0.2, None, 0.21), "200 ms (at most 210 ms)"),
        (Interval(0.2, 0.2, 0.2), "200 ms"),
    ],
)
def test_intervals(number: Interval | None, shown: str) -> None:
    assert formatting.interval(number, formatting.seconds) == shown


def test_a_prediction_is_marked() -> None:
    assert formatting.interval(Interval(2.0), predicted=True) == "~2.00"


@pytest.mark.parametrize(
    ("text", "shown"),
    [("2.00", "2"), ("60.0 ms", "60 ms"), ("0.050", "0.05"), ("500", "500"), ("1.10 s", "1.1 s")],
)
def test_ticks(text: str, shown: str) -> None:
    assert formatting.tick(text) == shown


def test_limits_in_words() -> None:
    assert asked_in_words("300ms+0.3ms*in") == "300 ms + 0.3 ms a prompt token"
    assert asked_in_words("2s") == "2 s"


@pytest.mark.parametrize(
    "values", [[0.0], [5.0], [5.0, 5.0], [1e-9, 1e9], [0.0, 1e-12], [-3.0, 4.0], [], [1.0, 1.0001]]
)
def test_axes_of_any_values(values: list[float]) -> None:
    for scale in (Scale.of(values, log=True), Scale.of(values), Scale.fitting(values)):
        ticks = scale.ticks()
        assert 1 <= len(ticks) <= 20
        inside = [one for one in values if one > 0 or not scale.is_log]
        assert all(
            -1e-9 <= scale.at(one) <= 1 + 1e-9 for one in inside if one >= 0 or scale.low < 0
        )
        assert "nan" not in Plot(scale, scale, "x", "y").svg("nothing")
