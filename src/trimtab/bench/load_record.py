"""An exchange becomes a record."""

from __future__ import annotations

from trimtab.bench.http_stream import Exchange
from trimtab.bench.load_answer import (
    BY_EVENTS,
    BY_USAGE_AND_LENGTH,
    Answer,
    CountTokens,
    read_document,
    read_stream,
)
from trimtab.bench.load_target import describe_failure
from trimtab.workloads.records import RequestRecord

BY_GUESS = (BY_USAGE_AND_LENGTH, BY_EVENTS)  # where a tokenizer knows more


def read_exchange(
    exchange: Exchange, start: float, count_tokens: CountTokens | None = None
) -> Answer:
    """What the server answered; times are seconds since `start` (monotonic)."""
    if exchange.status not in (0, 200):
        return Answer(error=describe_failure(exchange))
    pieces = [(when - start, piece) for when, piece in exchange.pieces]
    streams = "event-stream" in exchange.headers.get("content-type", "")
    if exchange.status == 200 and not streams and exchange.error is None:
        at = pieces[-1][0] if pieces else exchange.ended - start
        return read_document(at, exchange.body, count_tokens)
    answer = read_stream(pieces, count_tokens)
    answer.error = exchange.error or answer.error
    return answer


def fill_record(record: RequestRecord, answer: Answer) -> None:
    record.token_times, record.token_counts = answer.token_times, answer.token_counts
    record.num_output_tokens = answer.num_tokens
    if answer.num_prompt_tokens is not None:
        record.num_prompt_tokens = answer.num_prompt_tokens
    record.num_cached_tokens = answer.num_cached_tokens or 0
