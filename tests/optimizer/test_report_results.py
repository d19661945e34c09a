"""What the report takes for results, and what it refuses."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import report_data

from trimtab.errors import UserError
from trimtab.optimizer.report import check_results, read_document
from trimtab.optimizer.report.choice import latency_rows, shown_plan


def test_a_whole_document_is_understood() -> None:
    document = report_data.make_results()
    results = check_results(document)
    assert len(results.candidates) == 24
    chosen = results.candidate(results.chosen)
    assert chosen is not None
    assert chosen.is_measured
    assert chosen.rate is not None
    raw = next(one for one in document["candidates"] if one["id"] == document["chosen"])
    assert chosen.rate.value == raw["measured"]["rate"]["value"]
    assert chosen.measured is not None
    assert len(chosen.measured.points) == len(raw["measured"]["points"])


@pytest.mark.parametrize(
    "document", [report_data.minimal_results(), report_data.nulled_results()], ids=["least", "null"]
)
def test_what_may_be_missing(document: dict[str, Any]) -> None:
    results = check_results(document)
    assert not results.is_met
    assert results.accuracy is None
    assert all(one.rate is None for one in results.candidates)


def test_what_is_not_finite_is_not_known() -> None:
    document = report_data.make_results(num_candidates=3)
    points = document["candidates"][0]["measured"]["points"]
    points[0]["ttft"]["p99"] = math.nan
    document["candidates"][0]["measured"]["rate"] = {"value": 2.0, "low": -math.inf, "high": 2.1}
    first = check_results(document).candidates[0]
    assert first.measured is not None
    assert first.measured.points[0].latency("ttft", "p99") is None
    assert first.rate is not None
    assert (first.rate.low, first.rate.high) == (None, 2.1)


def _first(document: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = document["candidates"][0]
    return found


DAMAGES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "format": (lambda d: d.update(format=2), "format 2 is not 1"),
    "no format": (lambda d: d.pop("format"), "format is missing"),
    "status": (lambda d: d.update(status="maybe"), "status must be 'met' or 'not met'"),
    "candidates": (lambda d: d.update(candidates={}), "candidates must be a list"),
    "a candidate": (lambda d: d["candidates"].append(7), "candidates[3] must be an object, not 7"),
    "no id": (lambda d: _first(d).pop("id"), "candidates[0].id is missing"),
    "twice": (
        lambda d: d["candidates"].append(_first(d)),
        "candidates[3].id 'c0' stands there twice",
    ),
    "stage": (lambda d: _first(d).update(stage="x"), "candidates[0].stage must be one of"),
    "text": (
        lambda d: _first(d)["measured"].update(rate="4"),
        "candidates[0].measured.rate must be a number, not '4'",
    ),
    "bool": (lambda d: d.update(seconds=True), "seconds must be a number, not True"),
    "interval": (
        lambda d: _first(d)["measured"].update(rate={"value": 4, "low": 5, "high": 3}),
        "candidates[0].measured.rate has an interval that ends before it begins",
    ),
    "huge": (lambda d: d.update(seconds=10**400), "seconds is too large a number"),
    "deep": (
        lambda d: _first(d)["measured"]["points"][2]["itl"].update(p50=[]),
        "candidates[0].measured.points[2].itl.p50 must be a number, not []",
    ),
    "chosen": (lambda d: d.update(chosen="c99"), "chosen names 'c99', which is not among"),
    "none chosen": (lambda d: d.update(chosen=None), "chosen is null although the status is 'met'"),
    "ladder": (lambda d: d["ladder"][0].update(id="q"), "ladder[0].id names 'q'"),
    "sensitivity": (lambda d: d["sensitivity"][1].update(choice="q"), "sensitivity[1].choice"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_named_in_one_line(name: str) -> None:
    damage, complaint = DAMAGES[name]
    document = report_data.make_results(num_candidates=3)
    damage(document)
    with pytest.raises(UserError) as caught:
        check_results(document)
    message = str(caught.value)
    assert message.startswith("results: ")
    assert complaint in message
    assert "\n" not in message


@pytest.mark.parametrize("document", [None, [], "x", 4])
def test_a_document_that_is_none(document: Any) -> None:
    with pytest.raises(UserError, match="the document must be an object"):
        check_results(document)


def test_files_that_are_not_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read .*none.json: No such file"):
        read_document(tmp_path / "none.json")
    for content in (b"{", b"\xff\xfe", b"[" * 100_000):
        (tmp_path / "bad.json").write_bytes(content)
        with pytest.raises(UserError, match=r"bad.json is not JSON"):
            read_document(tmp_path / "bad.json")
    (tmp_path / "good.json").write_text(json.dumps(report_data.minimal_results()))
    assert read_document(tmp_path / "good.json") == report_data.minimal_results()


@pytest.mark.parametrize(
    ("attained", "proven"),
    [((1.0, 1.0, 1.0), True), ((1.0, 0.96, 1.0), True), ((0.96, 0.94, 0.96), False)],
)
def test_repeats_show_together_what_none_shows_by_itself(
    attained: tuple[float, ...], proven: bool
) -> None:
    """50 requests cannot show that 95 % of all keep a limit; 150 can."""
    document = report_data.make_results(num_candidates=6)
    chosen = next(one for one in document["candidates"] if one["id"] == document["chosen"])
    rate = chosen["measured"]["rate"]["value"]
    repeats = [one for one in chosen["measured"]["points"] if one["rate"] == rate]
    assert len(repeats) == len(attained)
    for point, share in zip(repeats, attained, strict=True):
        term = {"term": "ttft:p95<300ms", "value": 0.2, "limit": 0.3, "attained": share}
        point["terms"] = [term | {"worth": 50.0, "met": True, "proven": False}]
    results = check_results(document)
    plan = shown_plan(results)
    assert plan is not None
    assert [row.proven for row in latency_rows(results, plan)] == [proven]
