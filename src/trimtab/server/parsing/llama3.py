"""Llama 3: the answer is `{"name": ..., "parameters": {...}}`, or that behind `<|python_tag|>`.

Several calls follow each other with semicolons. Without the marker only the name of a tool that is
on offer makes an object a call.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from trimtab.server.parsing.calls import ListedCalls
from trimtab.server.parsing.forcing import Term, listed, objects

MARKER = "<|python_tag|>"


class Llama3Syntax:
    markers: tuple[str, ...] = (MARKER,)
    openers = "{"
    tokens: tuple[str, ...] = (MARKER,)

    def body(self, marker: str, names: Collection[str]) -> ListedCalls:
        return ListedCalls(None if marker else names, separators=";,")

    def rules(self, names: Sequence[str], several: bool, term: Term) -> str:
        return f"calls: {listed('call', '; ', several)}\n{objects(names, 'parameters')}"
