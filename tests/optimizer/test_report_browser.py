"""The report in a headless Chromium, from a file, with a real mouse and real keys."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import report_data

from trimtab.optimizer.report import write_report

sys.path.append(str(Path(__file__).parents[1] / "server"))
import chromium

pytestmark = pytest.mark.skipif(chromium.find() is None, reason="there is no Chromium")

SHOWN = "[...document.querySelectorAll('#candidates tbody tr')].filter((row) => !row.hidden)"


@pytest.fixture(scope="module")
def browser() -> Iterator[chromium.Page]:
    with chromium.browse() as page:
        yield page


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("reports")
    for name, document in (
        ("met", report_data.make_results()),
        ("not-met", report_data.make_results(met=False)),
        ("nulls", report_data.nulled_results()),
        ("hostile", report_data.hostile_results()),
    ):
        write_report(document, directory / f"{name}.html")
    return directory


@pytest.fixture
def page(browser: chromium.Page, reports: Path) -> Iterator[chromium.Page]:
    """A report, open; behind the test nothing went wrong, and nothing was asked of anybody."""
    browser.problems, browser.requested = [], []
    browser.emulate()
    browser.open((reports / "met.html").as_uri())
    yield browser
    browser.evaluate("1")
    assert browser.problems == []
    assert all(url.startswith(("file://", "blob:", "data:")) for url in browser.requested)


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [390, 768, 1280])
@pytest.mark.parametrize("name", ["met", "not-met", "nulls", "hostile"])
def test_it_fits_and_nothing_runs(
    page: chromium.Page, reports: Path, name: str, width: int, dark: bool
) -> None:
    page.emulate(dark=dark, width=width)
    page.open((reports / f"{name}.html").as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert "broken" not in page.evaluate("document.title").replace("='broken'", "")
    assert page.evaluate("document.querySelectorAll('main script, main img').length") == 0


def test_the_first_screen_has_what_matters(page: chromium.Page) -> None:
    bottom = "document.querySelector('.figures').getBoundingClientRect().bottom"
    assert page.evaluate(bottom) <= chromium.HEIGHT


def test_pointing_at_a_mark_tells_its_configuration(page: chromium.Page) -> None:
    page.hover("svg.plot .mark.chosen")
    chosen = report_data.make_results()["chosen"]
    told = page.text("#tip")
    assert f"[{chosen}]" in told
    assert "requests/s within the SLO, measured" in told
    assert "weights = int8" in told
    page.press("Escape")
    assert page.evaluate("document.querySelector('#tip').hidden")
    page.evaluate("document.querySelector('svg.plot .mark.default[tabindex]').focus()")
    assert "[c0]" in page.text("#tip")


def test_the_latencies_take_turns(page: chromium.Page) -> None:
    visible = (
        "[...document.querySelectorAll('.panels > div')].map((one) => one.offsetParent !== null)"
    )
    assert page.evaluate(visible) == [True, False, False]
    page.click("label[for=latency-2]")
    assert page.evaluate(visible) == [False, True, False]


def test_the_table_sorts_and_filters(page: chromium.Page) -> None:
    rates = f"{SHOWN}.map((row) => Number(row.cells[2].dataset.key))"
    assert page.evaluate(f"{SHOWN}.length") == 24
    button = "#candidates thead th:nth-child(3) button"
    page.click(button)
    up = page.evaluate(rates)
    assert up == sorted(up)
    page.click(button)
    assert page.evaluate(rates) == up[::-1]
    assert page.evaluate(f"document.querySelector('{button}').parentNode.ariaSort") == "descending"
    page.click("#find")
    page.type("int4 lookup")
    left = page.evaluate(f"{SHOWN}.map((row) => row.textContent)")
    assert 0 < len(left) < 24
    assert all("int4" in one and "lookup" in one for one in left)
    assert page.text("#count") == f"{len(left)} of 24"


def test_the_data_can_be_taken_away(page: chromium.Page) -> None:
    page.evaluate(
        "(() => { window.taken = null; HTMLAnchorElement.prototype.click = function () {"
        " window.taken = { name: this.download, url: this.href }; }; })()"
    )
    page.click("#download")
    assert page.evaluate("window.taken.name") == "results.json"
    assert page.evaluate("window.taken.url").startswith("blob:")
    data = page.evaluate("document.getElementById('data').textContent")
    assert json.loads(data) == report_data.make_results()


def test_the_command_can_be_copied(page: chromium.Page) -> None:
    page.click("[data-copy=command]")
    page.wait("['Copied', 'Selected'].includes(document.querySelector('[data-copy]').textContent)")


def test_it_prints_all_of_it(page: chromium.Page) -> None:
    page.call("Emulation.setEmulatedMedia", media="print")
    try:
        assert (
            page.evaluate("getComputedStyle(document.querySelector('.tall')).maxHeight") == "none"
        )
        assert page.evaluate(
            "[...document.querySelectorAll('.panels > div')].every((one) => one.offsetParent)"
        )
        heads = page.evaluate("document.querySelector('#candidates thead').innerText")
        assert "What became of it" in heads
        printed = page.call("Page.printToPDF")["data"]
        assert printed.startswith("JVBERi0")  # a PDF
    finally:
        page.call("Emulation.setEmulatedMedia", media="")
