"""One model in one weight format on trimtab's engine: streams that begin together, prompts alone,
requests that come as they come, and how busy the device is in a step of decodes.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np

from gpu.busy import busy_share
from gpu.context import Context
from gpu.executors import blocks_for, open_engine, open_executor, random_checkpoint
from gpu.limits import Rates, decode_cost, prefill_cost
from gpu.shapes import CASES, PREFILLS, TINY_CASES, TINY_PREFILLS, Case
from gpu.streams import Driver, Run, decode_of, latencies
from gpu.timing import host_seconds, median, spread
from trimtab.workloads.arrivals import POISSON

ROUNDS = 3
LOAD_SHARE = 0.7  # of the requests a second that the streams at once were served with
LOAD_SECONDS = 6.0
SLOWER = 3.0  # than the limit: what a case is expected to take before it was seen
BUSY_STREAMS = (1, 64)


def run(context: Context) -> None:
    settings, shape = context.settings, context.arguments["shape"]
    weights = context.arguments["weights"]
    cases = TINY_CASES if settings.tiny else CASES
    prefills = TINY_PREFILLS if settings.tiny else PREFILLS
    busy = (1, 4) if settings.tiny else BUSY_STREAMS
    load = cases[1] if settings.tiny else Case(64, 1024, 64)
    context.plan(
        [
            "load",
            *(case.name for case in cases),
            *(f"prefill {length}" for length in prefills),
            *(f"busy {streams}" for streams in busy),
            "open loop",
        ]
    )
    checkpoint = random_checkpoint(settings, shape, weights)
    opened: list[Any] = []
    seconds = host_seconds(
        lambda: opened.append(
            open_executor(settings, checkpoint, _blocks(context, cases), max_context=0)
        ),
        settings.device,
    )
    checkpoint.close()
    executor = opened[0]
    capacity = executor.capacity
    context.result(
        "load",
        seconds=seconds,
        kv_tokens=capacity.num_tokens,
        weight_bytes=getattr(executor, "weight_bytes", None),
        executor=executor.description,
    )
    subject = Subject(context, open_engine(settings, executor), weights, checkpoint.group_size)
    fitting = []
    for case in cases:
        if case.num_tokens + 16 * case.streams > capacity.num_tokens:
            context.leave_out(
                case.name, f"needs {case.num_tokens} KV tokens, there are {capacity.num_tokens}"
            )
        else:
            fitting.append(case)
    # The first round of everything before the second of anything: time may end.
    for number in range(1 if settings.tiny else ROUNDS):
        for case in fitting:
            subject.measure_case(case, number)
        for length in prefills:
            subject.measure_prefill(length, number)
        if number == 0:
            for streams in busy:
                subject.measure_busy(streams)
            subject.measure_load(load)
    subject.driver.engine.close()


def _blocks(context: Context, cases: tuple[Case, ...]) -> int:
    """On a CPU what the cases need; on a GPU what fits, 0, so that the executor decides."""
    return 0 if context.settings.device == "cuda" else blocks_for(cases)


class Subject:
    """An engine under measurement, with all samples so far."""

    def __init__(self, context: Context, engine: Any, weights: str, group_size: int) -> None:
        self.context = context
        self.driver = Driver(engine, context.settings.seed)
        self.spec = engine.executor.spec
        self.weights = weights
        self.group_size = group_size
        self.rates = Rates(*(context.roofline(name) for name in ("copy", "bf16", "fp8")))
        self.samples: dict[str, list[dict[str, float]]] = defaultdict(list)
        self.failed: set[str] = set()
        self._warm: set[Any] = set()

    def measure_case(self, case: Case, number: int) -> None:
        """Round `number` of it: later ones only if there is time, without a word."""
        expected = self.expected(case)
        if case.name in self.failed or (number and self.context.left() < 1.3 * expected):
            return
        if not self.context.has_time(case.name, expected):
            return

        def once() -> dict[str, Any]:
            self._warm_up(case)
            sample = self._sample(self.driver.offline(case), case)
            self.samples[case.name].append(sample)
            return _merged(self.samples[case.name])

        if not self.context.attempt(case.name, once):
            self.failed.add(case.name)

    def measure_prefill(self, length: int, number: int) -> None:
        name = f"prefill {length}"
        ideal = self.ideal_prefill(length)
        expected = 0.2 + SLOWER * 2 * (ideal or 0.0)
        if name in self.failed or (number and self.context.left() < expected):
            return
        if not self.context.has_time(name, expected):
            return

        def once() -> dict[str, Any]:
            if name not in self._warm:
                self.driver.offline(Case(1, length, 1))
                self._warm.add(name)
            run = self.driver.offline(Case(1, length, 1))
            sample = {"seconds": run.seconds, "tokens_per_s": length / run.seconds}
            if ideal is not None:
                sample["of_limit"] = ideal / run.seconds
            self.samples[name].append(sample)
            return _merged(self.samples[name])

        if not self.context.attempt(name, once):
            self.failed.add(name)

    def measure_busy(self, streams: int) -> None:
        name = f"busy {streams}"
        if self.context.has_time(name, 3.0 if self.context.settings.device == "cuda" else 0.5):
            self.context.attempt(name, lambda: busy_share(self.driver, streams, self.context))

    def measure_load(self, case: Case) -> None:
        """Poisson arrivals of requests of the kind of `case`, at a share of its throughput."""
        seen = self.samples.get(case.name)
        if not seen:
            self.context.leave_out("open loop", f"{case.name} was not measured: no rate to take")
            return
        rate = LOAD_SHARE * case.streams / median([one["seconds"] for one in seen])
        seconds = LOAD_SECONDS if not self.context.settings.tiny else 1.0
        if not self.context.has_time("open loop", 1.5 * seconds):
            return

        def once() -> dict[str, Any]:
            count = max(4, round(rate * seconds))
            due = POISSON.times(np.random.default_rng(self.context.settings.seed), count, seconds)
            run = self.driver.run(due, case.prompt, case.output, lambda: self.context.left() < 1.0)
            ended = sum(len(stream.times) == case.output for stream in run.streams)
            values: dict[str, Any] = {
                "rate": rate,
                "arrivals": f"Poisson, {count} in {seconds:g} s",
                "prompt": case.prompt,
                "output": case.output,
                "ended": ended,
                "tokens_per_s": run.num_tokens / run.seconds,
            }
            for kind, found in latencies(run).items():
                for percent in (50, 99) if found else ():
                    values[f"{kind}_p{percent}_s"] = float(np.percentile(found, percent))
            if ended < count:
                values["note"] = f"{count - ended} of {count} had not ended when time did"
            return values

        self.context.attempt("open loop", once)

    def expected(self, case: Case) -> float:
        """Seconds, the warm-up included."""
        seen = self.samples.get(case.name)
        if seen:
            return max(one["seconds"] for one in seen)
        step = self._ideal_decode(case.streams, case.prompt)
        prompt = self.ideal_prefill(case.prompt)
        if step is None or prompt is None:
            return 0.5
        return 0.5 + SLOWER * (case.output * step + (case.streams + 1) * prompt)

    def ideal_prefill(self, length: int) -> float | None:
        cost = prefill_cost(self.spec, self.weights, self.group_size, length)
        return cost.seconds(self.rates, self.weights)

    def _ideal_decode(self, streams: int, context: float) -> float | None:
        cost = decode_cost(self.spec, self.weights, self.group_size, streams, context)
        return cost.seconds(self.rates, self.weights)

    def _warm_up(self, case: Case) -> None:
        """Shapes that were not seen yet: as many streams, and a prompt as long."""
        for one in (Case(case.streams, 8, 4), Case(1, case.prompt, 2)):
            if one not in self._warm:
                self._warm.add(one)
                self.driver.offline(one)

    def _sample(self, run: Run, case: Case) -> dict[str, float]:
        sample = {
            "seconds": run.seconds,
            "tokens_per_s": run.num_tokens / run.seconds,
            "first_tokens_s": max(stream.times[0] for stream in run.streams),
        }
        decode = decode_of(run, case)
        if decode is not None:
            step = median(decode.step_seconds)
            sample |= {"decode_tokens_per_s": decode.tokens_per_s, "step_s": step}
            ideal = self._ideal_decode(case.streams, decode.context)
            if ideal is not None:
                sample |= {"limit_step_s": ideal, "of_limit": ideal / step}
            cost = decode_cost(
                self.spec, self.weights, self.group_size, case.streams, decode.context
            )
            sample["bytes_per_s"] = cost.num_bytes / step
        return sample


def _merged(samples: list[dict[str, float]]) -> dict[str, Any]:
    """Of each number, the median of the rounds; of those that are shown, also the spread."""
    keys = set.intersection(*(set(sample) for sample in samples))
    values: dict[str, Any] = {
        key: median([sample[key] for sample in samples]) for key in sorted(keys)
    }
    values["rounds"] = len(samples)
    for key in ("tokens_per_s", "step_s"):
        if key in keys and len(samples) > 1:
            values[f"{key}_spread"] = spread([sample[key] for sample in samples])
    return values
