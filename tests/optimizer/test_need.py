"""The need as a user writes it."""

from __future__ import annotations

from pathlib import Path

import pytest

from trimtab.errors import UserError
from trimtab.optimizer.need import (
    DEFAULT_QUALITY,
    DEFAULT_SLO,
    make_need,
    parse_duration,
    parse_memory,
    parse_rate,
)
from trimtab.optimizer.need_file import read_need
from trimtab.optimizer.quality_need import parse_quality
from trimtab.workloads.slo import parse_slo


def test_the_defaults_are_a_need() -> None:
    need = make_need()
    assert need.slo == parse_slo(DEFAULT_SLO)
    assert need.quality == parse_quality(DEFAULT_QUALITY)
    assert (need.workload, need.rate, need.objective_text) == ("chat", None, "minimize cost")
    assert "assumed" in need.price_source


@pytest.mark.parametrize(
    ("text", "rate"), [("4rps", 4), ("0.5", 0.5), ("90/min", 1.5), (" 7200/h ", 2), ("3/s", 3)]
)
def test_rates(text: str, rate: float) -> None:
    assert parse_rate(text) == pytest.approx(rate)


@pytest.mark.parametrize("text", ["", "fast", "-1", "0", "1.2.3", "4 rpm", "inf", "1e400"])
def test_no_rates(text: str) -> None:
    with pytest.raises(UserError, match="--rate"):
        parse_rate(text)


@pytest.mark.parametrize(
    ("text", "share"), [("20%", 0.2), ("0.15", 0.15), ("0", 0), (" 90 % ", 0.9)]
)
def test_headrooms(text: str, share: float) -> None:
    assert make_need(headroom=text).headroom == pytest.approx(share)


@pytest.mark.parametrize("text", ["much", "-1", "91%", "20", "1", "1.2.3%", "%", "nan"])
def test_no_headrooms(text: str) -> None:
    with pytest.raises(UserError, match="--headroom"):
        make_need(headroom=text)


def test_a_rate_that_is_asked_for_has_no_headroom() -> None:
    with pytest.raises(UserError, match="one of them"):
        make_need(rate="4rps", headroom="10%")


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("10m", 600), ("1.5h", 5400), ("2min", 120)]
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration("--budget", text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "soon", "-5", "0s", "1d", "."])
def test_no_durations(text: str) -> None:
    with pytest.raises(UserError, match="--budget"):
        parse_duration("--budget", text)


@pytest.mark.parametrize(
    ("text", "count"), [("6GiB", 6 << 30), ("6", 6 << 30), ("800MiB", 800 << 20), ("1.5gb", 15e8)]
)
def test_memory(text: str, count: int) -> None:
    assert parse_memory(text) == count


@pytest.mark.parametrize("text", ["", "much", "-1", "0", "6 apples", "."])
def test_no_memory(text: str) -> None:
    with pytest.raises(UserError, match="--memory"):
        parse_memory(text)


def test_a_file_has_the_options_names(tmp_path: Path) -> None:
    path = tmp_path / "need.yaml"
    path.write_text("slo: 'itl:p99<50ms'\nrate: 4rps\nprice_per_hour: 0.4\nmaximize: goodput\n")
    need = make_need(**read_need(path))
    assert need.slo == parse_slo("itl:p99<50ms")
    assert (need.rate, need.price, need.objective) == (4.0, 0.4, "goodput")
    assert need.price_source == "given"
    path.write_text("headroom: 10%")
    assert make_need(**read_need(path)).headroom == pytest.approx(0.1)
    path.write_text("")
    assert read_need(path) == {}


@pytest.mark.parametrize(
    "text",
    [
        "speed: 4",
        "[1, 2]",
        "slo: [1]",
        "price_per_hour: cheap",
        "price_per_hour: true",
        "slo: {a: 1}",
        "a: &a 1\nb: *a",
        "slo: 'x",
        "\x00",
        "[[[[[[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]]]]]",
    ],
)
def test_a_file_that_is_none_is_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "need.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"need\.yaml") as caught:
        read_need(path)
    assert "\n" not in str(caught.value)
