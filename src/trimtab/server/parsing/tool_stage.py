"""Content with tool calls in it, in one of the syntaxes that models were trained on."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

from trimtab.server.parsing.calls import CallBody, Status
from trimtab.server.parsing.forcing import Term
from trimtab.server.parsing.pieces import WHITESPACE, Kind, Piece, find_first, num_settled


class CallSyntax(Protocol):
    """How a family of models writes tool calls."""

    # Each begins a call, wherever it stands; the white space before it belongs to it.
    markers: tuple[str, ...]
    # Characters that begin a call when they are the first of the content; they belong to the call.
    openers: str
    # Texts that the model may write as special tokens: they must not be dropped.
    tokens: tuple[str, ...]

    def body(self, marker: str, names: Collection[str]) -> CallBody:
        """For one occurrence of `marker`, "" for an opener. `names` are the tools on offer."""
        ...

    def rules(self, names: Sequence[str], several: bool, term: Term) -> str:
        """Lark for `calls`: a call of one of the tools, or several; see `forcing`."""
        ...


class ToolStage:
    """A call that is malformed before its arguments is content, marker and all. Arguments that are
    malformed, or cut off by the end of the output, are given as they stand. White space around
    calls is dropped."""

    def __init__(self, syntax: CallSyntax, names: Collection[str], parallel: bool = True) -> None:
        """Without `parallel` the output is over with the first call."""
        self._syntax = syntax
        self._names = names
        self._parallel = parallel
        self._body: CallBody | None = None
        self._held = ""  # of content
        self._taken: list[str] = []  # since a marker or the last call: content, unless a call comes
        self._at_start = True
        self._behind_call = False
        self._open = False
        self._out: list[Piece] = []
        self.num_calls = 0
        self.over = False

    def push(self, text: str, end: int, out: list[Piece]) -> None:
        """Take `text`, which ends at position `end` of the output."""
        self._out = out
        while text and not self.over:
            text = self._call(text, end) if self._body is not None else self._content(text, end)

    def finish(self, end: int, out: list[Piece]) -> None:
        self._out = out
        if self.over:
            return
        if self._body is not None and not self._body.finish(self):
            self._content_out("".join(self._taken), end)
        elif self._body is None and not self._behind_call:
            self._content_out(self._held, end)
        self.over = True

    # -- as the sink of a body

    def begin(self, name: str) -> None:
        self._open = True
        self._out.append(Piece(Kind.CALL_BEGIN, name, call=self.num_calls))

    def arguments(self, text: str) -> None:
        self._out.append(Piece(Kind.ARGUMENTS, text, call=self.num_calls))

    def end(self) -> None:
        self._open = False
        self._out.append(Piece(Kind.CALL_END, "", call=self.num_calls))
        self.num_calls += 1
        self.over = not self._parallel

    # -- the two states

    def _content(self, text: str, end: int) -> str:
        """What is behind the marker of a call, if there is one."""
        held = self._held + text
        self._held = ""
        if self._behind_call:
            held = held.lstrip(WHITESPACE)
            if not held:
                return ""
            self._behind_call = False
        if self._at_start and self._syntax.openers:
            stripped = held.lstrip(WHITESPACE)
            if not stripped:
                self._held = held
                return ""
            self._at_start = False
            if stripped[0] in self._syntax.openers:
                return self._begin_body("", held[: len(held) - len(stripped)], stripped)
        at, marker = find_first(held, self._syntax.markers)
        if at >= 0:
            content = held[:at].rstrip(WHITESPACE)
            self._content_out(content, end - len(held) + len(content))
            taken = held[len(content) : at + len(marker)]
            return self._begin_body(marker, taken, held[at + len(marker) :])
        free = num_settled(held, self._syntax.markers)
        self._content_out(held[:free], end - len(held) + free)
        self._held = held[free:]
        return ""

    def _begin_body(self, marker: str, taken: str, rest: str) -> str:
        self._at_start = False
        self._body = self._syntax.body(marker, self._names)
        self._taken = [taken]
        return rest

    def _call(self, text: str, end: int) -> str:
        assert self._body is not None
        count, status = self._body.scan(text, self)
        self._taken.append(text[:count])
        text = text[count:]
        if self._open or status in (Status.CALL_ENDED, Status.ENDED):
            self._taken = []
        if status in (Status.MORE, Status.CALL_ENDED):
            return text
        self._body = None
        taken = "".join(self._taken)
        self._taken = []
        if status is Status.FAILED:
            self._content_out(taken, end - len(text))
            return text
        self._behind_call = True
        return taken + text

    def _content_out(self, text: str, end: int) -> None:
        if text:
            self._out.append(Piece(Kind.CONTENT, text, end - len(text)))
