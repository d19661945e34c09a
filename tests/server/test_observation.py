"""What is observed of requests: timelines, logs, the last minute; nothing in it that was said."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from live import Live, live_server, wait_until

from trimtab.engine.client import TokenOutput
from trimtab.server.api_errors import ApiError
from trimtab.server.logs import JsonFormatter, TextFormatter
from trimtab.server.observation import Call, Observer
from trimtab.server.tally import (
    WINDOW_SECONDS,
    Distribution,
    Recent,
    Totals,
    fine_bounds,
    percentile,
)

TEXT, CHAT = "/v1/completions", "/v1/chat/completions"
QUICK = {"prompt": "quick", "max_tokens": 4}


# -- counting


@given(st.lists(st.tuples(st.floats(0, 1000), st.integers(1, 5))))
def test_a_distribution_counts_what_is_at_most_each_bound(values: list[tuple[float, int]]) -> None:
    coarse = (0.1, 1.0, 10.0)
    counted = Distribution(fine_bounds(coarse))
    for value, times in values:
        counted.add(value, times)
    at_most = [sum(times for value, times in values if value <= bound) for bound in coarse]
    assert counted.cumulative(coarse) == [*at_most, sum(times for _, times in values)]
    assert counted.sum == pytest.approx(sum(value * times for value, times in values))


@given(
    st.lists(st.floats(2e-5, 3000), min_size=1, max_size=200),
    st.sampled_from([0.5, 0.9, 0.95, 0.99, 1.0]),
)
def test_percentiles_are_nine_percent_off_at_most(values: list[float], share: float) -> None:
    counted = Distribution(fine_bounds(()))
    for value in values:
        counted.add(value)
    rank = max(1, -int(-share * len(values) // 1))  # the ceiling
    exact = sorted(values)[rank - 1]
    found = percentile(counted.bounds, counted.counts, share)
    assert found is not None
    assert exact / 1.0906 <= found <= exact * 1.0906


def test_no_values_have_no_percentile() -> None:
    assert percentile((1.0,), [0, 0], 0.5) is None
    assert percentile((1.0,), [0, 3], 0.5) == 1.0


@given(st.lists(st.tuples(st.floats(0, 40), st.integers(1, 9), st.floats(0.0001, 5)), max_size=60))
def test_the_last_minute_is_what_was_counted_in_it(
    steps: list[tuple[float, int, float]],
) -> None:
    totals = Totals()
    now = 1000.25
    recent = Recent(totals, now)
    told = []
    for pause, num_tokens, latency in steps:
        now += pause
        if now >= recent.ends:
            recent.turn(now)
        totals.num_generated_tokens += num_tokens
        totals.token.add(latency)
        told.append((int(now), num_tokens))
    seconds = recent.seconds(now)
    assert all(a.second < b.second for a, b in pairwise(seconds))
    expected = sum(n for second, n in told if second > int(now) - WINDOW_SECONDS)
    assert sum(one.num_generated_tokens for one in seconds) == expected
    assert sum(sum(one.token) for one in seconds) == sum(
        1 for second, _ in told if second > int(now) - WINDOW_SECONDS
    )


def test_nothing_grows_with_time() -> None:
    totals = Totals()
    recent = Recent(totals, 0.0)
    for now in range(1, 1000):
        recent.turn(now)
        totals.num_generated_tokens += 1
    assert len(recent.seconds(999.5)) == WINDOW_SECONDS


# -- calls


def test_a_call_that_its_client_left_and_one_that_failed() -> None:
    observer = Observer()
    for complete, error, reason in ((False, None, "abort"), (True, "engine_stopped", "error")):
        call = Call(observer, "id", "POST", TEXT)
        observer.begin(call)
        call.prepare(5, 1)
        call.output(0, TokenOutput("r", [7]))
        call.error = error
        observer.end(call, TEXT, 200, complete)
        assert call.choices[0].finish_reason == reason
    assert observer.finished == {"abort": 1, "error": 1}
    assert observer.num_open == 0
    assert observer.totals.num_generated_tokens == 2
    assert observer.latency.cumulative(())[-1] == 2


def test_tokens_of_one_output_share_its_time() -> None:
    observer = Observer()
    call = Call(observer, "id")
    call.prepare(5, 2)
    for index, num_tokens in ((0, 1), (1, 2), (0, 4), (0, 0), (1, 1)):
        call.output(index, TokenOutput("r", [7] * num_tokens))
    assert sum(observer.totals.token.counts) == 4 + 2  # all but the first of each choice
    assert sum(observer.totals.first_token.counts) == 1
    assert [life.num_tokens for life in call.choices] == [5, 3]


# -- timelines


def check_timings(timings: dict[str, Any], num_choices: int, num_tokens: int) -> None:
    assert 0 <= timings["read_ms"] <= timings["total_ms"]
    assert timings["tokenize_ms"] >= 0
    assert timings["read_ms"] < timings["first_token_ms"] <= timings["total_ms"]
    assert [choice["index"] for choice in timings["choices"]] == list(range(num_choices))
    for choice in timings["choices"]:
        assert choice["completion_tokens"] == num_tokens
        assert choice["cached_tokens"] == 3
        assert choice["decode_ms"] > 0
        assert choice["queue_ms"] == 0.5
        assert choice["prefill"] == [{"start_ms": 0.5, "ms": 1.5, "tokens": 2}]
        assert choice["preemptions"] == 0


@pytest.mark.parametrize(
    "how", [{"headers": {"X-Trimtab-Timings": "1"}}, {"body": {"timings": True}}]
)
@pytest.mark.parametrize("n", [1, 3])
def test_a_timeline_for_those_who_ask(server: Live, how: dict[str, Any], n: int) -> None:
    headers = how.get("headers", {})
    body = QUICK | {"n": n} | how.get("body", {})
    whole = server.post(TEXT, json=body, headers=headers).json()
    check_timings(whole["timings"], n, 4)
    for options in ({}, {"stream_options": {"include_usage": True}}):
        answer = server.post(TEXT, json=body | {"stream": True} | options, headers=headers)
        events = [line.removeprefix("data: ") for line in answer.text.strip().split("\n\n")]
        assert events.pop() == "[DONE]"
        documents = [json.loads(event) for event in events]
        assert [("timings" in one) for one in documents] == [False] * (len(events) - 1) + [True]
        check_timings(documents[-1]["timings"], n, 4)
        reasons = [c["finish_reason"] for one in documents for c in one["choices"]]
        assert sum(reason == "length" for reason in reasons) == n
    assert "timings" not in server.post(TEXT, json=QUICK).json()


def test_a_timeline_through_the_official_client(server: Live) -> None:
    stream = server.openai().chat.completions.create(
        model="fake-model",
        messages=[{"role": "user", "content": "hi"}],
        max_tokens=3,
        stream=True,
        extra_body={"timings": True},
    )
    *_, last = stream
    assert last.choices[0].finish_reason == "length"
    assert last.model_extra is not None
    check_timings(last.model_extra["timings"], 1, 3)


def test_a_stop_string_has_a_timeline_too(server: Live) -> None:
    text = server.post(TEXT, json=QUICK | {"temperature": 0}).json()["choices"][0]["text"]
    body = QUICK | {"temperature": 0, "max_tokens": 500, "stop": text[2], "timings": True}
    answer = server.post(TEXT, json=body).json()
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["timings"]["choices"][0]["queue_ms"] == 0.5


# -- logs


@pytest.fixture(scope="module")
def logged() -> Iterator[Live]:
    with live_server(server={"log_requests": True, "log_format": "json"}) as live:
        yield live


def lines(server: Live) -> list[dict[str, Any]]:
    return [json.loads(line) for line in server.error_text().splitlines()]


def test_one_line_a_request(logged: Live) -> None:
    before = len(lines(logged))
    sane = {"x-request-id": "client-77"}
    body = {"prompt": "SECRET words", "max_tokens": 4, "stop": "SECRET stop"}
    first = logged.post(TEXT, json=body, headers=sane)
    second = logged.post(TEXT, json={"prompt": []}, headers={"x-request-id": 'a"b c'})
    logged.get("/nope/SECRET?SECRET")
    wait_until(lambda: len(lines(logged)) == before + 3)
    completion, refused, unknown = lines(logged)[before:]
    assert first.headers["x-request-id"] == completion["request_id"] == "client-77"
    assert second.headers["x-request-id"] == refused["request_id"]
    assert refused["request_id"].startswith("req-")
    assert completion["answer_id"] == first.json()["id"]
    assert (completion["route"], completion["status"]) == (TEXT, 200)
    assert (completion["prompt_tokens"], completion["completion_tokens"]) == (12, 4)
    assert completion["finish_reasons"] == "length"
    assert completion["ms"] >= completion["first_token_ms"] > 0
    assert (refused["status"], refused["error"]) == (400, "invalid_request_error")
    assert (unknown["status"], unknown["route"]) == (404, "other")
    assert "SECRET" not in logged.error_text()


def test_nothing_is_logged_unless_asked(server: Live) -> None:
    server.post(TEXT, json=QUICK)
    server.get("/nope")
    assert server.error_text() == ""


def test_a_record_in_both_formats() -> None:
    try:
        raise ApiError(500, "broken")
    except ApiError as error:
        info = (ApiError, error, error.__traceback__)
    record = logging.LogRecord("trimtab.server", logging.ERROR, "", 0, "oh %s", ("no",), info)
    record.fields = {"a": 1, "b": None}
    document = json.loads(JsonFormatter().format(record))
    assert (document["level"], document["message"], document["a"]) == ("error", "oh no", 1)
    assert "broken" in document["error"]
    text = TextFormatter().format(record)
    assert text.startswith("trimtab: ERROR: oh no a=1\nTraceback")
