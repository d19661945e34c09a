"""Plain JSON: the whole answer is a call as an object, or a list of such.

For models that a template merely asks to answer so. Only the name of a tool that is on offer makes
an object a call: an answer in JSON stays an answer.
"""

from __future__ import annotations

from collections.abc import Collection

from trimtab.server.parsing.calls import ListedCalls


class PlainJsonSyntax:
    markers: tuple[str, ...] = ()
    openers = "{["
    tokens: tuple[str, ...] = ()

    def body(self, marker: str, names: Collection[str]) -> ListedCalls:
        return ListedCalls(names, separators=";,")
