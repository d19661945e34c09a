"""Plain JSON: the whole answer is a call as an object, or a list of such.

For models that a template merely asks to answer so. Only the name of a tool that is on offer makes
an object a call: an answer in JSON stays an answer.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from trimtab.server.parsing.calls import ListedCalls
from trimtab.server.parsing.forcing import Term, listed, objects


class PlainJsonSyntax:
    markers: tuple[str, ...] = ()
    openers = "{["
    tokens: tuple[str, ...] = ()

    def body(self, marker: str, names: Collection[str]) -> ListedCalls:
        return ListedCalls(names, separators=";,")

    def rules(self, names: Sequence[str], several: bool, term: Term) -> str:
        calls = f'"[" {listed("call", ", ", True)} "]"' if several else "call"
        return f"calls: {calls}\n{objects(names, 'arguments')}"
