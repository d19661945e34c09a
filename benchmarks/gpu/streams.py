"""Streams of random prompts through an engine, and when each of their tokens came."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from gpu.shapes import Case

if TYPE_CHECKING:
    from trimtab.engine.client import EngineRequest
    from trimtab.engine.engine import Engine


@dataclass
class Stream:
    due: float  # when it was to begin, in seconds since the run did
    times: list[float] = field(default_factory=list)  # of each token


@dataclass
class Run:
    streams: list[Stream]
    steps: list[tuple[float, int]]  # when each step that gave tokens was over, and how many
    seconds: float

    @property
    def num_tokens(self) -> int:
        return sum(len(stream.times) for stream in self.streams)


class Driver:
    """Gives an engine requests and steps it. Greedy, end tokens ignored, prompts never repeated."""

    def __init__(self, engine: Engine, seed: int = 0) -> None:
        self.engine = engine
        self._random = np.random.default_rng(seed)
        self._serial = 0

    def offline(self, case: Case) -> Run:
        """All of them at once. RuntimeError if one fails."""
        return self.run([0.0] * case.streams, case.prompt, case.output)

    def run(
        self,
        due: Sequence[float],
        prompt: int,
        output: int,
        give_up: Callable[[], bool] = lambda: False,
    ) -> Run:
        """One request at each of `due`, ascending seconds. What `give_up` ends is aborted."""
        engine = self.engine
        requests = [self.request(ids, output) for ids in self.prompts(len(due), prompt)]
        streams = {
            request.request_id: Stream(when) for request, when in zip(requests, due, strict=True)
        }
        steps = []
        added = finished = 0
        start = time.perf_counter()
        while finished < len(requests):
            now = time.perf_counter() - start
            while added < len(requests) and due[added] <= now:
                engine.add_request(requests[added])
                added += 1
            if give_up():
                for request in requests[:added]:
                    engine.abort(request.request_id)
                break
            if not engine.num_live_requests:
                time.sleep(max(0.0, min(due[added] - now, 0.001)))
                continue
            outputs = engine.step()
            now = time.perf_counter() - start
            count = 0
            for one in outputs:
                if one.finish_reason == "error":
                    raise RuntimeError(one.error)
                streams[one.request_id].times += [now] * len(one.token_ids)
                count += len(one.token_ids)
                finished += one.finish_reason is not None
            if count:
                steps.append((now, count))
        return Run(list(streams.values()), steps, time.perf_counter() - start)

    def prompts(self, count: int, length: int) -> list[list[int]]:
        vocabulary = self.engine.info.vocab_size
        drawn: list[list[int]] = self._random.integers(0, vocabulary, (count, length)).tolist()
        return drawn

    def request(self, ids: list[int], output: int) -> EngineRequest:
        from trimtab.engine.client import EngineRequest
        from trimtab.engine.sampling_params import SamplingParams

        self._serial += 1
        params = SamplingParams(max_tokens=output, temperature=0, ignore_eos=True)
        return EngineRequest(f"check-{self._serial}", ids, params)


@dataclass(frozen=True)
class Decode:
    """What happened while all streams of a run decoded, and nothing else."""

    step_seconds: list[float]
    tokens_per_s: float
    context: float  # tokens behind a stream, on average


def decode_of(run: Run, case: Case) -> Decode | None:
    """None if the first stream had ended before the last one began."""
    begin = max(stream.times[0] for stream in run.streams)
    end = min(stream.times[-1] for stream in run.streams)
    inside = [(when, count) for when, count in run.steps if begin <= when <= end]
    gaps = [later - earlier for (earlier, _), (later, _) in pairwise(inside)]
    if len(gaps) < 2:
        return None
    tokens = sum(count for _, count in inside[1:])
    before = [sum(when <= begin for when in stream.times) for stream in run.streams]
    middle = sum(before) / len(before) + len(gaps) / 2
    return Decode(gaps, tokens / (inside[-1][0] - inside[0][0]), case.prompt + middle)


def latencies(run: Run) -> dict[str, list[float]]:
    """Seconds: to the first token of each stream since it was due, and between its tokens."""
    between: list[float] = []
    for stream in run.streams:
        between += [b - a for a, b in pairwise(stream.times)]
    return {
        "ttft": [stream.times[0] - stream.due for stream in run.streams if stream.times],
        "itl": between,
    }
