"""Sends a workload's requests when they are due, and records what became of each.

    open loop     a session's first turn goes out at its time, whatever the server does
    closed loop   `concurrency` sessions at once: the next begins when one ends
    both          a later turn goes out `at` seconds after the turn before it has ended

Nothing here waits for anything but the clock and answers. Times in records are seconds since the
start of the load.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass

from trimtab.bench.http_stream import ConnectionPool, Exchange
from trimtab.bench.lateness import LatenessMeter
from trimtab.bench.load_answer import Answer, CountTokens
from trimtab.bench.load_prompts import History, Prompts
from trimtab.bench.load_record import BY_GUESS, fill_record, read_exchange
from trimtab.bench.load_state import LoadOptions, LoadProgress, Outcome
from trimtab.bench.pacing import Pacer
from trimtab.bench.saturation import find_saturation
from trimtab.workloads.records import RequestRecord
from trimtab.workloads.requests import PlannedRequest, Workload

SAMPLE_SECONDS = 0.1  # between looks at how many requests are in flight
SAMPLES_A_TEST = 10
LEAD_SECONDS = 0.05  # from now to the start of the load
MAX_RETRY_SECONDS = 600.0
NOT_SENT = "not sent: the turn before it failed"


@dataclass(slots=True, eq=False)
class _Sending:
    """A request from when it is due until its answer has ended."""

    request: PlannedRequest
    record: RequestRecord
    prompt: History
    data: bytes
    due: float  # monotonic: from here on it could be sent
    exchange: Exchange | None = None
    timer: asyncio.TimerHandle | None = None


class LoadClient:
    """One load. `run` it once."""

    def __init__(
        self,
        pool: ConnectionPool,
        pacer: Pacer,
        prompts: Prompts,
        workload: Workload,
        options: LoadOptions,
        meter: LatenessMeter | None = None,
        count_tokens: CountTokens | None = None,
        progress: Callable[[LoadProgress], None] | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._pool, self._pacer, self._prompts = pool, pacer, prompts
        self._workload, self._options, self._meter = workload, options, meter
        self._count_tokens, self._progress = count_tokens, progress
        self._closed = workload.concurrency is not None
        self._followers: dict[int, list[PlannedRequest]] = {}
        self._turns: dict[int, int] = {}
        self._sizes: Counter[int] = Counter()  # of sessions: turns that have not ended
        for one in workload.requests:
            self._sizes[one.session] += 1
            self._turns[one.index] = 0
            if one.follows is not None:
                self._followers.setdefault(one.follows, []).append(one)
                self._turns[one.index] = self._turns[one.follows] + 1
        self._firsts: deque[PlannedRequest] = deque(
            one for one in workload.requests if one.follows is None
        )
        self._to_recount: list[tuple[RequestRecord, Exchange, str]] = []
        self._prepared: dict[int, tuple[History, bytes]] = {}
        self._in_flight: set[_Sending] = set()
        self._waiting: deque[_Sending] = deque()  # for a place under max_concurrency
        self._num_pending = 0  # that will become due
        self._num_due = self._num_ended = self._num_failed = self._num_tokens = 0
        self._arrivals: list[int] = []
        self._ends: list[int] = []
        self._first_latencies: list[float] = []
        self._start = 0.0
        self._stopped = False
        self._over: asyncio.Future[None] = self._loop.create_future()
        self.outcome = Outcome()

    def prepare(self) -> None:
        """Makes the bodies of all first turns, so that sending is one write."""
        for one in self._firsts:
            prompt = self._prompts.prompt(one)
            self._prepared[one.index] = prompt, self._prompts.request_bytes(one, prompt)

    async def run(self) -> Outcome:
        if not self._firsts:
            return self.outcome
        self._start = time.monotonic() + LEAD_SECONDS
        if self._meter is not None:
            self._meter.start()
        if self._closed:
            for _ in range(min(self._workload.concurrency or 1, len(self._firsts))):
                self._plan(self._firsts.popleft(), self._start)
        else:
            while self._firsts:
                one = self._firsts.popleft()
                self._plan(one, self._start + one.at)
        self._pacer.at(self._start + SAMPLE_SECONDS, self._sample)
        if self._options.max_seconds is not None:
            self._pacer.at(self._start + self._options.max_seconds, self._begin_nothing_more)
        await self._over
        self._stopped = True
        self.outcome.elapsed = time.monotonic() - self._start
        self.outcome.records.sort(key=lambda record: record.index)
        return self.outcome

    def recount(self) -> None:
        """Counts tokens by the tokenizer where the server's own figures do not tell which event
        brought how many. After the load: it would have made the client late."""
        for record, exchange, before in self._to_recount:
            answer = read_exchange(exchange, self._start, self._count_tokens)
            fill_record(record, answer)
            if record.is_complete:
                self.outcome.sources[before] -= 1
                self.outcome.sources[answer.source] += 1
        self.outcome.sources = +self.outcome.sources
        self._to_recount.clear()

    def stop(self) -> None:
        """Cuts what is in flight and sends nothing more."""
        if self._stopped:
            return
        self._begin_nothing_more()
        for sending in [*self._waiting, *self._in_flight]:
            sending.record.cut = True
        self._waiting.clear()
        for sending in list(self._in_flight):
            if sending.exchange is None or sending.exchange.finished:  # it waits to be sent again
                self._in_flight.discard(sending)
            else:
                self._pool.cancel(sending.exchange, "cut")
        self._end_if_over()

    def _begin_nothing_more(self) -> None:
        self._stopped = True
        self.outcome.num_unsent += self._num_pending + len(self._firsts)
        self._num_pending = 0
        self._firsts.clear()
        self._end_if_over()

    def _plan(self, request: PlannedRequest, when: float, before: History | None = None) -> None:
        """To be sent at `when` (monotonic). What it says is made now, not then."""
        made = self._prepared.pop(request.index, None)
        if made is None:
            prompt = self._prompts.prompt(request, before)
            made = prompt, self._prompts.request_bytes(request, prompt)
        record = self._record(request, when)
        sending = _Sending(request, record, *made, due=when)
        self._num_pending += 1
        self._pacer.at(when, lambda: self._is_due(sending))

    def _record(self, request: PlannedRequest, when: float) -> RequestRecord:
        return RequestRecord(
            request.index,
            scheduled=when - self._start,
            num_prompt_tokens=request.num_prompt_tokens,
            session=request.session,
            turn=self._turns[request.index],
        )

    def _is_due(self, sending: _Sending) -> None:
        if self._stopped:
            return
        self._num_pending -= 1
        self._num_due += 1
        self.outcome.records.append(sending.record)
        cap = self._options.max_concurrency
        if cap is not None and not self._closed and len(self._in_flight) >= cap:
            self._waiting.append(sending)
        else:
            self._send(sending)

    def _send(self, sending: _Sending) -> None:
        exchange = Exchange(sending.data, lambda one: self._answered(sending, one))
        sending.exchange = exchange
        self._in_flight.add(sending)
        self.outcome.peak_in_flight = max(self.outcome.peak_in_flight, len(self._in_flight))
        self._pool.send(exchange)
        if sending.record.sent != sending.record.sent:  # the first time, not after a 429
            sending.record.sent = exchange.sent - self._start
            if self._meter is not None:
                self._meter.lags.append(exchange.sent - sending.due)
        seconds = self._options.request_seconds
        sending.timer = self._loop.call_later(
            seconds, self._pool.cancel, exchange, f"no answer in {seconds:g} s"
        )

    def _answered(self, sending: _Sending, exchange: Exchange) -> None:
        self._in_flight.discard(sending)
        if sending.timer is not None:
            sending.timer.cancel()
        if self._will_retry(sending, exchange):
            return
        record = sending.record
        record.ended = exchange.ended - self._start
        if exchange.status:
            self.outcome.statuses[exchange.status] += 1
        answer = read_exchange(exchange, self._start)
        fill_record(record, answer)
        if self._count_tokens is not None and answer.source in BY_GUESS:
            self._to_recount.append((record, exchange, answer.source))
        if not record.cut:
            record.error = answer.error
            self._num_ended += 1
            self._num_failed += record.error is not None
            self._num_tokens += record.num_output_tokens
            if record.error is None and len(self._first_latencies) < 64:
                self._first_latencies.append(record.ended - record.sent)
        if record.is_complete:
            self.outcome.sources[answer.source] += 1
            self.outcome.num_short += answer.num_tokens < sending.request.num_output_tokens
        self._go_on(sending, answer, exchange.ended)

    def _will_retry(self, sending: _Sending, exchange: Exchange) -> bool:
        if exchange.status not in (429, 503) or not self._options.obey_retry_after:
            return False
        after = exchange.headers.get("retry-after", "")
        if not after.isdecimal() or self._stopped:
            return False
        self.outcome.num_retried += 1
        self._in_flight.add(sending)  # it is still waited for
        wait = min(float(after), MAX_RETRY_SECONDS)
        self._pacer.at(time.monotonic() + wait, lambda: self._send_again(sending))
        return True

    def _send_again(self, sending: _Sending) -> None:
        if not sending.record.cut:
            self._send(sending)

    def _go_on(self, sending: _Sending, answer: Answer, now: float) -> None:
        """The turns that follow, or the next session; and who waits for a place."""
        request, record = sending.request, sending.record
        self._sizes[request.session] -= 1
        followers = self._followers.get(request.index, ())
        if record.is_complete and not self._stopped:
            for one in followers:
                history = self._prompts.after(sending.prompt, answer.content)
                self._plan(one, now + one.at, history)
        elif not record.cut and not self._stopped:
            for one in followers:
                self._drop(one, now + one.at)
        if self._closed and not self._sizes[request.session] and self._firsts:
            self._plan(self._firsts.popleft(), now)
        cap = self._options.max_concurrency
        while self._waiting and cap is not None and len(self._in_flight) < cap:
            after = self._waiting.popleft()
            after.due = now
            self._send(after)
        self._end_if_over()

    def _drop(self, request: PlannedRequest, when: float) -> None:
        """A turn whose conversation broke off, and all that follow it: failures of the server."""
        record = self._record(request, when)
        record.error = NOT_SENT
        self.outcome.records.append(record)
        self._sizes[request.session] -= 1
        self._num_ended += 1
        self._num_failed += 1
        self._num_due += 1
        for one in self._followers.get(request.index, ()):
            self._drop(one, when + one.at)

    def _end_if_over(self) -> None:
        busy = self._in_flight or self._waiting or self._num_pending or self._firsts
        if not busy and not self._over.done():
            self._over.set_result(None)

    def _sample(self) -> None:
        if self._over.done():
            return
        self._pacer.at(self._start + SAMPLE_SECONDS * (len(self._arrivals) + 2), self._sample)
        self._arrivals.append(self._num_due)
        self._ends.append(self._num_ended)
        if self._progress is not None and len(self._arrivals) % 5 == 0:
            self._progress(self._state())
        tests = self._options.stop_when_saturated and not self._closed and not self._stopped
        if tests and len(self._arrivals) % SAMPLES_A_TEST == 0:
            found = find_saturation(
                self._arrivals, self._ends, SAMPLE_SECONDS, self._first_latencies
            )
            if found is not None:
                self.outcome.saturation = found
                self.stop()

    def _state(self) -> LoadProgress:
        return LoadProgress(
            elapsed=time.monotonic() - self._start,
            num_due=self._num_due,
            num_ended=self._num_ended,
            num_failed=self._num_failed,
            num_planned=len(self._workload.requests),
            in_flight=len(self._in_flight) + len(self._waiting),
            num_tokens=self._num_tokens,
            last_due=self._workload.duration,
        )
