"""Mistral: `[TOOL_CALLS][{"name": ..., "arguments": {...}}, ...]`, and since the tokenizer of 2025
`[TOOL_CALLS]name[ARGS]{...}`, once for each call, in between maybe `[CALL_ID]id`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from trimtab.server.parsing.calls import CallBody, CallSink, ListedCalls, Remainder, Status
from trimtab.server.parsing.forcing import Term, listed, literal, objects
from trimtab.server.parsing.json_text import Progress, ValueScanner
from trimtab.server.parsing.pieces import WHITESPACE

MARKER = "[TOOL_CALLS]"
ARGUMENTS = "[ARGS]"
MAX_HEAD = 300
_HEAD = re.compile(r"\s*([\w.-]+)\s*(?:\[CALL_ID\]\s*[\w-]+\s*)?(?:\[ARGS\]\s*)?")
_HEAD_CHARACTERS = re.compile(r"[\w.\-\[\] \t\r\n]*")


class MistralSyntax:
    markers: tuple[str, ...] = (MARKER,)
    openers = ""
    tokens: tuple[str, ...] = (MARKER, ARGUMENTS, "[CALL_ID]")

    def body(self, marker: str, names: Collection[str]) -> MistralBody:
        return MistralBody()

    def rules(self, names: Sequence[str], several: bool, term: Term) -> str:
        """The older form, unless [ARGS] is a token."""
        if term(ARGUMENTS) == literal(ARGUMENTS):
            calls = f'{term(MARKER)} "[" {listed("call", ", ", several)} "]"'
            return f"calls: {calls}\n{objects(names, 'arguments')}"
        choices = [
            f"{term(MARKER)} {literal(name)} {term(ARGUMENTS)} arguments_{i}"
            for i, name in enumerate(names)
        ]
        return f"calls: call{'+' if several else ''}\ncall: " + "\n    | ".join(choices)


class MistralBody:
    """Of either form: the first character tells."""

    def __init__(self) -> None:
        self._body: CallBody | None = None

    def scan(self, text: str, sink: CallSink) -> tuple[int, Status]:
        num_space = 0
        if self._body is None:
            stripped = text.lstrip(WHITESPACE)
            if not stripped:
                return len(text), Status.MORE
            num_space = len(text) - len(stripped)
            self._body = ListedCalls(None, "") if stripped[0] in "[{" else _NamedCall()
        count, status = self._body.scan(text[num_space:], sink)
        return num_space + count, status

    def finish(self, sink: CallSink) -> bool:
        return self._body is not None and self._body.finish(sink)


class _NamedCall:
    """name[ARGS]{...}"""

    def __init__(self) -> None:
        self._head = ""
        self._begun = False
        self._value = ValueScanner()
        self._remainder: Remainder | None = None

    def scan(self, text: str, sink: CallSink) -> tuple[int, Status]:
        if self._remainder is not None:
            return self._remainder.scan(text, sink)
        at = 0
        if not self._begun:
            at, status = self._scan_head(text, sink)
            if not self._begun:
                return at, status
        end, progress = self._value.scan(text, at)
        if end > at:
            sink.arguments(text[at:end])
        if progress is Progress.DONE:
            sink.end()
            return end, Status.ENDED
        if progress is Progress.BROKEN:
            self._remainder = Remainder()
            self._remainder.scan(text[end:], sink)
        return len(text), Status.MORE

    def finish(self, sink: CallSink) -> bool:
        if self._begun:
            sink.end()
        return self._begun

    def _scan_head(self, text: str, sink: CallSink) -> tuple[int, Status]:
        found = _HEAD_CHARACTERS.match(text)
        at = found.end() if found else 0
        room = MAX_HEAD - len(self._head)
        self._head += text[: min(at, room)]
        if at > room:
            return room, Status.FAILED
        if at == len(text):
            return at, Status.MORE
        head = _HEAD.fullmatch(self._head) if text[at] == "{" else None
        if head is None:
            return at, Status.FAILED
        self._begun = True
        sink.begin(head[1])
        return at, Status.MORE
