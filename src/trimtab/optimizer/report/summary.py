"""The report on one screen of a terminal."""

from __future__ import annotations

import textwrap
from typing import Any

from trimtab.optimizer.report.check import check_results
from trimtab.optimizer.report.choice import TermRow, latency_rows, shown_plan
from trimtab.optimizer.report.first_screen import (
    errors_at_pace,
    figures,
    headline,
    prediction_errors,
)
from trimtab.optimizer.report.formatting import interval, one_line, relaxed, times
from trimtab.optimizer.report.page import serve_command
from trimtab.optimizer.report.results import Results, Rung

NUM_LINES = 22  # at most, with a prompt above and below on 24
_INDENT = 9
_MAX_TERMS, _MAX_RUNGS = 5, 4


def summary_lines(results: dict[str, Any], width: int = 80) -> list[str]:
    """Plain text, at most NUM_LINES lines of `width` columns (at least 40)."""
    found = check_results(results)
    width = max(width, 40)
    lines = [*textwrap.wrap(one_line(headline(found)), width, max_lines=3), ""]
    if not found.is_met:
        lines += _shortfall(found, width)
    for name, text in _facts(found):
        lines += _fact(name, text, width)
        if name == "serves":
            lines += _terms(found, width)
    lines += _ladder(found.ladder, width)
    return [line[:width].rstrip() for line in lines[:NUM_LINES]]


def _facts(results: Results) -> list[tuple[str, str]]:
    plan = shown_plan(results)
    facts = [("run", serve_command(results) if plan else "")]
    if plan is not None:
        facts.append(("plan" if results.chosen else "closest", plan.name))
    for name, figure in zip(("serves", "costs", "gave up", "sure"), figures(results), strict=False):
        if not figure.value:
            facts.append((name, figure.missing))
            continue
        mark = "~" if figure.predicted else ""
        first = f"{mark}{figure.value}{figure.bounds} {figure.unit}"
        if name == "gave up":
            first = f"{first}; " + "; ".join(f"{key} {value}" for key, value in figure.rows[:1])
        notes = figure.notes[:2] if name in ("serves", "costs") else []
        facts.append((name, "; ".join([first.strip("; "), *notes])))
    errors = ", ".join(f"{name} {error}" for name, error in prediction_errors(results)[:4])
    if errors:
        facts.append(("error", f"of the predictions here: {errors}"))
    at_pace = ", ".join(error for _, error in errors_at_pace(results)[:4])
    if errors and at_pace:
        facts.append(("", f"at the speed that the machine had meanwhile: {at_pace}"))
    return [(name, text) for name, text in facts if text]


def _shortfall(results: Results, width: int) -> list[str]:
    if results.infeasible is None:
        return _fact("missed", "the results do not say which term of the need fails", width)
    missed = results.infeasible
    text = f"{missed.binding}: {missed.by}" if missed.by else missed.binding
    lines = _fact("missed", text, width)
    for one in missed.relaxations[:3]:
        if one.would_hold is not None:
            asked = f" instead of {relaxed(one.asked, one.unit)}" if one.asked is not None else ""
            holds = f"{one.term}: {relaxed(one.would_hold, one.unit)}{asked}"
            lines += _fact("holds at", holds, width, 1)
    return lines


def _terms(results: Results, width: int) -> list[str]:
    plan = shown_plan(results)
    rows = latency_rows(results, plan) if plan else []
    lines = [_term(row, width) for row in rows[:_MAX_TERMS]]
    if len(rows) > _MAX_TERMS:
        lines.append(" " * _INDENT + f"and {len(rows) - _MAX_TERMS} more terms, in the report")
    return lines


def _term(row: TermRow, width: int) -> str:
    met = {True: "met", False: "MISSED", None: "not decided"}[row.met]
    if row.met and row.proven is False:
        met = "not proven"  # it held, in too small a sample
    room = max(12, width - _INDENT - 40)
    asked = textwrap.shorten(one_line(row.source), room, placeholder="...")
    return " " * _INDENT + f"{asked:<{room}} {row.found:>26}  {met}"


def _ladder(rungs: list[Rung], width: int) -> list[str]:
    """A bar a step, with what it serves."""
    known = [(rung, rung.rate) for rung in rungs if rung.rate is not None]
    most = max((rate.value for _, rate in known), default=0.0)
    if len(known) < 2 or most <= 0 or width < 72:
        return []
    shown = known if len(known) <= _MAX_RUNGS else [known[0], *known[1 - _MAX_RUNGS :]]
    lines = []
    for rung, rate in shown:
        label = textwrap.shorten(one_line(rung.label), 26, placeholder="...")
        bar = "█" * max(1, round((width - _INDENT - 50) * rate.value / most))
        gain = f" {times(rung.gain.value)}" if rung.gain and rung is not known[0][0] else ""
        lines.append(" " * _INDENT + f"{label:<27}{bar} {interval(rate)}{gain}")
    lines[0] = "gain".ljust(_INDENT) + lines[0][_INDENT:]
    return lines


def _fact(name: str, text: str, width: int, max_lines: int = 2) -> list[str]:
    return textwrap.wrap(
        one_line(text),
        width,
        initial_indent=f"{name:<{_INDENT}}",
        subsequent_indent=" " * _INDENT,
        max_lines=max_lines,
        placeholder=" ...",
    )
