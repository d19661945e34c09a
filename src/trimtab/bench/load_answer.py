"""From the pieces of a streamed answer to tokens with times: tokens are counted, not chunks.

A server may put several tokens into one event, hold text back, or send events without text. What is
counted is, in this order: token ids or log-probabilities that the server sends with its events; its
`usage`, shared out over the events that bring text; the text, by the model's tokenizer; and, if
there is nothing else, events. `Answer.source` says which it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

CountTokens = Callable[[str], int]

BY_IDS = "token ids of the server"
BY_LOGPROBS = "log-probabilities of the server"
BY_USAGE = "usage of the server: one token an event"
BY_USAGE_AND_TOKENIZER = "usage of the server, shared over its events by the tokenizer"
BY_USAGE_AND_LENGTH = "usage of the server, shared over its events by length of text"
BY_TOKENIZER = "tokenizer: the server gives no usage"
BY_EVENTS = "events: the server gives no usage, and no tokenizer is at hand"


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _Details | None = None


class _Logprobs(msgspec.Struct):
    content: list[Any] | None = None  # of a chat
    tokens: list[Any] | None = None  # of a completion


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[Any] | None = None


class _Choice(msgspec.Struct):
    text: str | None = None
    delta: _Delta | None = None
    message: _Delta | None = None
    finish_reason: str | None = None
    token_ids: list[int] | None = None
    logprobs: _Logprobs | None = None


class _Event(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: Any = None


_decode = msgspec.json.Decoder(_Event, strict=False).decode


@dataclass(slots=True)
class TextEvent:
    """An event that brought tokens."""

    time: float
    text: str  # all of it: reasoning and arguments of calls too
    num_tokens: int | None = None  # as the server itself says


@dataclass(slots=True)
class Answer:
    token_times: list[float] = field(default_factory=list)
    token_counts: list[int] = field(default_factory=list)
    num_tokens: int = 0
    num_prompt_tokens: int | None = None
    num_cached_tokens: int | None = None
    content: str = ""  # what goes into the history of a conversation
    finish_reason: str | None = None
    source: str = ""
    error: str | None = None


def read_stream(
    pieces: Sequence[tuple[float, bytes]], count_tokens: CountTokens | None = None
) -> Answer:
    """Of server-sent events. `error` is set where the stream broke off, or an event was one."""
    answer = Answer()
    events: list[TextEvent] = []
    silent: list[TextEvent] = []
    usage: _Usage | None = None
    by_logprobs = False
    ended = False
    for time, data in split_events(pieces):
        if data == b"[DONE]":
            ended = True
            break
        try:
            event = _decode(data)
        except (msgspec.ValidationError, msgspec.DecodeError) as error:
            answer.error = f"not an event of this protocol: {error}"
            break
        if event.error is not None:
            answer.error = error_message(event.error)
            break
        usage = event.usage or usage
        for choice in (event.choices or ())[:1]:
            found = _text_event(time, choice, answer)
            if found is not None:
                events.append(found)
                by_logprobs |= choice.logprobs is not None and not choice.token_ids
            elif events or choice.finish_reason is not None:  # before is a greeting
                silent.append(TextEvent(time, ""))
            answer.finish_reason = choice.finish_reason or answer.finish_reason
    if answer.error is None and not ended and answer.finish_reason is None:
        answer.error = "the stream broke off"
    if not events and pieces:  # no text is seen before the end
        silent = [TextEvent(pieces[-1][0], "")]
    _count(answer, events, silent, usage, count_tokens, by_logprobs)
    return answer


def read_document(time: float, body: bytes, count_tokens: CountTokens | None = None) -> Answer:
    """Of a server that does not stream: all tokens came at once, at `time`."""
    answer = Answer()
    try:
        event = _decode(body)
    except (msgspec.ValidationError, msgspec.DecodeError) as error:
        answer.error = f"not an answer of this protocol: {error}"
        return answer
    if event.error is not None:
        answer.error = error_message(event.error)
        return answer
    found = [_text_event(time, choice, answer) for choice in (event.choices or ())[:1]]
    if event.choices:
        answer.finish_reason = event.choices[0].finish_reason
    events = [one for one in found if one is not None]
    _count(answer, events, [TextEvent(time, "")], event.usage, count_tokens, False)
    return answer


def split_events(pieces: Sequence[tuple[float, bytes]]) -> Iterator[tuple[float, bytes]]:
    """(time, data) of each event: the time of the piece that completed it. Fields other than
    `data`, and comments, are left out."""
    rest = b""
    for time, piece in pieces:
        rest += piece
        if b"\n\n" not in rest and b"\r\n\r\n" not in rest:
            continue
        *blocks, rest = rest.replace(b"\r\n", b"\n").split(b"\n\n")
        for block in blocks:
            if data := _data_of(block):
                yield time, data
    if pieces and (data := _data_of(rest)):
        yield pieces[-1][0], data


def _data_of(block: bytes) -> bytes:
    lines = [line[5:].strip() for line in block.split(b"\n") if line.startswith(b"data:")]
    return b"\n".join(lines)


def error_message(error: Any) -> str:
    """Of an error object, in whatever form it came; one line."""
    if isinstance(error, dict):
        error = error.get("message") or error.get("detail") or error
    return " ".join(str(error).split())[:300]


def _text_event(time: float, choice: _Choice, answer: Answer) -> TextEvent | None:
    delta = choice.delta or choice.message
    text = choice.text or ""
    if delta is not None:
        answer.content += delta.content or ""
        calls = "".join(map(str, delta.tool_calls or ()))
        text = (delta.reasoning or delta.reasoning_content or "") + (delta.content or "") + calls
    else:
        answer.content += text
    count: int | None = None
    if choice.token_ids is not None:
        count = len(choice.token_ids)
    elif choice.logprobs is not None:
        count = len(choice.logprobs.content or choice.logprobs.tokens or ())
    if text or count:
        return TextEvent(time, text, count)
    return None


def _count(
    answer: Answer,
    events: list[TextEvent],
    silent: list[TextEvent],
    usage: _Usage | None,
    count_tokens: CountTokens | None,
    by_logprobs: bool,
) -> None:
    """`silent`: events without text, the last of them with the reason of the end. Tokens that no
    text comes from (end tokens that were ignored) came by then, and not with earlier text."""
    total = 0
    if usage is not None:
        total = usage.completion_tokens
        answer.num_prompt_tokens = usage.prompt_tokens
        if usage.prompt_tokens_details is not None:
            answer.num_cached_tokens = usage.prompt_tokens_details.cached_tokens
    if total and not events:
        events = silent[-1:]
    if events and all(event.num_tokens is not None for event in events):
        counts = [event.num_tokens or 0 for event in events]
        answer.source = BY_LOGPROBS if by_logprobs else BY_IDS
        # An end token that is no event of its own belongs to the last one.
        counts[-1] += max(0, total - sum(counts))
    elif total and total == len(events):
        counts, answer.source = [1] * total, BY_USAGE
    elif total and silent and len(events) < total <= len(events) + len(silent):
        # A server that sends an event for each token, with text or without.
        events = sorted(events + silent[: total - len(events)], key=lambda event: event.time)
        counts, answer.source = [1] * total, BY_USAGE
    elif total and count_tokens is not None:
        counts = [count_tokens(event.text) for event in events]
        if sum(counts) < total and silent:
            events = [*events, silent[-1]]
            counts.append(total - sum(counts))
        else:
            counts = share_out(total, counts)
        answer.source = BY_USAGE_AND_TOKENIZER
    elif total:
        counts = share_out(total, [len(event.text) for event in events])
        answer.source = BY_USAGE_AND_LENGTH
    elif count_tokens is not None:
        counts, answer.source = [count_tokens(event.text) for event in events], BY_TOKENIZER
    else:
        counts, answer.source = [1] * len(events), BY_EVENTS
    answer.num_tokens = total or sum(counts)
    for event, count in zip(events, counts, strict=True):
        if count:
            answer.token_times.append(event.time)
            answer.token_counts.append(count)


def share_out(total: int, weights: Sequence[int]) -> list[int]:
    """`total` as whole parts in proportion to `weights`, at least one each while there are enough;
    the first parts first where there are not.

    >>> share_out(7, [1, 1, 2])
    [2, 2, 3]
    """
    count = len(weights)
    if count == 0:
        return []
    if total <= count:
        return [1] * total + [0] * (count - total)
    rest = total - count
    above = [max(0, weight - 1) for weight in weights]
    whole = sum(above)
    if not whole:
        above, whole = [1] * count, count
    parts, given, seen = [], 0, 0
    for weight in above:
        seen += weight
        upto = (rest * seen * 2 + whole) // (2 * whole)  # rounded
        parts.append(1 + upto - given)
        given = upto
    return parts
