"""Choice events to the documents of chat completions, streamed or whole."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from trimtab.server import api_types as api
from trimtab.server.choice import ChoiceEvent, TokenText
from trimtab.server.formats import (
    TEXT_MARK,
    Collected,
    Extras,
    Header,
    OpenAIFormat,
    token_logprob,
)
from trimtab.tokenization import Tokenizer


class ChatFormat(OpenAIFormat):
    def __init__(
        self,
        header: Header,
        tokenizer: Tokenizer,
        logprobs: bool,
        *,
        include_usage: bool,
        extras: Extras | None = None,
        echo: str = "",
    ) -> None:
        """`echo` is the text that every answer starts with."""
        super().__init__(header, tokenizer, extras or Extras())
        self._include_usage = include_usage
        self._echo = echo
        self._logprobs = logprobs
        self._greeted: set[int] = set()  # choices whose role has been sent

    def chunks(self, event: ChoiceEvent) -> list[msgspec.Struct]:
        """Role first, then what was written, then one empty delta with the finish_reason."""
        chunks: list[msgspec.Struct] = []
        if event.index not in self._greeted:
            self._greeted.add(event.index)
            greeting = self._chunk(event.index, api.Delta(role="assistant", content=self._echo))
            if event.index == 0:
                greeting.prompt_token_ids = self._prompt_ids(0)
            chunks.append(greeting)
        if event.text or event.tokens or event.token_ids or event.reasoning or event.tool_calls:
            logprobs = self._chat_logprobs(event.tokens)
            chunk = self._chunk(event.index, _delta(event), logprobs)
            chunk.choices[0].token_ids = self._token_ids(event.token_ids)
            chunks.append(chunk)
        if event.finish_reason is not None:
            chunk = self._chunk(event.index, api.Delta(), None, event.finish_reason)
            chunk.choices[0].stop_reason = event.stop_reason
            chunks.append(chunk)
        return chunks

    def text_template(self, index: int) -> tuple[bytes, bytes] | None:
        if index not in self._greeted or self._logprobs or self._extras.token_ids:
            return None
        return self._template(self._chunk(index, api.Delta(content=TEXT_MARK)))

    def ending(self, usage: api.Usage) -> list[msgspec.Struct]:
        if not self._include_usage:
            return []
        header = self._header
        return [api.ChatChunk(header.id, header.created, header.model, [], usage)]

    def whole(self, choices: Sequence[Collected], usage: api.Usage) -> msgspec.Struct:
        header = self._header
        answers = [
            api.ChatChoice(
                index,
                _message(choice, self._echo),
                self._chat_logprobs(choice.tokens),
                choice.finish_reason,
                choice.stop_reason,
                self._token_ids(choice.token_ids),
            )
            for index, choice in enumerate(choices)
        ]
        return api.ChatCompletion(
            header.id,
            header.created,
            header.model,
            answers,
            usage,
            self._prompt_ids(0),
            self._prompt_logprobs(0, choices[0]),
        )

    def _chunk(
        self,
        index: int,
        delta: api.Delta,
        logprobs: api.ChatLogprobs | None = None,
        finish_reason: str | None = None,
    ) -> api.ChatChunk:
        header = self._header
        choice = api.ChatChunkChoice(index, delta, logprobs, finish_reason)
        return api.ChatChunk(header.id, header.created, header.model, [choice])

    def _chat_logprobs(self, tokens: Sequence[TokenText]) -> api.ChatLogprobs | None:
        if not self._logprobs:
            return None
        return api.ChatLogprobs(
            [token_logprob(self._tokenizer, token, self._token_text) for token in tokens]
        )


def _delta(event: ChoiceEvent) -> api.Delta:
    if not event.pieces:
        return api.Delta(content=event.text)
    reasoning = event.reasoning or None
    calls = [
        api.ToolCallChunk(
            call.index,
            api.FunctionChunk(call.arguments, call.name),
            call.id,
            None if call.id is None else "function",
        )
        for call in event.tool_calls
    ]
    return api.Delta(None, event.text or None, reasoning, reasoning, calls or None)


def _message(choice: Collected, echo: str) -> api.AssistantMessage:
    """Where there are calls or reasoning, content may be null."""
    message = api.AssistantMessage(echo + choice.text)
    if choice.reasoning:
        message.reasoning_content = message.reasoning = choice.reasoning
    if choice.tool_calls:
        message.tool_calls = [
            api.ToolCall(call.id or "", api.Function(call.name or "", call.arguments))
            for call in choice.tool_calls
        ]
    if choice.pieces and not message.content:
        message.content = None
    return message
