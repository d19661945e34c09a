"""What an answer is made of, and what all formats of answers share."""

from __future__ import annotations

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

TEXT_MARK = "\0text\0"  # stands for the text in a template
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

    def text_template(self, index: int) -> tuple[bytes, bytes] | None:
        """What a stream writes before and behind the text of an event that is more text of this
        choice and nothing else; the text stands there as JSON. None where `chunks` must be asked.
        A template holds up to the end of the stream."""
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
        return api.PromptLogprob(finite(logprob), rank, text)

    def failure(self, error: ApiError) -> msgspec.Struct:
        return error.document

    def _template(self, chunk: msgspec.Struct) -> tuple[bytes, bytes]:
        """Cut out of a chunk whose text is `TEXT_MARK`."""
        before, _, after = msgspec.json.encode(chunk).rpartition(msgspec.json.encode(TEXT_MARK))
        return b"data: " + before, after + b"\n\n"


def token_logprob(
    tokenizer: Tokenizer, token: TokenText, name: Callable[[int], str] | None = None
) -> api.TokenLogprob:
    """Of a generated token; `name` gives the text of a token where it is not its bytes'."""
    assert token.logprobs is not None

    def text(token_id: int) -> str:
        return readable(tokenizer.token_bytes(token_id)) if name is None else name(token_id)

    top = [
        api.TopLogprob(text(other), finite(logprob), list(tokenizer.token_bytes(other)))
        for other, logprob in token.logprobs.top
    ]
    raw = list(tokenizer.token_bytes(token.token_id))
    return api.TokenLogprob(text(token.token_id), finite(token.logprobs.logprob), raw, top)


def readable(raw: bytes) -> str:
    """A token's bytes as text; those that are no text by themselves as `bytes:\\xe2\\x80`."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def finite(logprob: float) -> float:
    return logprob if logprob > LOWEST_LOGPROB else LOWEST_LOGPROB
