"""Choice events to the blocks and events of `/v1/messages`, streamed or whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from trimtab.server import api_types as api
from trimtab.server import messages_types as types
from trimtab.server.api_errors import AnthropicError, ApiError, anthropic_error
from trimtab.server.choice import ChoiceEvent, ToolCallDelta
from trimtab.server.formats import Collected, Header
from trimtab.server.parsing.pieces import Kind, Piece

MALFORMED = "malformed_arguments"  # where input must be an object and the model wrote none


class MessagesFormat:
    """One block is open at a time; the blocks of a whole answer are those of its stream."""

    named_events = True

    def __init__(
        self, header: Header, usage: Callable[[], api.Usage], shows_thinking: bool
    ) -> None:
        """`usage` is asked when the first event is there. Reasoning is left out if not shown."""
        self._header = header
        self._usage = usage
        self._shows_thinking = shows_thinking
        self._started = False
        self._blocks: list[types.AnyBlock] = []
        self._kind: Kind | None = None  # of the open block
        self._arguments = ""
        self._stop = types.StopDelta(None)

    def chunks(self, event: ChoiceEvent) -> list[msgspec.Struct]:
        out: list[msgspec.Struct] = []
        if not self._started:
            self._started = True
            out += [types.MessageStart(self._message(self._usage())), types.PingEvent()]
        pieces = event.pieces or ([Piece(Kind.CONTENT, event.text)] if event.text else [])
        self._take(pieces, event.tool_calls, out)
        if event.finish_reason is not None:
            self._close(out)
            self._stop = self._stopped(event.finish_reason, event.stop_reason)
        return out

    def text_template(self, index: int) -> None:
        return None  # each event counts on from the one before

    def ending(self, usage: api.Usage) -> list[msgspec.Struct]:
        return [types.MessageDelta(self._stop, _usage(usage)), types.MessageStop()]

    def failure(self, error: ApiError) -> AnthropicError:
        return anthropic_error(error)

    def whole(self, choices: Sequence[Collected], usage: api.Usage) -> msgspec.Struct:
        (choice,) = choices
        event = ChoiceEvent(0, choice.text, finish_reason=choice.finish_reason)
        event.stop_reason = choice.stop_reason
        event.pieces, event.tool_calls = choice.pieces, choice.tool_calls
        self.chunks(event)
        message = self._message(usage)
        message.stop_reason = self._stop.stop_reason
        message.stop_sequence = self._stop.stop_sequence
        return message

    def _message(self, usage: api.Usage) -> types.MessagesAnswer:
        header = self._header
        return types.MessagesAnswer(header.id, header.model, list(self._blocks), _usage(usage))

    def _take(
        self, pieces: Sequence[Piece], calls: Sequence[ToolCallDelta], out: list[msgspec.Struct]
    ) -> None:
        ids = {call.index: call.id for call in calls if call.id is not None}
        for piece in pieces:
            if piece.kind is Kind.REASONING and not self._shows_thinking:
                continue
            if piece.kind is Kind.CALL_BEGIN:
                self._close(out)
                block = types.ToolUseBlock(ids.get(piece.call, ""), piece.text, {})
                self._open(Kind.ARGUMENTS, block, out)
            elif piece.kind is Kind.CALL_END:
                self._close(out)
            else:
                self._append(piece, out)

    def _append(self, piece: Piece, out: list[msgspec.Struct]) -> None:
        delta: types.TextBlockDelta | types.ThinkingBlockDelta | types.InputDelta
        if piece.kind is Kind.ARGUMENTS:
            self._arguments += piece.text
            delta = types.InputDelta(piece.text)
        elif piece.kind is Kind.REASONING:
            block = self._continued(piece.kind, types.ThinkingBlock, out)
            block.thinking += piece.text
            delta = types.ThinkingBlockDelta(piece.text)
        else:
            text_block = self._continued(piece.kind, types.TextBlock, out)
            text_block.text += piece.text
            delta = types.TextBlockDelta(piece.text)
        out.append(types.BlockDelta(len(self._blocks) - 1, delta))

    def _continued(self, kind: Kind, make: Callable[[str], Any], out: list[msgspec.Struct]) -> Any:
        """The open block of this kind; a new one if another is open."""
        if self._kind is not kind:
            self._close(out)
            self._open(kind, make(""), out)
        return self._blocks[-1]

    def _open(self, kind: Kind, block: types.AnyBlock, out: list[msgspec.Struct]) -> None:
        self._kind = kind
        self._arguments = ""
        self._blocks.append(block)
        # A copy: the block itself grows, and an event may be written later.
        out.append(types.BlockStart(len(self._blocks) - 1, msgspec.structs.replace(block)))

    def _close(self, out: list[msgspec.Struct]) -> None:
        if self._kind is None:
            return
        block = self._blocks[-1]
        if isinstance(block, types.ToolUseBlock):
            block.input = _input(self._arguments)
        self._kind = None
        out.append(types.BlockStop(len(self._blocks) - 1))

    def _stopped(self, finish_reason: str, stop_reason: str | int | None) -> types.StopDelta:
        if finish_reason == "length":
            return types.StopDelta("max_tokens")
        if isinstance(stop_reason, str):
            return types.StopDelta("stop_sequence", stop_reason)
        if any(isinstance(block, types.ToolUseBlock) for block in self._blocks):
            return types.StopDelta("tool_use")
        return types.StopDelta("end_turn")


def _usage(usage: api.Usage) -> types.MessagesUsage:
    cached = usage.prompt_tokens_details.cached_tokens
    return types.MessagesUsage(usage.prompt_tokens - cached, usage.completion_tokens, cached)


def _input(arguments: str) -> dict[str, Any]:
    """An object, as the model wrote it; what is none is kept as text."""
    try:
        value = msgspec.json.decode(arguments or "{}")
    except (msgspec.MsgspecError, RecursionError):
        value = None
    return value if isinstance(value, dict) else {MALFORMED: arguments}
