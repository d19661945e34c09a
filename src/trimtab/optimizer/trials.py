"""The trials of a run, each looked up in the journal first: quality, step times, loads."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from trimtab.bench.load import run_load
from trimtab.bench.load_state import LoadOptions
from trimtab.bench.load_target import Target
from trimtab.checkpoints import open_checkpoint
from trimtab.checkpoints.base import Checkpoint
from trimtab.config import ExecutorConfig, SchedulerConfig
from trimtab.errors import UserError
from trimtab.executors.devices import THE_CPU, DeviceFacts
from trimtab.executors.placement import Placement, placement_of
from trimtab.optimizer.artifacts import Artifact, find_or_build, scheduler_for
from trimtab.optimizer.fingerprint import Fingerprint, versions
from trimtab.optimizer.journal import Journal
from trimtab.optimizer.measure import LazyServer
from trimtab.optimizer.order import Order
from trimtab.optimizer.plan import Plan, now
from trimtab.optimizer.points import LoadPoint, Work, load_point, void
from trimtab.optimizer.predict import Known
from trimtab.optimizer.quality import QualityResult, QualityTexts, measure_quality
from trimtab.optimizer.report import formatting
from trimtab.optimizer.served import running_server
from trimtab.optimizer.space import Candidate
from trimtab.optimizer.stages import Progress
from trimtab.optimizer.trial import run_trial
from trimtab.optimizer.variants import Variant
from trimtab.workloads.make import make_workload
from trimtab.workloads.requests import Piece, Workload
from trimtab.workloads.texts import PieceTexts

WARM_UP = 4  # requests
SAMPLE_PROMPTS = 24  # on which guessing is tried
REQUEST_SECONDS = 120.0
VOID_TRIES = 3  # of a load whose client was the limit
SEARCH_SEEDS = 1000  # of probes; heats, simulations and repeats draw from behind them
HEAT_SEEDS = 125_000
SIMULATED_SEEDS = 250_000
REPEAT_SEEDS = 500_000


class Trials:
    """Everything that takes time; nothing that was done before under the same conditions."""

    def __init__(
        self,
        order: Order,
        journal: Journal,
        model_hash: str,
        machine: Fingerprint,
        base: ExecutorConfig,
        max_context: int,
        texts: PieceTexts,
        progress: Progress,
        device: DeviceFacts = THE_CPU,
        placement: Placement | None = None,
    ) -> None:
        """`base`: what no candidate changes; `max_context` is the effective one. `placement`: asked
        about whatever is compared with something else."""
        self.device = device
        self._placement = placement or placement_of(1, 0.0, progress)
        self.order = order
        self.base = base
        self._journal = journal
        self._machine = machine
        self._max_context = max_context
        self._texts = texts
        self._progress = progress
        self.model_hash = model_hash
        self._artifacts: dict[Variant, Artifact] = {}
        self._not_built: dict[Variant, str] = {}  # as stored -> why not
        self._num_loads = self._num_samples = 0
        self._about: dict[str, Any] = {
            "model": model_hash,
            "machine": machine.as_json(),
            "versions": versions(device),
            "base": asdict(base),
        }

    @property
    def apart(self) -> float:
        """In which share of the time of all loads the cores lay apart."""
        return self._placement.mean_apart

    def artifact(self, variant: Variant, seconds: float | None = None) -> Artifact:
        """What is to be loaded. UserError if it cannot be built, at once the second time."""
        known = self._not_built.get(variant.stored)
        if known is not None:
            raise UserError(known)
        if variant not in self._artifacts:
            try:
                self._artifacts[variant] = find_or_build(
                    self.order.model, variant, self._progress, seconds=seconds
                )
            except UserError as error:
                self._not_built[variant.stored] = str(error)
                raise
        return self._artifacts[variant]

    def built(self, variant: Variant) -> Checkpoint | None:
        """What was made of the model for it, in this run."""
        artifact = self._artifacts.get(variant)
        return open_checkpoint(artifact.path) if artifact and artifact.is_built else None

    def quality(
        self, variant: Variant, texts: QualityTexts, seconds: float, ceiling: int
    ) -> QualityResult:
        need = self.order.need.quality
        key = self._about | {
            "variant": variant.as_json(),
            "need": need.as_text(),
            "texts": [str(path) for path in (*texts.texts, texts.tasks)],
            "ceiling": ceiling,
        }
        known = self._journal.get("quality", key)
        if known is not None:
            return QualityResult.from_json(known)
        result = measure_quality(
            self.order.model,
            variant,
            self.artifact(variant, seconds),
            need,
            texts,
            ceiling=ceiling,
            seed=self.order.seed,
            device=self.device,
            seconds=max(seconds, 30.0),
            progress=self._progress,
        )
        self._journal.put("quality", key, result.as_json())
        return result

    def calibration(
        self, candidate: Candidate, seconds: float, longest: int, max_batch_tokens: int
    ) -> tuple[Known | None, str | None]:
        """Of the candidate's variant and threads; or why there is none."""
        config = candidate.executor(self.base)
        key = self._about | {
            "executor": asdict(config),
            "variant": candidate.variant.as_json(),
            "longest": longest,
            "max_batch_tokens": max_batch_tokens,
        }
        known = self._journal.get("calibration", key)
        if known is None:
            outcome = run_trial(
                "trimtab.optimizer.predict:calibration_trial",
                {
                    "model": str(self.artifact(candidate.variant).path),
                    "executor": asdict(config),
                    "seconds": seconds,
                    "longest": longest,
                    "max_batch_tokens": max_batch_tokens,
                    "shortest_handoff": self._placement.shortest,
                    "prompts": self._sample_prompts(),
                    "guessing": asdict(self._guessing(candidate)),
                },
                seconds=60.0 + 10 * seconds,
            )
            known = {"value": outcome.result, "failed": outcome.failed}
            self._journal.put("calibration", key, known)
        if known["failed"] is not None:
            return None, known["failed"]
        return Known.from_json(known["value"]), None

    def _guessing(self, candidate: Candidate) -> SchedulerConfig:
        artifact = self.artifact(candidate.variant)
        return scheduler_for(self.order.model, artifact, SchedulerConfig(max_num_requests=4))

    def _sample_prompts(self) -> list[tuple[str, int]]:
        """A few of the workload's, as texts, and the tokens of their answers: others each time."""
        self._num_samples += 1
        sample = self.workload(1.0, self.order.seed + self._num_samples, 4.0 * SAMPLE_PROMPTS)
        prompts = []
        for request in sample.requests:
            if request.follows is None and request.messages is None:
                text = request.text or self._texts.prompt(request.pieces).text
                prompts.append((text, request.num_output_tokens))
        return prompts[:SAMPLE_PROMPTS]

    def workload(self, rate: float, seed: int, seconds: float, **changes: Any) -> Workload:
        """Of the need, at a rate, for so long. `changes`: other arguments of `make_workload`."""
        return make_workload(
            self.order.need.workload,
            rate=rate,
            duration=seconds,
            seed=seed,
            max_context=self._max_context,
            **changes,
        )

    def server(self, candidate: Candidate, directory: Path) -> LazyServer:
        """Serves a plan file of the candidate, written into `directory`."""

        def start() -> Any:
            path = directory / "trial.yaml"
            self.plan(candidate).write(path)
            return running_server(path, on_gpu=self.base.device == "cuda")

        return LazyServer(start)

    def plan(self, candidate: Candidate) -> Plan:
        artifact = self.artifact(candidate.variant)
        return Plan(
            model=self.order.model,
            model_hash=self.model_hash,
            variant=candidate.variant,
            executor=candidate.executor(self.base),
            scheduler=candidate.scheduler,
            machine=self._machine,
            artifact_hash=artifact.hash if artifact.is_built else None,
            versions=versions(self.device),
            created=now(),
        )

    def load(
        self,
        candidate: Candidate,
        seconds_of: Any,
        server: LazyServer,
        rate: float,
        seed: int,
        is_compared: bool = True,
    ) -> LoadPoint:
        """One load on the candidate's server. `seconds_of`: rate -> length of its arrivals.
        `is_compared`: with others, or with what was predicted; not what users will meet."""
        seconds = seconds_of(rate)
        need = self.order.need
        key = self._about | {
            "candidate": [
                candidate.variant.as_json(),
                asdict(candidate.scheduler),
                candidate.threads,
                candidate.memory_share,
            ],
            "workload": need.workload,
            "slo": need.slo.as_text(),
            "rate": rate,
            "seed": seed,
            "seconds": seconds,
        }
        known = self._journal.get("load", key)
        if known is not None:
            return LoadPoint.from_json(known)
        for _ in range(VOID_TRIES):
            server.get()
            once = partial(self._load_once, server, rate, seed, seconds)
            watch = self._placement.measured if is_compared else self._placement.watched
            point, apart = watch(once)
            point = replace(point, apart=apart)
            self._progress(_load_line(candidate, point))
            if point.valid:
                break
        self._journal.put("load", key, point.as_json())
        return point

    def _load_once(self, server: LazyServer, rate: float, seed: int, seconds: float) -> LoadPoint:
        """The same lengths and arrivals each time, in other words: no cache may have them."""
        need = self.order.need
        self._num_loads += 1
        salt = f"{self._num_loads}/"

        def make_text(pieces: Sequence[Piece]) -> str:
            return self._texts.prompt([replace(one, key=salt + one.key) for one in pieces]).text

        before: list[Work] = []
        run = run_load(
            Target(server.get().url, route="completions"),
            self.workload(rate, seed, seconds),
            make_text=make_text,
            slo=need.slo,
            options=LoadOptions(
                warm_up=WARM_UP,
                request_seconds=REQUEST_SECONDS,
                on_start=lambda: before.append(server.get().work()),
            ),
        )
        if run.interrupted:
            raise KeyboardInterrupt  # what is in the journal is kept: --resume goes on
        # On a GPU the engine plans while a step runs: its parts do not add up.
        work = server.get().work().since(before[0]) if self.device.device == "cpu" else None
        point = load_point(rate, seed, seconds, run.records, need.slo, work)
        return point if run.valid else void(point, run.why)

    def loader(self, candidate: Candidate, seconds_of: Any) -> Any:
        return partial(self.load, candidate, seconds_of)


def search_seeds(seed: int) -> Iterator[int]:
    return itertools.count(seed * 1_000_003 + SEARCH_SEEDS)


def heat_seeds(seed: int) -> Iterator[int]:
    """Of loads that are the same for all candidates."""
    return itertools.count(seed * 1_000_003 + HEAT_SEEDS)


def repeat_seeds(seed: int) -> Iterator[int]:
    """Fresh ones: no load of the search had them."""
    return itertools.count(seed * 1_000_003 + REPEAT_SEEDS)


def simulated_seeds(seed: int) -> range:
    """Of loads that are simulated and never run."""
    first = seed * 1_000_003 + SIMULATED_SEEDS
    return range(first, first + REPEAT_SEEDS - SIMULATED_SEEDS)


def _load_line(candidate: Candidate, point: LoadPoint) -> str:
    verdict = "holds" if point.met else "does not hold"
    if not point.valid:
        verdict = f"void ({point.why}):"
    p95s = (point.latencies[name]["p95"] for name in ("ttft", "itl"))
    ttft, itl = (formatting.optional(value, formatting.seconds) for value in p95s)
    figures = f"TTFT p95 {ttft}, ITL p95 {itl}"
    return f"  {candidate.label}: {verdict} {point.rate:.3g} requests/s ({figures})"
