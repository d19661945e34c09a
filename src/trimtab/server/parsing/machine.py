"""OutputParser: the stages that a model's output goes through, as one state machine."""

from __future__ import annotations

from trimtab.server.parsing.pieces import Kind, Piece
from trimtab.server.parsing.reasoning import ReasoningStage
from trimtab.server.parsing.tool_stage import ToolStage


class OutputParser:
    """`push` the text as it comes, then `finish`. The texts of the pieces of one kind (and one
    call), joined, are the same however the text was cut, as is the order of what they belong to.

    Held back is only what may still become a marker, and the white space before one.
    """

    def __init__(
        self, reasoning: ReasoningStage | None = None, tools: ToolStage | None = None
    ) -> None:
        self._reasoning = reasoning
        self._tools = tools
        self._position = 0
        self.reasoning_end = 0  # how far the reasoning went, markers included

    @property
    def over(self) -> bool:
        """Whatever follows is ignored."""
        return self._tools is not None and self._tools.over

    @property
    def num_calls(self) -> int:
        """Tool calls that have ended."""
        return 0 if self._tools is None else self._tools.num_calls

    def push(self, text: str) -> list[Piece]:
        self._position += len(text)
        out: list[Piece] = []
        if text:
            self._push(text, out)
        return out

    def finish(self) -> list[Piece]:
        """No text follows."""
        out: list[Piece] = []
        if self._reasoning is not None:
            rest = self._reasoning.finish(self._position, out)
            if rest == "":
                self.reasoning_end = self._position
            self._reasoning = None
            self._content(rest, out)
        if self._tools is not None:
            self._tools.finish(self._position, out)
        return out

    def _push(self, text: str, out: list[Piece]) -> None:
        if self._reasoning is not None:
            rest = self._reasoning.push(text, self._position, out)
            if rest is None:
                return
            if self._reasoning.found:
                self.reasoning_end = self._position - len(rest)
            self._reasoning = None
            text = rest
        self._content(text, out)

    def _content(self, text: str, out: list[Piece]) -> None:
        if self._tools is not None:
            self._tools.push(text, self._position, out)
        elif text:
            out.append(Piece(Kind.CONTENT, text, self._position - len(text)))
