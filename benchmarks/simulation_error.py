"""How far simulated loads are from real ones on this machine.

    python benchmarks/simulation_error.py builtin
    python benchmarks/simulation_error.py MODEL --weights int8 --rates 0.3,0.6,0.9 --out FILE

Calibrates, then runs the same workloads through a real engine in this process (AsyncEngine, no
HTTP) and through the simulator, and compares. Nothing of these loads is known to the calibration.
Repeats are interleaved: rounds of the calibration, every load once, and again; medians count.

On a machine that others use, its speed changes from load to load: so each load is also predicted
`at its level`, with step times multiplied by the executor's own seconds in that load over those
predicted for the very same steps, one number for small steps and one for larger ones. The first
figure says how good the prediction was for this machine in those minutes; the second, how good it
is but for the machine's changes.
Where others never leave the machine alone, `--clock processor` measures steps, overheads and loads
in the processor time of one thread, which is what wall time is on an idle machine.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import math
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trimtab.bench.machine import cpu_name
from trimtab.checkpoints import open_checkpoint, resolve_model
from trimtab.config import ExecutorConfig, SchedulerConfig, parse_weights
from trimtab.engine.async_engine import AsyncEngine
from trimtab.engine.client import EngineRequest
from trimtab.engine.engine import Engine
from trimtab.engine.sampling_params import SamplingParams
from trimtab.errors import TrimtabError
from trimtab.executors.base import Executor, StepBatch, StepResult
from trimtab.executors.cpu import CpuExecutor
from trimtab.simulator.calibrate import CalibrationPlan, StepMeasurement
from trimtab.simulator.overheads import Overheads, measure_engine_overheads, measure_overheads
from trimtab.simulator.simulate import SMALL_ROWS, SimulatedServer, simulate
from trimtab.simulator.step_shape import Reach, StepShape
from trimtab.simulator.timetable import Timetable
from trimtab.simulator.tokens import prompt_ids
from trimtab.workloads.make import make_workload
from trimtab.workloads.records import RequestRecord
from trimtab.workloads.requests import PlannedRequest, Workload

METRICS = ("itl", "throughput", "e2e", "ttft_p50")
ASKED = {"itl": 0.08, "throughput": 0.08, "e2e": 0.10, "ttft_p50": 0.15}


class Watched:
    """The executor, lent to an engine; keeps the shape and the seconds of each step."""

    def __init__(self, executor: Executor, clock: Callable[[], float]) -> None:
        self._executor = executor
        self._clock = clock
        self._reach = Reach.of(executor.spec)
        self.steps: list[tuple[StepShape, float]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._executor, name)

    def execute(self, batch: StepBatch) -> StepResult:
        start = self._clock()
        result = self._executor.execute(batch)
        seconds = self._clock() - start
        self.steps.append((self._shape(batch), seconds))
        return result

    def close(self) -> None:
        pass

    def _shape(self, batch: StepBatch) -> StepShape:
        starts = batch.seq_starts.tolist()
        spans = [
            (int(batch.positions[first]), last - first)
            for first, last in itertools.pairwise(starts)
        ]
        return StepShape(
            batch.num_rows,
            batch.num_seqs,
            sum(self._reach.attended(*span) for span in spans),
            sum(self._reach.context(*span) for span in spans),
            len(batch.logit_rows),
        )


class RealLoad:
    """Open or closed loop on one AsyncEngine. Its timers are a millisecond late, which is the
    client's and not the engine's: latencies count from when a request is sent."""

    def __init__(self, client: AsyncEngine, workload: Workload, vocab_size: int) -> None:
        self.client = client
        self.workload = workload
        self.vocab_size = vocab_size
        self.records: list[RequestRecord] = []
        self.followers: dict[int, list[PlannedRequest]] = {}
        for one in workload.requests:
            if one.follows is not None:
                self.followers.setdefault(one.follows, []).append(one)
        self.start = 0.0

    async def run(self) -> list[RequestRecord]:
        firsts = [one for one in self.workload.requests if one.follows is None]
        self.start = time.perf_counter()
        if self.workload.concurrency is None:
            await asyncio.gather(*(self._session(one, one.at) for one in firsts))
        else:
            queue = iter(firsts)

            async def worker() -> None:
                for one in queue:
                    await self._session(one, time.perf_counter() - self.start)

            await asyncio.gather(*(worker() for _ in range(self.workload.concurrency)))
        return sorted(self.records, key=lambda record: record.index)

    async def _session(self, planned: PlannedRequest, at: float) -> None:
        before: list[int] = []
        todo = [planned]
        while todo:
            planned = todo.pop(0)
            await asyncio.sleep(max(0.0, self.start + at - time.perf_counter()))
            record, before = await self._turn(planned, at, before)
            self.records.append(record)
            if record.error is not None:
                return
            todo = self.followers.get(planned.index, [])[:1]
            at = record.ended + (todo[0].at if todo else 0.0)

    async def _turn(
        self, planned: PlannedRequest, at: float, before: list[int]
    ) -> tuple[RequestRecord, list[int]]:
        prompt = [one % self.vocab_size for one in prompt_ids(planned, before)]
        record = RequestRecord(planned.index, at, num_prompt_tokens=len(prompt))
        params = SamplingParams(
            max_tokens=planned.num_output_tokens, temperature=0, ignore_eos=True
        )
        answer: list[int] = []
        record.sent = time.perf_counter() - self.start
        try:
            request = EngineRequest(f"load-{planned.index}", prompt, params)
            async for output in self.client.generate(request):
                record.token_times.append(time.perf_counter() - self.start)
                record.token_counts.append(len(output.token_ids))
                record.num_cached_tokens = output.num_cached_tokens
                answer += output.token_ids
        except TrimtabError as error:
            record.error = str(error)
        record.ended = time.perf_counter() - self.start
        record.num_output_tokens = len(answer)
        return record, prompt + answer


class ProcessorLoad:
    """The same loop around an Engine that is stepped here, on the clock of this thread's processor
    time: what else the machine does takes none of it. Needs an executor of one thread, which runs
    in the caller's."""

    def __init__(self, engine: Engine, workload: Workload, vocab_size: int) -> None:
        self.engine = engine
        self.vocab_size = vocab_size
        self.timetable = Timetable(workload)
        self.live: dict[str, tuple[PlannedRequest, RequestRecord, list[int], list[int]]] = {}
        self.texts: dict[int, list[int]] = {}
        self.records: list[RequestRecord] = []
        self.now = 0.0

    def run(self) -> list[RequestRecord]:
        inbox: list[EngineRequest] = []
        while True:
            inbox += self._arrived(self.now)
            for request in inbox:
                self.engine.add_request(request)
            inbox.clear()
            if not self.live:
                if self.timetable.next_time == math.inf:
                    return sorted(self.records, key=lambda record: record.index)
                self.now = self.timetable.next_time
                continue
            start = time.thread_time()
            outputs = self.engine.step()
            self.now += time.thread_time() - start
            inbox += self._arrived(math.nextafter(self.now, 0.0))
            for output in outputs:
                planned, record, prompt, answer = self.live[output.request_id]
                record.token_times.append(self.now)
                record.token_counts.append(len(output.token_ids))
                answer += output.token_ids
                if output.finish_reason is not None:
                    self._end(planned, record, prompt + answer, output.num_cached_tokens)

    def _arrived(self, until: float) -> list[EngineRequest]:
        requests = []
        while self.timetable.next_time <= until:
            at, planned = self.timetable.pop()
            before = self.texts.pop(planned.follows, []) if planned.follows is not None else []
            prompt = [one % self.vocab_size for one in prompt_ids(planned, before)]
            record = RequestRecord(planned.index, at, sent=at, num_prompt_tokens=len(prompt))
            self.live[f"load-{planned.index}"] = (planned, record, prompt, [])
            params = SamplingParams(
                max_tokens=planned.num_output_tokens, temperature=0, ignore_eos=True
            )
            requests.append(EngineRequest(f"load-{planned.index}", prompt, params))
        return requests

    def _end(
        self, planned: PlannedRequest, record: RequestRecord, text: list[int], num_cached: int
    ) -> None:
        del self.live[f"load-{planned.index}"]
        record.ended = self.now
        record.num_output_tokens = len(text) - record.num_prompt_tokens
        record.num_cached_tokens = num_cached
        self.texts[planned.index] = text
        self.records.append(record)
        self.timetable.ended(planned, self.now)


@dataclass(frozen=True)
class Outcome:
    itl: float  # seconds, mean over all gaps
    throughput: float  # output tokens a second, from the first schedule to the last token
    e2e: float  # seconds, mean
    ttft_p50: float
    ttft_p95: float
    itl_p95: float
    cached: float  # of prompt tokens
    errors: int

    @classmethod
    def of(cls, records: list[RequestRecord]) -> Outcome:
        done = [record for record in records if record.is_complete]
        gaps = sorted(gap for record in done for gap in record.itls())
        ttfts = sorted(record.ttft_service for record in done)
        begin = min(record.scheduled for record in done)
        end = max(record.ended for record in done)
        return cls(
            statistics.fmean(gaps),
            sum(record.num_output_tokens for record in done) / (end - begin),
            statistics.fmean(record.e2e_service for record in done),
            statistics.median(ttfts),
            ttfts[math.ceil(0.95 * len(ttfts)) - 1],
            gaps[math.ceil(0.95 * len(gaps)) - 1],
            sum(r.num_cached_tokens for r in done) / sum(r.num_prompt_tokens for r in done),
            len(records) - len(done),
        )


def errors_of(predicted: Outcome, measured: Outcome) -> dict[str, float]:
    return {name: getattr(predicted, name) / getattr(measured, name) - 1 for name in METRICS}


async def measured_load(
    executor: Executor, scheduler: SchedulerConfig, workload: Workload
) -> tuple[list[RequestRecord], list[tuple[StepShape, float]], float]:
    """Records; steps; and seconds a step outside the executor while it was busy."""
    watched = Watched(executor, time.perf_counter)
    engine = Engine(watched, scheduler)
    client = AsyncEngine(engine)
    warm = EngineRequest("warm", list(range(32)), SamplingParams(max_tokens=4, temperature=0))
    async for _ in client.generate(warm):
        pass
    watched.steps.clear()
    before = await client.stats()
    records = await RealLoad(client, workload, executor.spec.vocab_size).run()
    stats = await client.stats()
    await client.close()
    parts = ("schedule_seconds", "build_seconds", "commit_seconds")
    outside = sum(getattr(stats, part) - getattr(before, part) for part in parts)
    return records, watched.steps, outside / max(1, stats.num_steps - before.num_steps)


def processor_load(
    executor: Executor, scheduler: SchedulerConfig, workload: Workload
) -> tuple[list[RequestRecord], list[tuple[StepShape, float]], float]:
    watched = Watched(executor, time.thread_time)
    engine = Engine(watched, scheduler)
    records = ProcessorLoad(engine, workload, executor.spec.vocab_size).run()
    stats = engine.stats()
    outside = stats.schedule_seconds + stats.build_seconds + stats.commit_seconds
    engine.close()
    return records, watched.steps, outside / stats.num_steps


def level_of(steps: list[tuple[StepShape, float]], server: SimulatedServer) -> tuple[float, float]:
    """The executor's seconds over those predicted for the same steps, of small ones (memory is what
    they wait for) and of larger ones (arithmetic); 1 if there are none."""
    taken, predicted = [0.0, 0.0], [0.0, 0.0]
    was_prompt = False
    for shape, seconds in steps:
        is_prompt = shape.rows > shape.sequences
        size = int(shape.rows > SMALL_ROWS)
        taken[size] += seconds
        predicted[size] += server.step_times.seconds(shape)
        if was_prompt and not is_prompt:
            predicted[size] += server.overheads.cold_executor
        was_prompt = is_prompt
    small, large = (t / p if p else 1.0 for t, p in zip(taken, predicted, strict=True))
    return small, large


@dataclass
class Case:
    """A load, and what the repeats of it gave."""

    workload: Workload
    outcomes: list[Outcome]
    steps: list[list[tuple[StepShape, float]]]
    load_averages: list[float]
    outside: list[float]

    def run(self, executor: CpuExecutor, scheduler: SchedulerConfig, clock: str) -> None:
        if clock == "wall":
            load = measured_load(executor, scheduler, self.workload)
            records, steps, outside = asyncio.run(load)
        else:
            records, steps, outside = processor_load(executor, scheduler, self.workload)
        self.outcomes.append(Outcome.of(records))
        self.steps.append(steps)
        self.outside.append(outside)
        self.load_averages.append(os.getloadavg()[0])

    @property
    def measured(self) -> Outcome:
        """The median of the repeats, metric by metric."""
        each = [outcome.__dict__ for outcome in self.outcomes]
        return Outcome(*(statistics.median(one[name] for one in each) for name in each[0]))

    def compared(self, server: SimulatedServer) -> dict[str, Any]:
        raw = simulate(server, self.workload)
        predicted = Outcome.of(raw.records)
        levels = [level_of(steps, server) for steps in self.steps]
        at_level = []  # each repeat beside a prediction at its own level
        for (small, large), outcome in zip(levels, self.outcomes, strict=True):
            levelled = replace(server, small_pace=small, large_pace=large)
            again = Outcome.of(simulate(levelled, self.workload).records)
            at_level.append(errors_of(again, outcome))
        return {
            "workload": self.workload.name,
            "rate": self.workload.rate,
            "concurrency": self.workload.concurrency,
            "seed": self.workload.seed,
            "requests": len(self.workload.requests),
            "repeats": len(self.outcomes),
            "load_averages": self.load_averages,
            "levels": levels,
            "steps": {
                "measured": [len(one) for one in self.steps],
                "predicted": raw.occupancy.num_steps,
            },
            "outside_seconds_a_step": self.outside,
            "busy_predicted": raw.occupancy.busy_share,
            "speed_up": raw.speed_up,
            "measured": self.measured.__dict__,
            "every_measured": [one.__dict__ for one in self.outcomes],
            "predicted": predicted.__dict__,
            "errors": errors_of(predicted, self.measured),
            "errors_at_level": {
                name: statistics.median(one[name] for one in at_level) for name in METRICS
            },
        }


def mean_errors(loads: list[dict[str, Any]], key: str) -> dict[str, float]:
    return {name: statistics.fmean(abs(one[key][name]) for one in loads) for name in METRICS}


def line(one: dict[str, Any]) -> str:
    cells = [f"{one['workload']:<10}", f"{one['rate'] or one['concurrency']:>6.3g}"]
    for name in METRICS:
        unit = 1.0 if name == "throughput" else 1e3
        cells.append(
            f"{name} {one['measured'][name] * unit:.4g}/{one['predicted'][name] * unit:.4g}"
            f" ({one['errors'][name]:+.0%}, {one['errors_at_level'][name]:+.0%})"
        )
    levels = ", ".join(f"{small:.2f}/{large:.2f}" for small, large in one["levels"])
    cells.append(f"levels {levels}")
    return "  ".join(cells)


def workloads(given: argparse.Namespace, executor: Executor) -> list[Workload]:
    offered: list[dict[str, Any]] = [
        {"rate": float(rate), "duration": given.duration}
        for rate in filter(None, given.rates.split(","))
    ]
    offered += [
        {"concurrency": int(one), "count": int(one) * given.each}
        for one in filter(None, given.concurrencies.split(","))
    ]
    return [
        make_workload(
            source,
            **offer,
            seed=given.seed + index,
            max_context=executor.spec.max_context,
            scale=given.scale,
        )
        for index, offer in enumerate(offered)
        for source in given.workloads.split(",")
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--weights", default="bf16")
    parser.add_argument("--rates", default="0.5,1,2,3", help="requests a second")
    parser.add_argument("--concurrencies", default="4", help="closed loops")
    parser.add_argument("--workloads", default="chat,agent")
    parser.add_argument("--duration", type=float, default=20.0)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--seconds", type=float, default=40.0, help="of calibration")
    parser.add_argument("--each", type=int, default=5, help="requests of each in a closed loop")
    parser.add_argument("--repeats", type=int, default=3, help="of every load, interleaved")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--max-context", type=int, default=0)
    parser.add_argument("--max-batch-tokens", type=int, default=512)
    parser.add_argument("--clock", choices=("wall", "processor"), default="wall")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    name, group = parse_weights(given.weights)
    threads = given.threads if given.clock == "wall" else 1
    config = ExecutorConfig(
        weights=name, group_size=group, threads=threads, max_context=given.max_context
    )
    executor = CpuExecutor(open_checkpoint(resolve_model(given.model), 0), config)
    scheduler = SchedulerConfig(speculative="off", max_batch_tokens=given.max_batch_tokens)
    cases = [Case(workload, [], [], [], []) for workload in workloads(given, executor)]
    plan = CalibrationPlan(seconds=given.seconds)
    clock = time.perf_counter if given.clock == "wall" else time.thread_time
    measurement = StepMeasurement(executor, scheduler, plan, clock)
    every_overheads = []
    for number in range(given.repeats):
        every_overheads.append(
            measure_overheads(executor)
            if given.clock == "wall"
            else measure_engine_overheads(executor, clock)
        )
        for _ in range(2 if number == 0 else 1):
            measurement.round()
        print(f"{measurement.state}, {every_overheads[-1]}, load {os.getloadavg()[0]:.1f}")
        for case in cases:
            case.run(executor, scheduler, given.clock)
            print(f"  {case.workload.name} {case.outcomes[-1]}", flush=True)
    times = measurement.fit()
    names = list(every_overheads[0].as_json())
    overheads = Overheads(
        *(statistics.median(getattr(one, name) for one in every_overheads) for name in names)
    )
    print(f"held out {times.errors.held_out:.1%}, interval {times.interval}, {overheads}")
    capacity, longest = executor.capacity, executor.spec.max_context
    server = SimulatedServer(
        times, scheduler, capacity.num_blocks, capacity.block_size, longest, overheads
    )
    loads = [case.compared(server) for case in cases]
    for one in loads:
        print(line(one))
    mean, at_level = mean_errors(loads, "errors"), mean_errors(loads, "errors_at_level")
    for metric in METRICS:
        print(
            f"{metric:<12} mean error {mean[metric]:.1%}, at the load's own level "
            f"{at_level[metric]:.1%}; asked {ASKED[metric]:.0%}"
        )
    if given.out:
        document = {
            "model": str(given.model),
            "executor": executor.description,
            "cpu": cpu_name(),
            "cores": os.cpu_count(),
            "step_times": times.as_json(),
            "overheads": overheads.as_json(),
            "scale": given.scale,
            "clock": given.clock,
            "mean_errors": mean,
            "mean_errors_at_level": at_level,
            "asked": ASKED,
            "loads": loads,
        }
        given.out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
