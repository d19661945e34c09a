"""The load generator on a live mock server, whose answers come when arithmetic says.

Margins are wide and mostly one-sided: a busy machine makes everything later, nothing earlier.
"""

from __future__ import annotations

import json
import os
import random
import signal
import statistics
import threading
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from loads import closed_loop, load, open_loop, sessions

from trimtab.bench import load_answer
from trimtab.bench.load import LoadRun
from trimtab.bench.load_client import NOT_SENT
from trimtab.bench.load_prompts import WARM_UP_KEY
from trimtab.bench.mock_schedule import MockConfig
from trimtab.bench.mock_server import running_mock
from trimtab.errors import UserError
from trimtab.workloads.requests import PlannedRequest, Workload


@pytest.fixture(scope="module")
def quick() -> Iterator[str]:
    """Steps of 5 ms, as many requests at once as come."""
    with running_mock(MockConfig(step_ms=5, max_batch=1000)) as url:
        yield url


def asked_of(url: str) -> list[dict[str, Any]]:
    with urllib.request.urlopen(f"{url}/mock/requests") as answer:
        found: list[dict[str, Any]] = json.load(answer)
    return found


def errors_of(run: LoadRun) -> list[str | None]:
    return [record.error for record in run.records]


def test_waiting_times_are_those_of_m_d_1() -> None:
    """Request by request: Lindley's recursion on the schedule is a lower bound that a punctual
    client and server reach."""
    rng, service = random.Random(3), 0.025
    times = [0.0]
    while len(times) < 60:
        times.append(times[-1] + rng.expovariate(0.8 / service))
    with running_mock(MockConfig(service_ms=1e3 * service)) as url:
        run = load(url, open_loop(times, num_output_tokens=3))
    free, exact = 0.0, []
    for at in times:
        free = max(free, at) + service
        exact.append(free - at)
    measured = [record.e2e for record in run.records]
    assert errors_of(run) == [None] * 60
    # The mock's clock starts with its first request, a little after the load's.
    assert min(m - e for m, e in zip(measured, exact, strict=True)) > -0.002
    assert statistics.median(m - e for m, e in zip(measured, exact, strict=True)) < service


def test_a_stall_of_two_seconds_shows_from_the_schedule_though_few_requests_meet_it() -> None:
    """Coordinated omission: two at once are in the stall, the others wait inside the client."""
    # The mock's clock may start well before the load's on a machine that is busy.
    config = MockConfig(step_ms=5, stall_at=1.5, stall_seconds=2.0)
    with running_mock(config) as url:
        run = load(url, open_loop([0.02 * n for n in range(250)]), max_concurrency=2)
    assert errors_of(run) == [None] * 250
    assert run.max_concurrency == 2
    assert any("no more than 2" in note for note in run.notes)
    ttft = sorted(record.ttft for record in run.records)
    service = sorted(record.ttft_service for record in run.records)
    assert ttft[247] > 1.8  # p99
    assert service[235] < ttft[235] / 2  # the figure that hides it
    waited = [record for record in run.records if record.client_queue > 0.5]
    assert len(waited) > 40
    # A cap is the user's: waiting for it is latency and not lateness of the client.
    assert run.lateness.lag_p50 < 0.1


def test_several_tokens_a_chunk_are_all_counted() -> None:
    with running_mock(MockConfig(step_ms=5, tokens_per_chunk=4)) as url:
        run = load(url, open_loop([0.0, 0.01], num_output_tokens=10))
        split = load(url, open_loop([0.0], 10), count_tokens=lambda text: len(text.split()))
    for record in run.records:
        assert (record.num_output_tokens, sum(record.token_counts)) == (10, 10)
        assert len(record.token_times) == 3
        assert len(record.itls()) == 6
    assert run.counted_by == {load_answer.BY_USAGE_AND_LENGTH: 2}
    assert split.records[0].token_counts == [4, 4, 2]
    assert split.counted_by == {load_answer.BY_USAGE_AND_TOKENIZER: 1}


def test_a_server_without_usage_is_called_one() -> None:
    with running_mock(MockConfig(step_ms=5, gives_usage=False)) as url:
        run = load(url, open_loop([0.0]))
    assert run.counted_by == {load_answer.BY_EVENTS: 1}
    assert any("events" in note for note in run.notes)


def test_ids_are_asked_for_and_counted() -> None:
    with running_mock(MockConfig(step_ms=5, tokens_per_chunk=3, gives_token_ids=True)) as url:
        run = load(url, open_loop([0.0], 8), token_ids=True)
        bodies = [one["body"] for one in asked_of(url)]
    assert run.records[0].token_counts == [3, 3, 2]
    assert run.counted_by == {load_answer.BY_IDS: 1}
    assert all(body["return_token_ids"] for body in bodies)


def test_an_open_loop_does_not_wait_for_the_server() -> None:
    """A server that takes a second for each: all are sent at their times."""
    with running_mock(MockConfig(service_ms=200)) as url:
        run = load(url, open_loop([0.02 * n for n in range(8)]))
    assert run.peak_in_flight == 8
    assert max(record.client_queue for record in run.records) < 0.2


def test_a_closed_loop_keeps_so_many_at_once(quick: str) -> None:
    run = load(quick, closed_loop(12, concurrency=3))
    assert run.peak_in_flight == 3
    assert len(run.records) == 12
    starts = sorted(record.scheduled for record in run.records)
    assert starts[:3] == [0, 0, 0]
    assert starts[3] > 0.01
    assert min(record.client_queue for record in run.records) >= 0


def test_a_closed_loop_ends_after_its_time(quick: str) -> None:
    run = load(quick, closed_loop(10_000, concurrency=2), max_seconds=0.3)
    assert 2 < len(run.records) < 1000
    assert errors_of(run) == [None] * len(run.records)
    assert run.num_unsent == 10_000 - len(run.records)


@pytest.mark.parametrize("chat", [False, True])
def test_later_turns_come_after_the_answer_and_with_it(chat: bool) -> None:
    with running_mock(MockConfig(step_ms=5)) as url:
        run = load(url, sessions(2, 3, pause=0.05, chat=chat))
        asked = asked_of(url)[1:]  # after the probe
    assert run.route == ("chat" if chat else "completions")
    assert errors_of(run) == [None] * 6
    for before, after in ((0, 1), (1, 2), (3, 4), (4, 5)):
        assert run.records[after].scheduled == pytest.approx(run.records[before].ended + 0.05)
        assert run.records[after].turn == run.records[before].turn + 1
    firsts = [one["body"] for one in asked]
    longest = max(firsts, key=lambda body: len(str(body.get("prompt") or body["messages"])))
    if chat:
        roles = [message["role"] for message in longest["messages"]]
        assert roles == ["user", "assistant", "user", "assistant", "user"]
        assert longest["messages"][1]["content"] == "w0 w1 w2 "
    else:
        assert longest["prompt"].count("w0 w1 w2 ") == 2
        assert "t0-3 w0 w1 w2 s" in longest["prompt"]


def test_errors_are_recorded_with_status_and_message_and_end_their_session() -> None:
    with running_mock(MockConfig(step_ms=5, error_every=2, error_kind="500")) as url:
        run = load(url, sessions(1, 3, pause=0.0))
    assert errors_of(run) == ["HTTP 500: injected", NOT_SENT, NOT_SENT]
    assert run.statuses == {500: 1}


@pytest.mark.parametrize(
    ("kind", "message"), [("disconnect", "closed the connection"), ("event", "injected")]
)
def test_a_stream_that_breaks_off_is_an_error(kind: str, message: str) -> None:
    with running_mock(MockConfig(step_ms=5, error_every=3, error_kind=kind)) as url:
        run = load(url, open_loop([0.0, 0.1, 0.2, 0.3]))
    assert [error is None for error in errors_of(run)] == [True, False, True, True]
    assert message in str(run.records[1].error)
    assert run.records[1].num_output_tokens >= 1


def test_retry_after_is_obeyed_only_when_asked() -> None:
    config = MockConfig(step_ms=5, error_every=2, error_kind="429")
    with running_mock(config) as url:
        plain = load(url, open_loop([0.0]))
    with running_mock(config) as url:
        patient = load(url, open_loop([0.0]), obey_retry_after=True)
    assert errors_of(plain) == ["HTTP 429: injected"]
    assert errors_of(patient) == [None]
    assert patient.num_retried == 1
    assert patient.records[0].e2e > 1.0  # the second that it was told to wait
    assert patient.records[0].client_queue < 0.5


def test_warm_up_shares_no_prompt_with_what_is_measured() -> None:
    with running_mock(MockConfig(step_ms=5)) as url:
        run = load(url, open_loop([0.0, 0.01, 0.02], prompt=40), warm_up=3)
        asked = [one["prompt"] for one in asked_of(url)]
    assert run.num_warm_up == 3
    warm = [prompt for prompt in asked if prompt.startswith(WARM_UP_KEY)]
    assert len(warm) == len(set(warm)) == 3
    assert not set(" ".join(warm).split()) & set(" ".join(asked[4:]).split())
    assert [record.num_cached_tokens for record in run.records] == [0, 0, 0]
    assert len(run.records) == 3


def test_cached_tokens_are_those_of_the_usage(quick: str) -> None:
    first = load(quick, open_loop([0.0], prompt=64, seed=5))
    again = load(quick, open_loop([0.0], prompt=64, seed=5))
    assert (first.records[0].num_cached_tokens, again.records[0].num_cached_tokens) == (0, 64)
    assert again.records[0].num_prompt_tokens == 64


def test_fields_that_a_server_refuses_are_left_out_and_short_answers_told() -> None:
    config = MockConfig(step_ms=5, refuses_extras=True, refuses_stream_options=True, eos_after=2)
    with running_mock(config) as url:
        run = load(url, open_loop([0.0], 6))
    assert errors_of(run) == [None]
    assert not run.exact_lengths
    assert run.num_short == 1
    assert any("ignore_eos" in note for note in run.notes)


def test_a_server_that_does_not_stream_is_measured_and_told() -> None:
    with running_mock(MockConfig(step_ms=5, streams=False)) as url:
        run = load(url, open_loop([0.0], 4))
    assert run.records[0].token_counts == [4]
    assert run.records[0].ttft == pytest.approx(run.records[0].e2e, abs=0.05)
    assert any("does not stream" in note for note in run.notes)


def test_an_answer_that_takes_too_long_is_an_error() -> None:
    with running_mock(MockConfig(step_ms=5, stall_at=0.06, stall_seconds=30.0)) as url:
        run = load(url, open_loop([0.0, 0.3]), request_seconds=0.5)
    assert str(run.records[1].error) == "no answer in 0.5 s"
    assert run.elapsed < 10


def test_over_saturation_ends_the_load_and_cuts_what_is_in_flight(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("trimtab.bench.saturation.MIN_SECONDS", 0.6)
    times = [0.01 * n for n in range(1500)]
    with running_mock(MockConfig(service_ms=50)) as url:
        run = load(url, open_loop(times, 2))
    assert run.saturation is not None
    assert run.elapsed < 10
    assert run.num_unsent > 0
    cut = [record for record in run.records if record.cut]
    assert len(cut) > 20
    assert all(not record.is_complete and record.error is None for record in cut)
    assert any("over-saturated" in note for note in run.notes)


def test_a_busy_client_voids_its_own_run(quick: str) -> None:
    """A progress call that takes 60 ms stands for a client that cannot keep up."""

    def slow(state: object) -> None:
        end = time.monotonic() + 0.06
        while time.monotonic() < end:
            pass

    run = load(quick, open_loop([0.01 * n for n in range(150)]), progress=slow)
    assert not run.valid
    assert "late" in run.why
    assert run.lateness.loop_p99 > 0.03


def test_options_of_a_request_and_its_own_messages_reach_the_server() -> None:
    talk = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}]
    request = PlannedRequest(0, 0.0, (), 5, messages=talk, options={"temperature": 0.7})
    with running_mock(MockConfig(step_ms=5)) as url:
        run = load(url, Workload("own", (request,), 1.0, None, 0), api_key="secret")
        body = asked_of(url)[-1]["body"]
    assert run.route == "chat"
    assert body["messages"] == talk
    assert body["temperature"] == 0.7
    assert "ignore_eos" not in body  # a user's own prompt ends where its answer ends
    assert errors_of(run) == [None]


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("http://127.0.0.1:9", "nobody answers"),
        ("http://user:key@host", "--api-key"),
        ("http://", "http://host:port"),
        ("http://host:99999", "Port"),
    ],
)
def test_what_is_no_server_is_one_line(url: str, problem: str) -> None:
    with pytest.raises(UserError, match=problem) as raised:
        load(url, open_loop([0.0]))
    assert "\n" not in str(raised.value)


def test_a_server_that_refuses_everything_is_quoted() -> None:
    with (
        running_mock(MockConfig(error_every=1, error_kind="429")) as url,
        pytest.raises(UserError, match="HTTP 429: injected"),
    ):
        load(url, open_loop([0.0]))


def test_http_that_says_nothing_of_itself() -> None:
    with running_mock() as url, pytest.raises(UserError, match="404"):
        load(url + "/elsewhere", open_loop([0.0]))


@pytest.mark.skipif(
    threading.current_thread() is not threading.main_thread(), reason="signals need the main thread"
)
def test_an_interrupt_ends_the_load_with_what_there_is(quick: str) -> None:
    def interrupt() -> None:
        os.kill(os.getpid(), signal.SIGINT)

    timer: list[threading.Timer] = []

    def once_it_runs(state: object) -> None:
        if not timer:
            timer.append(threading.Timer(0.0, interrupt))
            timer[0].start()

    run = load(quick, open_loop([0.02 * n for n in range(1000)]), progress=once_it_runs)
    assert run.interrupted
    assert run.elapsed < 10
    assert 0 < len(run.records) < 1000
    assert run.num_unsent == 1000 - len(run.records)
    assert run.notes[0].startswith("interrupted")
