"""Tokens are counted, not chunks; the time of an event is that of the piece that completed it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.bench import load_answer
from trimtab.bench.load_answer import read_document, read_stream, share_out, split_events


def text(value: str, **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "text": value, **more}]}


def delta(**fields: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": fields}]}


def usage(tokens: int, prompt: int = 7, cached: int | None = None) -> dict[str, Any]:
    counts: dict[str, Any] = {"prompt_tokens": prompt, "completion_tokens": tokens}
    if cached is not None:
        counts["prompt_tokens_details"] = {"cached_tokens": cached}
    return {"choices": [], "usage": counts}


def stream(*events: dict[str, Any], done: bool = True) -> list[tuple[float, bytes]]:
    pieces = [f"data: {json.dumps(event)}\n\n".encode() for event in events]
    if done:
        pieces.append(b"data: [DONE]\n\n")
    return [(float(time), piece) for time, piece in enumerate(pieces)]


def count_letters(value: str) -> int:
    return len(value.replace(" ", ""))


def test_usage_that_fits_the_events_is_one_token_an_event() -> None:
    answer = read_stream(stream(text("a"), text("b"), text("c"), usage(3, 9, 4)))
    assert answer.token_counts == [1, 1, 1]
    assert answer.token_times == [0.0, 1.0, 2.0]
    assert (answer.num_tokens, answer.num_prompt_tokens, answer.num_cached_tokens) == (3, 9, 4)
    assert answer.source == load_answer.BY_USAGE


def test_several_tokens_a_chunk_are_shared_out_by_the_tokenizer() -> None:
    answer = read_stream(stream(text("a"), text("bcd"), text("ef"), usage(6)), count_letters)
    assert answer.token_counts == [1, 3, 2]
    assert answer.source == load_answer.BY_USAGE_AND_TOKENIZER


def test_without_a_tokenizer_they_are_shared_out_by_length_and_it_says_so() -> None:
    answer = read_stream(stream(text("a"), text("bbbbbbbb"), usage(5)))
    assert sum(answer.token_counts) == 5
    assert answer.token_counts[1] > answer.token_counts[0]
    assert answer.source == load_answer.BY_USAGE_AND_LENGTH


def test_ids_of_the_server_are_exact_and_an_end_token_without_text_counts() -> None:
    events = [text("ab", token_ids=[1, 2]), text("", token_ids=[3]), text("c", token_ids=[4])]
    answer = read_stream(stream(*events, usage(5)))
    assert answer.token_counts == [2, 1, 2]
    assert answer.source == load_answer.BY_IDS


def test_logprobs_count_tokens() -> None:
    events = [
        text("ab", logprobs={"tokens": ["a", "b"]}),
        text("c", logprobs={"tokens": ["c"]}),
    ]
    answer = read_stream(stream(*events, usage(3)))
    assert answer.token_counts == [2, 1]
    assert answer.source == load_answer.BY_LOGPROBS


def test_without_usage_chunks_are_called_chunks() -> None:
    assert read_stream(stream(text("a"), text("b"))).source == load_answer.BY_EVENTS
    assert read_stream(stream(text("abc")), count_letters).token_counts == [3]


def test_a_greeting_is_not_the_first_token_and_reasoning_is() -> None:
    events = [delta(role="assistant", content=""), delta(reasoning="hm"), delta(content="yes")]
    answer = read_stream(stream(*events, usage(2)))
    assert answer.token_times == [1.0, 2.0]
    assert answer.content == "yes"


def test_an_error_event_a_broken_stream_and_nonsense_are_errors() -> None:
    broken = read_stream(stream(text("a"), {"error": {"message": "out of\nmemory"}}))
    assert broken.error == "out of memory"
    assert read_stream(stream(text("a"), done=False)).error == "the stream broke off"
    ended = stream({"choices": [{"text": "a", "finish_reason": "length"}]}, done=False)
    assert read_stream(ended).error is None
    assert "not an event" in str(read_stream([(0.0, b"data: {]\n\n")]).error)


def test_tokens_without_text_are_seen_at_the_end() -> None:
    answer = read_stream(stream(text(""), text(""), usage(4)))
    assert (answer.token_times, answer.token_counts) == ([3.0], [4])


def test_tokens_without_text_came_by_the_end_and_not_with_earlier_text() -> None:
    events = [text("ab"), text("c"), text("", finish_reason="length"), usage(10)]
    answer = read_stream(stream(*events), count_letters)
    assert (answer.token_times, answer.token_counts) == ([0.0, 1.0, 2.0], [2, 1, 7])


def test_an_event_for_each_token_with_text_or_without() -> None:
    """vLLM sends an empty event where a token completes no character."""
    events = [text("a"), text(""), text("b"), text(""), text("", finish_reason="stop"), usage(4)]
    answer = read_stream(stream(*events))
    assert (answer.token_times, answer.token_counts) == ([0.0, 1.0, 2.0, 3.0], [1, 1, 1, 1])
    assert answer.source == load_answer.BY_USAGE


def test_a_document_has_all_its_tokens_at_its_end() -> None:
    body = {"choices": [{"message": {"content": "abc"}}], "usage": usage(3)["usage"]}
    answer = read_document(4.0, json.dumps(body).encode())
    assert (answer.token_times, answer.token_counts) == ([4.0], [3])


@given(st.lists(st.integers(1, 40), min_size=1, max_size=8), st.booleans())
def test_any_cutting_gives_the_same_events(cuts: list[int], windows_lines: bool) -> None:
    whole = b"".join(piece for _, piece in stream(text("a\n"), text("é"), usage(2)))
    whole = b": a comment\n\nevent: x\n" + whole
    if windows_lines:
        whole = whole.replace(b"\n", b"\r\n")
    pieces, position = [], 0
    for number in range(len(whole)):
        if position >= len(whole):
            break
        length = cuts[number % len(cuts)]
        pieces.append((float(number), whole[position : position + length]))
        position += length
    found = [data for _, data in split_events(pieces)]
    assert [json.loads(data) for data in found[:-1]] == [text("a\n"), text("é"), usage(2)]
    assert found[-1] == b"[DONE]"
    times = [time for time, _ in split_events(pieces)]
    assert times == sorted(times)


@given(st.integers(0, 300), st.lists(st.integers(0, 50), max_size=60))
def test_shares_are_whole_and_none_is_lost(total: int, weights: list[int]) -> None:
    parts = share_out(total, weights)
    assert len(parts) == len(weights)
    if weights:
        assert sum(parts) == total
        assert min(parts) >= (1 if total >= len(weights) else 0)


@pytest.mark.parametrize(
    ("total", "weights", "parts"), [(6, [1, 3, 2], [1, 3, 2]), (2, [9] * 3, [1, 1, 0])]
)
def test_shares_follow_the_weights(total: int, weights: list[int], parts: list[int]) -> None:
    assert share_out(total, weights) == parts
