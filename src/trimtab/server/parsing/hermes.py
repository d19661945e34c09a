"""Hermes and Qwen: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>` for each call."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from trimtab.server.parsing.calls import CallObject, CallSink, Remainder, Status
from trimtab.server.parsing.forcing import Term, listed, objects
from trimtab.server.parsing.pieces import WHITESPACE

START = "<tool_call>"
END = "</tool_call>"
SUPERFLUOUS = WHITESPACE + "}]"  # brackets that models close once too often


class HermesSyntax:
    markers: tuple[str, ...] = (START,)
    openers = ""
    tokens: tuple[str, ...] = (START, END)

    def body(self, marker: str, names: Collection[str]) -> HermesBody:
        return HermesBody()

    def rules(self, names: Sequence[str], several: bool, term: Term) -> str:
        one = f'one: {term(START)} "\\n" call "\\n" {term(END)}'
        return "\n".join(
            [f"calls: {listed('one', chr(10), several)}", one, objects(names, "arguments")]
        )


class HermesBody:
    """One object and the end marker, which may be missing."""

    def __init__(self) -> None:
        self._object: CallObject | None = CallObject()
        self._remainder: Remainder | None = None
        self._held = ""  # behind the object

    def scan(self, text: str, sink: CallSink) -> tuple[int, Status]:
        if self._remainder is not None:
            return self._remainder.scan(text, sink)
        if self._object is None:
            return self._behind(text)
        at, status = self._object.scan(text, 0, sink)
        if status is Status.FAILED and self._object.begun:
            if self._object.in_arguments:
                self._remainder = Remainder(END)
                count, status = self._remainder.scan(text[at:], sink)
                return at + count, status
            self._object.finish(sink)
            status = Status.CALL_ENDED
        if status is Status.CALL_ENDED:
            self._object = None
        return at, status

    def finish(self, sink: CallSink) -> bool:
        if self._remainder is not None:
            self._remainder.finish(sink)
        elif self._object is not None:
            if not self._object.begun:
                return False
            self._object.finish(sink)
        return True  # what is held is the beginning of the end marker, cut off

    def _behind(self, text: str) -> tuple[int, Status]:
        held = (self._held + text).lstrip(SUPERFLUOUS)
        if held.startswith(END):
            return len(text) - len(held) + len(END), Status.ENDED
        self._held = held
        return len(text), Status.MORE if END.startswith(held) else Status.RESUMED
