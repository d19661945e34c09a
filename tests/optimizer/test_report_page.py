"""The HTML file: well-formed, on its own, inert, and true to the data."""

from __future__ import annotations

import base64
import copy
import hashlib
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import report_data

from trimtab.errors import UserError
from trimtab.optimizer.report import write_report
from trimtab.optimizer.report.formatting import percent
from trimtab.optimizer.report.page import render

VOID = {"meta", "link", "input", "br", "img"}
DOCUMENTS = {
    "met": report_data.make_results(),
    "asked rate": report_data.make_results(seed=3, rate=4.0),
    "not met": report_data.make_results(met=False),
    "minimal": report_data.minimal_results(),
    "nulls": report_data.nulled_results(),
    "hostile": report_data.hostile_results(),
    "many": report_data.make_results(seed=1, num_candidates=300),
}


class Parsed(HTMLParser):
    """Elements with their attributes and texts; a tag that does not close is an error."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"an attribute of {tag} stands there twice"
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((self.open[-1] if self.open else "", data))

    def text(self) -> str:
        """What is read, with single spaces."""
        read = (data for tag, data in self.texts if tag not in ("script", "style", "title"))
        return " ".join(" ".join(read).split())

    def inside(self, tag: str) -> list[str]:
        return [data for inner, data in self.texts if inner == tag]


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    return {name: render(document) for name, document in DOCUMENTS.items()}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_it_is_well_formed_and_alone(pages: dict[str, str], name: str) -> None:
    parsed = Parsed(pages[name])
    ids = [attributes["id"] for _, attributes in parsed.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert [tag for tag, _ in parsed.elements].count("script") == 2
    for tag, attributes in parsed.elements:
        assert tag not in ("img", "iframe", "object", "embed", "base", "form", "a", "use", "image")
        assert "style" not in attributes
        assert not [one for one in attributes if one.startswith("on") or one in ("src", "srcdoc")]
        assert attributes.get("href", "data:,") == "data:,"
        labels = (attributes.get("aria-labelledby"), attributes.get("for"))
        assert all(one in ids for one in labels if one is not None)
    (style,) = parsed.inside("style")
    assert not re.search(r"url\(|@import|@font-face|https?:|expression\(", style)
    assert not re.search(
        r"https?://|\bimport\b|fetch\(|innerHTML|eval\(", parsed.inside("script")[1]
    )


@pytest.mark.parametrize("name", ["met", "hostile"])
def test_only_its_own_script_and_style_may_run(pages: dict[str, str], name: str) -> None:
    parsed = Parsed(pages[name])
    (policy,) = (
        attributes["content"]
        for _, attributes in parsed.elements
        if attributes.get("http-equiv") == "Content-Security-Policy"
    )
    rules = dict(one.strip().split(" ", 1) for one in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["base-uri"] == rules["form-action"] == "'none'"
    for kind, content in (
        ("script-src", parsed.inside("script")[1]),
        ("style-src", parsed.inside("style")[0]),
    ):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert rules[kind] == f"'sha256-{digest}'"


def test_hostile_texts_are_only_texts(pages: dict[str, str]) -> None:
    page = pages["hostile"]
    assert "<script>document" not in page
    assert "<img" not in page
    assert "{{ 7*7 }}" in page
    assert " 49 " not in Parsed(page).text()
    for _, text in Parsed(page).texts:  # neither colours nor directions reach what is around them
        assert not re.search("[\x1b\u202e]", text)
    attack = "<script>document.title='broken'</script>"
    assert attack in Parsed(page).text()


@pytest.mark.parametrize("name", DOCUMENTS)
def test_the_data_is_in_it(pages: dict[str, str], name: str) -> None:
    assert json.loads(Parsed(pages[name]).inside("script")[0]) == DOCUMENTS[name]


def numbers(number: dict[str, float], digits: int) -> Iterator[str]:
    for part in ("value", "low", "high"):
        yield f"{number[part]:.{digits}f}"


def test_the_first_screen_says_what_the_data_says(pages: dict[str, str]) -> None:
    document = DOCUMENTS["met"]
    text = Parsed(pages["met"]).text().partition("The choice among all")[0]
    chosen = next(one for one in document["candidates"] if one["id"] == document["chosen"])
    measured = chosen["measured"]
    assert document["headline"] in text
    assert "trimtab serve plan.yaml" in text
    value, low, high = numbers(measured["rate"], 2)
    assert f"It serves {value} ({low}–{high}) requests a second within the SLO" in text
    value, low, high = numbers(measured["cost"]["per_million_output"], 4)
    assert f"It costs {value} ({low}–{high}) per million output tokens" in text
    assert "at 0.1 an hour (given)" in text
    top1 = chosen["quality"]["top1"]
    shares = {part: f"{100 * top1[part]:.1f}" for part in top1}
    given_up = f"{shares['value']} % ({shares['low']}–{shares['high']}) same most likely token"
    assert f"What was given up {given_up}" in text
    assert "3 measured repeats of this plan, of 20.0 s each" in text
    rate = measured["rate"]["value"]
    loads = sorted(one["itl"]["p95"] * 1000 for one in measured["points"] if one["rate"] == rate)
    assert len(loads) == 3
    assert f"< 60 ms {loads[1]:.1f} ms ({loads[0]:.1f}–{loads[2]:.1f})" in text
    accuracy = document["accuracy"]
    assert f"prediction error, throughput {100 * accuracy['throughput']:.1f} %" in text
    assert "~" not in text.replace("with a ~ is predicted", "")


def test_a_default_that_was_not_verified_is_marked() -> None:
    document = copy.deepcopy(DOCUMENTS["met"])
    assert ", not verified" not in Parsed(render(document)).text()
    default = next(one for one in document["candidates"] if one["id"] == document["default"])
    default["measured"]["repeats"] = 0
    assert ", not verified" in Parsed(render(document)).text()


def test_errors_are_said_at_the_pace_of_the_machine_too(pages: dict[str, str]) -> None:
    text = Parsed(pages["met"]).text()
    errors = DOCUMENTS["met"]["accuracy"]["at_pace"]
    said = f"during each load: median time to first token {percent(errors['ttft_p50'])}"
    assert said in text
    assert "during each load" not in Parsed(pages["minimal"]).text()


def test_loads_at_the_rate_that_was_asked(pages: dict[str, str]) -> None:
    text = Parsed(pages["asked rate"]).text()
    assert "asked: 4 requests a second" in text
    assert re.search(r"Latencies at [34]\.\d+ requests a second, \d loads: median", text)


def test_a_need_that_is_not_met_comes_first(pages: dict[str, str]) -> None:
    text = Parsed(pages["not met"]).text()
    places = [
        text.index(part)
        for part in (
            "✕ The need is not met", "Where it falls short", "What fails itl:p95<60ms",
            "70 ms instead of 60 ms", "Closest plan", "Would hold", "74.0 ms",
            "Run the closest plan",
        )
    ]  # fmt: skip
    assert places == sorted(places)
    assert "✕ missed" in text
    assert "✓ The need is met" not in text


@pytest.mark.parametrize("name", ["minimal", "nulls"])
def test_what_is_missing_says_so(pages: dict[str, str], name: str) -> None:
    text = Parsed(pages[name]).text()
    for line in (
        "No plan was written.",
        "No configuration has both a quality and a cost",
        "The steps between the default and the plan were not measured.",
        "No load on the plan or on the default was measured.",
        "Other prices, rates and workloads were not tried.",
        "No predicted latency was measured afterwards.",
        "The machine's ceilings were not measured.",
        "The stages of the search were not recorded.",
        "The command was not recorded.",
    ):
        assert line in text
    for word in ("None", "nan", "NaN", "null", "undefined"):
        assert not re.search(rf"\b{word}\b", text)


def test_every_configuration_is_in_the_table_with_its_fate(pages: dict[str, str]) -> None:
    text = Parsed(pages["many"]).text()
    table = text.partition("Every configuration that was tried")[2]
    for one in DOCUMENTS["many"]["candidates"]:
        assert f" {one['id']} " in table
        if one["dropped"]:
            assert one["dropped"]["reason"] in table


def test_predictions_are_marked(pages: dict[str, str]) -> None:
    """Every number of a simulated configuration has its tilde, no measured one has."""
    rows = re.findall(r'<tr class="\w+" data-stage="(\w+)">(.*?)</tr>', pages["many"], re.DOTALL)
    assert len(rows) == 300
    for stage, row in rows:
        cells = re.findall(r'<td class="number([^"]*)"[^>]*>([^<]*)', row)
        served = [shown for _, shown in cells[:4] if shown != "–"]
        assert all(one.startswith("~") == (stage != "measured") for one in served)
        assert served or stage in ("bound", "quality", "calibrate")


def test_every_picture_has_words(pages: dict[str, str]) -> None:
    parsed = Parsed(pages["met"])
    pictures = [one for tag, one in parsed.elements if tag == "svg" and one["class"] == "plot"]
    assert len(pictures) == 14
    assert all(one["role"] == "img" and len(one["aria-label"]) > 30 for one in pictures)
    assert not re.search(r'="-?(nan|inf)', pages["met"])


def test_a_cost_without_its_unit_is_never_shown(pages: dict[str, str]) -> None:
    document = report_data.make_results(num_candidates=6)
    document["need"] |= {"price_per_hour": 2.0, "currency": "EUR", "price_source": "list price"}
    assert "at EUR 2 an hour (list price)" in Parsed(render(document)).text()


def test_without_a_price_the_cost_is_time() -> None:
    document = report_data.make_results(num_candidates=6)
    document["need"]["price_per_hour"] = None
    for one in document["candidates"]:
        for part in ("measured", "predicted"):
            if one[part]:
                one[part]["cost"] = None
    text = Parsed(render(document)).text()
    assert "give your price with --price-per-hour" in text
    assert "Machine seconds per request" in text


def test_void_loads_are_shown_as_void_and_not_used() -> None:
    document = report_data.make_results(num_candidates=6)
    chosen = next(one for one in document["candidates"] if one["id"] == document["chosen"])
    rate = chosen["measured"]["rate"]["value"]
    same = [one for one in chosen["measured"]["points"] if one["rate"] == rate]
    same[0]["valid"] = False
    same[0]["itl"]["p95"] = 9.87
    same[0]["terms"][1]["value"] = 9.87
    text = Parsed(render(document)).text()
    assert "2 loads: median" in text
    assert "void: the load generator was late" in text
    assert "9.87 s" not in text.partition("The choice among all")[0]


def test_the_repeats_are_what_is_shown_first() -> None:
    """What is served within the SLO is a little less than what was offered in the repeats."""
    document = report_data.make_results(num_candidates=6)
    chosen = next(one for one in document["candidates"] if one["id"] == document["chosen"])
    offered = chosen["measured"]["rate"]["value"]
    chosen["measured"]["rate"] = report_data.interval(0.94 * offered)
    text = Parsed(render(document)).text()
    assert f"Latencies at {offered:.2f} requests a second, 3 loads: median" in text


def test_a_closed_loop_has_no_rate() -> None:
    document = report_data.make_results(num_candidates=6)
    for one in document["candidates"]:
        for point in one["measured"]["points"] if one["measured"] else []:
            point["rate"] = 0.0
    text = Parsed(render(document)).text()
    assert "Latencies of all 8 loads: median (lowest–highest)" in text


def test_it_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    write_report(DOCUMENTS["met"], out)
    assert out.read_text(encoding="utf-8").startswith("<!doctype html>")
    before = out.read_bytes()
    damaged: dict[str, Any] = {**DOCUMENTS["met"], "status": "?"}
    with pytest.raises(UserError):
        write_report(damaged, out)
    assert out.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == ["report.html"]
    with pytest.raises(UserError, match="cannot write"):
        write_report(DOCUMENTS["minimal"], tmp_path / "none" / "report.html")
    with pytest.raises(UserError, match="cannot write"):
        write_report(DOCUMENTS["minimal"], tmp_path)


def test_half_a_surrogate_pair_does_not_end_it(tmp_path: Path) -> None:
    document = report_data.minimal_results() | {"headline": "\ud800 lonely"}
    write_report(document, tmp_path / "report.html")
    assert "\ufffd lonely" in (tmp_path / "report.html").read_text(encoding="utf-8")
