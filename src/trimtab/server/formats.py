"""Choice events to the documents of the two generation routes, streamed or whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from trimtab.server import api_types as api
from trimtab.server.api_errors import ApiError
from trimtab.server.choice import ChoiceEvent, TokenText
from trimtab.tokenization import Tokenizer

LOWEST_LOGPROB = -9999.0  # JSON has no infinity


@dataclass(frozen=True)
class Header:
    """What every document of one answer repeats."""

    id: str
    created: int
    model: str


@dataclass
class Collected:
    """One choice, put together."""

    text: str = ""
    tokens: list[TokenText] = field(default_factory=list)
    finish_reason: str | None = None
    stop_token: TokenText | None = None

    def add(self, event: ChoiceEvent) -> None:
        self.text += event.text
        self.tokens.extend(event.tokens)
        self.finish_reason = event.finish_reason or self.finish_reason
        self.stop_token = event.stop_token or self.stop_token


class AnswerFormat(Protocol):
    """A format has a state: one for each answer."""

    @property
    def named_events(self) -> bool:
        """Streamed as `event: TYPE` and `data:` up to an event that says so, each document tagged
        with its `type`, instead of `data:` alone up to `[DONE]`."""
        ...

    def chunks(self, event: ChoiceEvent) -> list[msgspec.Struct]:
        """What a stream says of the event."""
        ...

    def ending(self, usage: api.Usage) -> list[msgspec.Struct]:
        """What a stream says behind the last event."""
        ...

    def failure(self, error: ApiError) -> msgspec.Struct:
        """What ends a stream that has begun and cannot go on."""
        ...

    def whole(self, choices: Sequence[Collected], usage: api.Usage) -> msgspec.Struct: ...


class OpenAIFormat:
    """What both of OpenAI's older formats share."""

    named_events = False

    def failure(self, error: ApiError) -> msgspec.Struct:
        return error.document


class ChatFormat(OpenAIFormat):
    def __init__(
        self, header: Header, tokenizer: Tokenizer, logprobs: bool, *, include_usage: bool
    ) -> None:
        self._header = header
        self._tokenizer = tokenizer
        self._include_usage = include_usage
        self._logprobs = logprobs
        self._greeted: set[int] = set()  # choices whose role has been sent

    def chunks(self, event: ChoiceEvent) -> list[msgspec.Struct]:
        """Role first, then content, then one empty delta with the finish_reason."""
        chunks: list[msgspec.Struct] = []
        if event.index not in self._greeted:
            self._greeted.add(event.index)
            chunks.append(self._chunk(event.index, api.Delta(role="assistant", content="")))
        if event.text or event.tokens:
            logprobs = self._chat_logprobs(event.tokens)
            chunks.append(self._chunk(event.index, api.Delta(content=event.text), logprobs))
        if event.finish_reason is not None:
            chunks.append(self._chunk(event.index, api.Delta(), None, event.finish_reason))
        return chunks

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
                api.AssistantMessage(choice.text),
                self._chat_logprobs(choice.tokens),
                choice.finish_reason,
            )
            for index, choice in enumerate(choices)
        ]
        return api.ChatCompletion(header.id, header.created, header.model, answers, usage)

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
        return api.ChatLogprobs([self._token_logprob(token) for token in tokens])

    def _token_logprob(self, token: TokenText) -> api.TokenLogprob:
        raw = self._tokenizer.token_bytes(token.token_id)
        top = []
        assert token.logprobs is not None  # chats are not echoed
        for token_id, logprob in token.logprobs.top:
            other = self._tokenizer.token_bytes(token_id)
            top.append(api.TopLogprob(readable(other), _finite(logprob), list(other)))
        return api.TokenLogprob(readable(raw), _finite(token.logprobs.logprob), list(raw), top)


class CompletionFormat(OpenAIFormat):
    def __init__(
        self,
        header: Header,
        tokenizer: Tokenizer,
        num_logprobs: int | None,
        echoes: Sequence[str],
        *,
        include_usage: bool,
    ) -> None:
        """`echoes` holds, for each choice, the prompt text that its own text starts with."""
        self._header = header
        self._tokenizer = tokenizer
        self._num_logprobs = num_logprobs
        self._echoes = echoes
        self._include_usage = include_usage
        self._echoed: set[int] = set()

    def chunks(self, event: ChoiceEvent) -> list[msgspec.Struct]:
        text = event.text
        if event.index not in self._echoed:
            self._echoed.add(event.index)
            text = self._echoes[event.index] + text
        tokens = _with_stop(event.tokens, event.stop_token)
        choice = self._choice(event.index, text, tokens, event.finish_reason)
        header = self._header
        return [api.Completion(header.id, header.created, header.model, [choice])]

    def ending(self, usage: api.Usage) -> list[msgspec.Struct]:
        if not self._include_usage:
            return []
        header = self._header
        return [api.Completion(header.id, header.created, header.model, [], usage)]

    def whole(self, choices: Sequence[Collected], usage: api.Usage) -> msgspec.Struct:
        header = self._header
        answers = [
            self._choice(
                index,
                self._echoes[index] + one.text,
                _with_stop(one.tokens, one.stop_token),
                one.finish_reason,
            )
            for index, one in enumerate(choices)
        ]
        return api.Completion(header.id, header.created, header.model, answers, usage)

    def _choice(
        self, index: int, text: str, tokens: Sequence[TokenText], finish_reason: str | None
    ) -> api.CompletionChoice:
        logprobs = None
        if self._num_logprobs is not None:
            logprobs = self._completion_logprobs(tokens, len(self._echoes[index]))
        return api.CompletionChoice(index, text, logprobs, finish_reason)

    def _completion_logprobs(
        self, tokens: Sequence[TokenText], first_offset: int
    ) -> api.CompletionLogprobs:
        return api.CompletionLogprobs(
            tokens=[self._text(token.token_id) for token in tokens],
            token_logprobs=[
                None if token.logprobs is None else _finite(token.logprobs.logprob)
                for token in tokens
            ],
            top_logprobs=[self._top(token) for token in tokens] if self._num_logprobs else None,
            text_offset=[first_offset + token.text_offset for token in tokens],
        )

    def _top(self, token: TokenText) -> dict[str, float] | None:
        """The most likely tokens by text, and the token itself. Of tokens that have the same text
        the most likely counts."""
        if token.logprobs is None:
            return None
        top: dict[str, float] = {}
        for token_id, logprob in [*token.logprobs.top, (token.token_id, token.logprobs.logprob)]:
            top.setdefault(self._text(token_id), _finite(logprob))
        return top

    def _text(self, token_id: int) -> str:
        return readable(self._tokenizer.token_bytes(token_id))


def _with_stop(tokens: Sequence[TokenText], stop_token: TokenText | None) -> Sequence[TokenText]:
    """As OpenAI's API has it: an end token is no text, but it is among the tokens."""
    return tokens if stop_token is None else [*tokens, stop_token]


def readable(raw: bytes) -> str:
    """A token's bytes as text; those that are no text by themselves as `bytes:\\xe2\\x80`."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def _finite(logprob: float) -> float:
    return logprob if logprob > LOWEST_LOGPROB else LOWEST_LOGPROB
