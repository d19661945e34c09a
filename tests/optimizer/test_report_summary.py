"""The summary in the terminal, and the verb that prints it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import report_data

from trimtab.cli.main import main
from trimtab.optimizer.report import summary_lines

DOCUMENTS = {
    "met": report_data.make_results(),
    "asked rate": report_data.make_results(rate=4.0),
    "not met": report_data.make_results(met=False),
    "minimal": report_data.minimal_results(),
    "nulls": report_data.nulled_results(),
    "hostile": report_data.hostile_results(),
}


@pytest.mark.parametrize("width", [1, 60, 80, 100])
@pytest.mark.parametrize("name", DOCUMENTS)
def test_it_is_one_screen_of_plain_text(name: str, width: int) -> None:
    lines = summary_lines(DOCUMENTS[name], width)
    assert 3 <= len(lines) <= 22
    assert max(map(len, lines)) <= max(width, 40)
    assert all(line.isprintable() for line in lines)


def chosen_of(document: dict[str, Any]) -> dict[str, Any]:
    return next(one for one in document["candidates"] if one["id"] == document["chosen"])


def test_it_says_what_the_data_says() -> None:
    document = DOCUMENTS["met"]
    text = " ".join(" ".join(summary_lines(document)).split())
    measured = chosen_of(document)["measured"]
    rate, cost = measured["rate"], measured["cost"]["per_million_output"]
    assert text.startswith(document["headline"])
    assert "run trimtab serve plan.yaml" in text
    assert f"serves {rate['value']:.2f} ({rate['low']:.2f}–{rate['high']:.2f}) requests" in text
    assert f"costs {cost['value']:.4f} ({cost['low']:.4f}–{cost['high']:.4f}) per million" in text
    assert "itl:p95<60ms" in text
    assert "MISSED" not in text
    first, step = document["ladder"][0]["rate"]["value"], document["ladder"][-1]["gain"]
    assert f"{first:.2f} (" in text
    assert f"{step:.2f}×" in text


def test_a_shortfall_comes_before_the_plan() -> None:
    lines = summary_lines(DOCUMENTS["not met"])
    names = [line.split()[0] for line in lines if line[:1].strip()]
    assert names.index("missed") < names.index("holds") < names.index("run")
    assert any(line.startswith("missed   itl:p95<60ms: 70 ms instead of 60 ms") for line in lines)
    assert any("itl:p95<60ms" in line and line.endswith("MISSED") for line in lines)


def test_the_plan_of_a_path_that_a_shell_would_break() -> None:
    document = report_data.make_results(num_candidates=6) | {"plan_path": "my plan; ls.yaml"}
    assert any("trimtab serve 'my plan; ls.yaml'" in line for line in summary_lines(document))


def test_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "results.json"
    source.write_text(json.dumps(DOCUMENTS["met"]))
    assert main(["report", str(source)]) == 0
    shown = capsys.readouterr().out
    assert f"report   {tmp_path / 'results.html'}" in shown
    assert (tmp_path / "results.html").read_text().startswith("<!doctype html>")
    assert main(["report", str(source), "--out", str(tmp_path / "x.html")]) == 0
    assert (tmp_path / "x.html").is_file()


def test_the_verb_and_what_it_cannot_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "results.json"
    for arguments, complaint in (
        ([str(source)], "cannot read"),
        ([str(source), "--out", str(source)], "is the results file itself"),
    ):
        assert main(["report", *arguments]) == 2
        assert complaint in capsys.readouterr().err
        source.write_text(json.dumps(DOCUMENTS["minimal"]))
    source.write_text('{"format": 1, "status": "met"}')
    assert main(["report", str(source)]) == 2
    assert capsys.readouterr().err == "trimtab: error: results: candidates is missing\n"
