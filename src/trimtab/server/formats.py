"""Choice events to the documents of the two generation routes, streamed or whole."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import msgspec
from msgspec import UNSET, UnsetType

from trimtab.engine.client import TokenLogprobs
from trimtab.engine.sampling_params import MAX_TOP_LOGPROBS
from trimtab.server import api_types as api
from trimtab.server.api_errors import ApiError
from trimtab.server.choice import ChoiceEvent, TokenText, ToolCallDelta
from trimtab.server.generation import Prompt
from trimtab.server.parsing.pieces import Piece
from trimtab.tokenization import Tokenizer

LOWEST_LOGPROB = -9999.0  # JSON has no infinity


@dataclass(frozen=True)
class Header:
    """What every document of one answer repeats."""

    id: str
    created: int
    model: str


@dataclass(frozen=True)
class Extras:
    """What an answer tells beyond OpenAI's own fields, and of what."""

    prompts: Sequence[Prompt] = ()
    num_choices: int = 1  # of each prompt that are shown: the best of those generated
    token_ids: bool = False
    tokens_as_ids: bool = False  # logprobs name tokens by `token_id:N`
    prompt_logprobs: bool = False


@dataclass
class Collected:
    """One choice, put together."""

    text: str = ""
    tokens: list[TokenText] = field(default_factory=list)
    finish_reason: str | None = None
    stop_token: TokenText | None = None
    stop_reason: str | int | None = None
    token_ids: list[int] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs] | None = None
    reasoning: str = ""
    tool_calls: list[ToolCallDelta] = field(default_factory=list)  # whole ones, by index
    pieces: list[Piece] = field(default_factory=list)

    @property
    def num_logprobs(self) -> int:
        """About so many entries have to be formatted."""
        return MAX_TOP_LOGPROBS * (len(self.tokens) + len(self.prompt_logprobs or ()))

    def add(self, event: ChoiceEvent) -> None:
        self.text += event.text
        self.tokens.extend(event.tokens)
        self.finish_reason = event.finish_reason or self.finish_reason
        self.stop_token = event.stop_token or self.stop_token
        self.stop_reason = event.stop_reason
        self.token_ids += event.token_ids
        self.prompt_logprobs = event.prompt_logprobs or self.prompt_logprobs
        if event.pieces:
            self.reasoning += event.reasoning
            self.pieces += event.pieces
            for delta in event.tool_calls:
                self._add_call(delta)

    def _add_call(self, delta: ToolCallDelta) -> None:
        if delta.index == len(self.tool_calls):
            self.tool_calls.append(replace(delta))
        else:
            self.tool_calls[delta.index].arguments += delta.arguments


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

    def __init__(self, header: Header, tokenizer: Tokenizer, extras: Extras) -> None:
        self._header = header
        self._tokenizer = tokenizer
        self._extras = extras

    def _token_text(self, token_id: int) -> str:
        if self._extras.tokens_as_ids:
            return f"token_id:{token_id}"
        return readable(self._tokenizer.token_bytes(token_id))

    def _prompt_ids(self, index: int) -> list[int] | UnsetType:
        return self._extras.prompts[index].token_ids if self._extras.token_ids else UNSET

    def _token_ids(self, token_ids: list[int]) -> list[int] | UnsetType:
        return token_ids if self._extras.token_ids else UNSET

    def _prompt_logprobs(self, index: int, choice: Collected) -> api.PromptLogprobs | UnsetType:
        """Of prompt `index`; `choice` is the first of it."""
        if not self._extras.prompt_logprobs:
            return UNSET
        prompt = self._extras.prompts[index]
        found: api.PromptLogprobs = [None]
        for token_id, own in zip(prompt.token_ids[1:], choice.prompt_logprobs or [], strict=True):
            top = own.top[: prompt.num_logprobs]
            at: dict[int, api.PromptLogprob] = {}
            for rank, (other, logprob) in enumerate(top, 1):
                at[other] = self._prompt_logprob(other, logprob, rank)
            if token_id not in at:
                at[token_id] = self._prompt_logprob(token_id, own.logprob, None)
            found.append(at)
        return found

    def _prompt_logprob(self, token_id: int, logprob: float, rank: int | None) -> api.PromptLogprob:
        text = self._tokenizer.token_bytes(token_id).decode(errors="replace")
        return api.PromptLogprob(_finite(logprob), rank, text)

    def failure(self, error: ApiError) -> msgspec.Struct:
        return error.document


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


class CompletionFormat(OpenAIFormat):
    def __init__(
        self,
        header: Header,
        tokenizer: Tokenizer,
        num_logprobs: int | None,
        echoes: Sequence[str],
        *,
        include_usage: bool,
        extras: Extras | None = None,
    ) -> None:
        """`echoes` holds, for each prompt, the text that its choices start with."""
        super().__init__(header, tokenizer, extras or Extras(num_choices=1))
        self._num_logprobs = num_logprobs
        self._echoes = echoes
        self._include_usage = include_usage
        self._echoed: set[int] = set()

    def chunks(self, event: ChoiceEvent) -> list[msgspec.Struct]:
        text, prompt = event.text, event.index // self._extras.num_choices
        is_first = event.index not in self._echoed
        if is_first:
            self._echoed.add(event.index)
            text = self._echoes[prompt] + text
        tokens = _with_stop(event.tokens, event.stop_token)
        choice = self._choice(event.index, prompt, text, tokens, event.finish_reason)
        if event.finish_reason is not None:
            choice.stop_reason = event.stop_reason
        if self._extras.token_ids:
            choice.token_ids = event.token_ids
            if is_first:
                choice.prompt_token_ids = self._prompt_ids(prompt)
        header = self._header
        return [api.Completion(header.id, header.created, header.model, [choice])]

    def ending(self, usage: api.Usage) -> list[msgspec.Struct]:
        if not self._include_usage:
            return []
        header = self._header
        return [api.Completion(header.id, header.created, header.model, [], usage)]

    def whole(self, choices: Sequence[Collected], usage: api.Usage) -> msgspec.Struct:
        answers: list[api.CompletionChoice] = []
        each = len(choices) // len(self._echoes)
        for prompt, echo in enumerate(self._echoes):
            group = choices[prompt * each : (prompt + 1) * each]
            prompt_ids = self._prompt_ids(prompt)
            prompt_logprobs = self._prompt_logprobs(prompt, group[0])
            for one in self._best(prompt, group):
                tokens = _with_stop(one.tokens, one.stop_token)
                text = echo + one.text
                answer = self._choice(len(answers), prompt, text, tokens, one.finish_reason)
                answer.stop_reason = one.stop_reason
                answer.token_ids = self._token_ids(one.token_ids)
                answer.prompt_token_ids = prompt_ids
                answer.prompt_logprobs = prompt_logprobs
                answers.append(answer)
        header = self._header
        return api.Completion(header.id, header.created, header.model, answers, usage)

    def _best(self, prompt: int, choices: Sequence[Collected]) -> Sequence[Collected]:
        """Those of the highest mean logprob, the best first; all in their order if all are shown.

        An end token counts as a token; of equal ones the earlier is better.
        """
        if len(choices) == self._extras.num_choices:
            return choices

        def mean(choice: Collected) -> float:
            tokens = _with_stop(choice.tokens, choice.stop_token)
            if self._extras.prompts[prompt].token_offsets is not None:
                tokens = tokens[len(self._extras.prompts[prompt].token_ids) :]
            logprobs = [token.logprobs.logprob for token in tokens if token.logprobs is not None]
            return sum(logprobs) / len(logprobs) if logprobs else -math.inf

        return sorted(choices, key=mean, reverse=True)[: self._extras.num_choices]

    def _choice(
        self,
        index: int,
        prompt: int,
        text: str,
        tokens: Sequence[TokenText],
        finish_reason: str | None,
    ) -> api.CompletionChoice:
        logprobs = None
        if self._num_logprobs is not None:
            logprobs = self._completion_logprobs(tokens, len(self._echoes[prompt]))
        return api.CompletionChoice(index, text, logprobs, finish_reason)

    def _completion_logprobs(
        self, tokens: Sequence[TokenText], first_offset: int
    ) -> api.CompletionLogprobs:
        return api.CompletionLogprobs(
            tokens=[self._token_text(token.token_id) for token in tokens],
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
            top.setdefault(self._token_text(token_id), _finite(logprob))
        return top


def token_logprob(
    tokenizer: Tokenizer, token: TokenText, name: Callable[[int], str] | None = None
) -> api.TokenLogprob:
    """Of a generated token; `name` gives the text of a token where it is not its bytes'."""
    assert token.logprobs is not None

    def text(token_id: int) -> str:
        return readable(tokenizer.token_bytes(token_id)) if name is None else name(token_id)

    top = [
        api.TopLogprob(text(other), _finite(logprob), list(tokenizer.token_bytes(other)))
        for other, logprob in token.logprobs.top
    ]
    raw = list(tokenizer.token_bytes(token.token_id))
    return api.TokenLogprob(text(token.token_id), _finite(token.logprobs.logprob), raw, top)


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
