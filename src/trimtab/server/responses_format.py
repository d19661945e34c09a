"""Choice events to the items and events of `/v1/responses`, streamed or whole."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

import msgspec

from trimtab.server import api_types as api
from trimtab.server import responses_types as types
from trimtab.server.api_errors import ApiError
from trimtab.server.choice import ChoiceEvent, TokenText
from trimtab.server.formats import Collected, Header, token_logprob
from trimtab.server.parsing.pieces import Kind
from trimtab.server.responses_types import FunctionCall, Item, OutputMessage, Reasoning
from trimtab.tokenization import Tokenizer


class ResponsesFormat:
    """The state is the response so far: an item is open until another begins or all ends.

    The whole answer is the last event of its stream, so both say the same.
    """

    named_events = True

    def __init__(
        self, header: Header, tokenizer: Tokenizer, asked: types.ResponsesRequest, logprobs: bool
    ) -> None:
        self._tokenizer = tokenizer
        self._logprobs = logprobs
        self._response = _empty_response(header, asked)
        self._items: list[Item] = []
        self._open: Item | None = None
        self._status = "in_progress"
        self._num_events = 0

    def chunks(self, event: ChoiceEvent) -> list[msgspec.Struct]:
        out: list[msgspec.Struct] = []
        if not self._num_events:
            out.append(types.Created(response=self._response, sequence_number=self._next()))
            out.append(types.InProgress(response=self._response, sequence_number=self._next()))
        if event.pieces:
            self._take_pieces(event, out)
        elif event.text or event.tokens:
            self._take_text(event.text, event.tokens, out)
        if event.finish_reason is not None:
            self._status = "incomplete" if event.finish_reason == "length" else "completed"
            self._close(self._status, out)
        return out

    def text_template(self, index: int) -> None:
        return None  # each event counts on from the one before

    def ending(self, usage: api.Usage) -> list[msgspec.Struct]:
        response = self._finished(usage)
        kind = types.Completed if self._status == "completed" else types.Incomplete
        return [kind(response=response, sequence_number=self._next())]

    def failure(self, error: ApiError) -> msgspec.Struct:
        body = error.document.error
        response = msgspec.structs.replace(
            self._response,
            status="failed",
            output=list(self._items),
            error=types.ResponseError(body.code or body.type, body.message),
        )
        return types.Failed(response=response, sequence_number=self._next())

    def whole(self, choices: Sequence[Collected], usage: api.Usage) -> msgspec.Struct:
        (choice,) = choices
        event = ChoiceEvent(0, choice.text, choice.tokens, choice.finish_reason)
        event.pieces, event.tool_calls = choice.pieces, choice.tool_calls
        self.chunks(event)
        return self._finished(usage)

    def _finished(self, usage: api.Usage) -> types.Response:
        details = types.InputTokensDetails(usage.prompt_tokens_details.cached_tokens)
        incomplete = self._status == "incomplete"
        return msgspec.structs.replace(
            self._response,
            status=self._status,
            output=self._items,
            incomplete_details=types.IncompleteDetails("max_output_tokens") if incomplete else None,
            usage=types.ResponseUsage(
                usage.prompt_tokens,
                details,
                usage.completion_tokens,
                types.OutputTokensDetails(usage.completion_tokens_details.reasoning_tokens),
                usage.total_tokens,
            ),
        )

    # -- items

    def _take_pieces(self, event: ChoiceEvent, out: list[msgspec.Struct]) -> None:
        """The output in its order; logprobs go with the first content among the pieces."""
        tokens = event.tokens
        call_ids = {call.index: call.id for call in event.tool_calls}
        for piece in event.pieces:
            if piece.kind is Kind.CONTENT:
                self._take_text(piece.text, tokens, out)
                tokens = []
            elif piece.kind is Kind.REASONING:
                self._take_reasoning(piece.text, out)
            elif piece.kind is Kind.CALL_BEGIN:
                call_id = call_ids.get(piece.call) or _new_id("call")
                self._begin(FunctionCall(_new_id("fc"), call_id, piece.text), out)
            elif piece.kind is Kind.ARGUMENTS:
                self._take_arguments(piece.text, out)
            else:
                self._close("completed", out)

    def _take_text(self, text: str, tokens: list[TokenText], out: list[msgspec.Struct]) -> None:
        if not isinstance(self._open, OutputMessage):
            part = types.OutputText("")
            self._begin(OutputMessage(_new_id("msg"), []), out)
            assert isinstance(self._open, OutputMessage)
            out.append(types.PartAdded(part=types.OutputText(""), **self._place()))
            self._open.content.append(part)
        part = self._open.content[0]
        logprobs = []
        if self._logprobs:
            logprobs = [token_logprob(self._tokenizer, token) for token in tokens]
            part.logprobs += logprobs
        part.text += text
        out.append(types.TextDelta(delta=text, logprobs=logprobs, **self._place()))

    def _take_reasoning(self, text: str, out: list[msgspec.Struct]) -> None:
        if not isinstance(self._open, Reasoning):
            self._begin(Reasoning(_new_id("rs"), []), out)
            assert isinstance(self._open, Reasoning)
            out.append(types.PartAdded(part=types.ReasoningText(""), **self._place()))
            self._open.content.append(types.ReasoningText(""))
        self._open.content[0].text += text
        out.append(types.ReasoningDelta(delta=text, **self._place()))

    def _take_arguments(self, text: str, out: list[msgspec.Struct]) -> None:
        assert isinstance(self._open, FunctionCall)
        self._open.arguments += text
        place = self._place()
        del place["content_index"]
        out.append(types.ArgumentsDelta(delta=text, **place))

    def _begin(self, item: Item, out: list[msgspec.Struct]) -> None:
        self._close("completed", out)
        index = len(self._items)
        self._items.append(item)
        self._open = item
        shown = msgspec.structs.replace(item)
        if not isinstance(shown, FunctionCall):
            shown.content = []  # parts are added to it
        out.append(types.ItemAdded(output_index=index, item=shown, sequence_number=self._next()))

    def _close(self, status: str, out: list[msgspec.Struct]) -> None:
        item, self._open = self._open, None
        if item is None:
            return
        item.status = status
        self._open = item
        place = self._place()
        self._open = None
        if isinstance(item, FunctionCall):
            del place["content_index"]
            out.append(types.ArgumentsDone(name=item.name, arguments=item.arguments, **place))
        elif isinstance(item, OutputMessage):
            text = item.content[0]
            out.append(types.TextDone(text=text.text, logprobs=text.logprobs, **place))
            out.append(types.PartDone(part=text, **place | {"sequence_number": self._next()}))
        else:
            thought = item.content[0]
            out.append(types.ReasoningDone(text=thought.text, **place))
            out.append(types.PartDone(part=thought, **place | {"sequence_number": self._next()}))
        index = place["output_index"]
        out.append(types.ItemDone(output_index=index, item=item, sequence_number=self._next()))

    def _place(self) -> dict[str, Any]:
        """What every event about the open item says of it."""
        assert self._open is not None
        return {
            "item_id": self._open.id,
            "output_index": len(self._items) - 1,
            "content_index": 0,
            "sequence_number": self._next(),
        }

    def _next(self) -> int:
        self._num_events += 1
        return self._num_events - 1


def _empty_response(header: Header, asked: types.ResponsesRequest) -> types.Response:
    reasoning = asked.reasoning or types.ReasoningOptions()
    text = asked.text or types.TextOptions()
    return types.Response(
        id=header.id,
        created_at=header.created,
        model=header.model,
        status="in_progress",
        output=[],
        instructions=asked.instructions,
        max_output_tokens=asked.max_output_tokens,
        metadata=asked.metadata or {},
        parallel_tool_calls=asked.parallel_tool_calls is not False,
        reasoning={"effort": reasoning.effort, "summary": reasoning.summary},
        temperature=1.0 if asked.temperature is None else asked.temperature,
        text=types.TextOptions(text.format or {"type": "text"}, text.verbosity),
        tool_choice=asked.tool_choice or "auto",
        tools=[{"strict": None, "parameters": None, **tool} for tool in asked.tools or []],
        top_logprobs=asked.top_logprobs or 0,
        top_p=1.0 if asked.top_p is None else asked.top_p,
        user=asked.user,
    )


def _new_id(prefix: str) -> str:
    return f"{prefix}_{secrets.token_hex(12)}"
