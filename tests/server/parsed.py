"""Helpers for tests of parsed outputs: make a parser, feed it, put its pieces together."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field

from hypothesis import strategies as st

from trimtab.server.parsing.choose import TOOL_SYNTAXES as SYNTAXES
from trimtab.server.parsing.machine import OutputParser
from trimtab.server.parsing.pieces import Kind
from trimtab.server.parsing.reasoning import REASONING_MARKERS, ReasoningStage
from trimtab.server.parsing.tool_stage import CallSyntax, ToolStage

NAMES = frozenset({"get_weather", "now"})
CUTS = st.lists(st.integers(0, 400), max_size=12)
LETTERS = {
    Kind.REASONING: "r",
    Kind.CONTENT: "c",
    Kind.CALL_BEGIN: "B",
    Kind.ARGUMENTS: "A",
    Kind.CALL_END: "E",
}


@dataclass
class Parsed:
    reasoning: str = ""
    content: str = ""
    calls: list[tuple[str, str]] = field(default_factory=list)
    order: str = ""  # a letter for each run of pieces of one kind


def make_parser(
    name: str | None,
    *,
    reasoning: str | None = None,
    opened: bool = False,
    parallel: bool = True,
) -> OutputParser:
    stage = None if reasoning is None else ReasoningStage(REASONING_MARKERS[reasoning], opened)
    syntax: CallSyntax | None = None if name is None else SYNTAXES[name]
    return OutputParser(stage, None if syntax is None else ToolStage(syntax, NAMES, parallel))


def parse(parser: OutputParser, texts: Iterable[str]) -> Parsed:
    """Checks on the way that pieces of content and reasoning stand where they say."""
    result = Parsed()
    fed = ""
    pieces = []
    for text in texts:
        fed += text
        pieces += parser.push(text)
    pieces += parser.finish()
    for piece in pieces:
        if not result.order.endswith(LETTERS[piece.kind]):
            result.order += LETTERS[piece.kind]
        if piece.kind in (Kind.REASONING, Kind.CONTENT):
            assert piece.text
            assert fed[piece.start : piece.start + len(piece.text)] == piece.text
        if piece.kind is Kind.REASONING:
            result.reasoning += piece.text
        elif piece.kind is Kind.CONTENT:
            result.content += piece.text
        elif piece.kind is Kind.CALL_BEGIN:
            assert piece.call == len(result.calls)
            result.calls.append((piece.text, ""))
        elif piece.kind is Kind.ARGUMENTS:
            called, arguments = result.calls[piece.call]
            result.calls[piece.call] = (called, arguments + piece.text)
    return result


def parse_cut(parser: OutputParser, text: str, cuts: list[int]) -> Parsed:
    bounds = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    return parse(parser, [text[a:b] for a, b in itertools.pairwise(bounds)])
