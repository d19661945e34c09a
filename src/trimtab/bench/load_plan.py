"""What `trimtab bench URL` does: a workload for this server, repeats with fresh prompts, the
highest rate that holds."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from trimtab.bench.http_stream import ConnectionPool
from trimtab.bench.load import LoadRun, in_fast_loop, run_load
from trimtab.bench.load_answer import CountTokens
from trimtab.bench.load_report import LoadReport, make_report
from trimtab.bench.load_state import LoadOptions, LoadProgress
from trimtab.bench.load_target import ServedModel, Target, parse_url, served_models
from trimtab.bench.self_check import SelfCheck
from trimtab.errors import CheckpointError, UserError
from trimtab.tokenization import Tokenizer
from trimtab.workloads.capacity import Capacity, highest_rate
from trimtab.workloads.make import make_workload
from trimtab.workloads.requests import Piece, Workload
from trimtab.workloads.slo import Slo
from trimtab.workloads.summary import summarize
from trimtab.workloads.texts import PieceTexts

UNCOUNTED_ROOM = 0.9  # of the context, where lengths are not counted by the model's tokenizer
CHAT_ROOM = 64  # tokens of a chat's template
REQUESTS_A_SECOND = 10  # of each session of a closed loop that ends by time, at most
MOST_REQUESTS = 20_000
PROBE_CONCURRENCY = 16
MAX_PROBES = 12
OVERLOAD_MARGIN = -0.5  # log(limit / observed) that a growing queue is worth at least
VOID_TRIES = 2

# (label, of a run) -> what to call while it goes on.
Watch = Callable[[str], "Callable[[LoadProgress], None] | None"]


@dataclass(frozen=True)
class LoadPlan:
    """`source` and the fields up to `burstiness` are those of `make_workload`."""

    target: Target
    source: str
    rate: float | None = None
    concurrency: int | None = None
    duration: float | None = None
    count: int | None = None
    max_context: int | None = None  # None: what the server says
    scale: float = 1.0
    burstiness: float | None = None
    seed: int = 0
    repeats: int = 1
    slo: Slo | None = None
    tokenizer: str | None = None  # MODEL; None: of the model served, if it is on this machine
    options: LoadOptions = field(default_factory=LoadOptions)

    @property
    def max_seconds(self) -> float | None:
        """A closed loop has no schedule, so its time ends it."""
        return self.duration if self.concurrency is not None else None


class LoadSession:
    """Loads of one plan. Raises UserError for a server that cannot be asked."""

    def __init__(self, plan: LoadPlan, watch: Watch = lambda label: None) -> None:
        self._plan = plan
        self._watch = watch
        self.served = in_fast_loop(_look_at(plan.target))
        self._target = replace(plan.target, model=self.served.name)
        self._tokenizer = find_tokenizer(plan.tokenizer, self.served)
        self._texts = PieceTexts(self._tokenizer)
        self._num_loads = 0

    def workload(self, rate: float | None, concurrency: int | None) -> Workload:
        """With prompts that no load of this session has had."""
        plan = self._plan
        duration, count = plan.duration, plan.count
        if concurrency is not None and duration is not None:
            count = count or most_requests(concurrency, duration)
            duration = None
        seed = plan.seed + self._num_loads
        self._num_loads += 1
        return make_workload(
            plan.source,
            rate=rate,
            concurrency=concurrency,
            duration=duration,
            count=count,
            seed=seed,
            max_context=self._max_context(),
            scale=plan.scale,
            burstiness=plan.burstiness,
        )

    def run(self, workload: Workload, label: str = "", max_seconds: float | None = None) -> LoadRun:
        return run_load(
            self._target,
            workload,
            make_text=self._make_text,
            count_tokens=self._count_tokens,
            slo=self._plan.slo,
            options=replace(self._plan.options, max_seconds=max_seconds),
            progress=self._watch(label),
        )

    def measure(self, self_check: SelfCheck | None, rate: float | None = None) -> LoadReport:
        """The plan's repeats, at its own rate or concurrency, or at `rate`."""
        plan = self._plan
        concurrency = plan.concurrency if rate is None else None
        first: Workload | None = None
        runs = []
        for number in range(1, plan.repeats + 1):
            workload = self.workload(rate or plan.rate, concurrency)
            first = first or workload
            label = f"run {number}/{plan.repeats}: " if plan.repeats > 1 else ""
            runs.append(self.run(workload, label, plan.max_seconds))
            if runs[-1].interrupted:
                break
        assert first is not None
        return make_report(plan.target.url, first, plan.slo, runs, self_check)

    def find_rate(self) -> Capacity:
        """The highest rate that meets the SLO: a closed loop says what the server can do at all,
        and open loops around that what it can do in time. Raises UserError without an SLO, and
        where not one request succeeds."""
        slo, plan = self._plan.slo, self._plan
        if slo is None:
            raise UserError("--find-rate needs --slo: a rate is the highest for some objective")
        if plan.concurrency is not None:
            raise UserError("--find-rate finds a rate: leave out --concurrency")
        limit = plan.rate or self._closed_loop_rate()
        return highest_rate(
            lambda rate: self._verdict(rate, slo),
            limit / 64,
            limit * (2 if plan.rate is None else 64),
            start=limit * (0.7 if plan.rate is None else 1.0),
            max_probes=MAX_PROBES,
        )

    def _closed_loop_rate(self) -> float:
        seconds = min(self._plan.duration or 30.0, 30.0)
        workload = make_workload(
            self._plan.source,
            concurrency=PROBE_CONCURRENCY,
            count=most_requests(PROBE_CONCURRENCY, seconds),
            seed=self._plan.seed + 1_000_000,
            max_context=self._max_context(),
            scale=self._plan.scale,
        )
        run = self.run(workload, "what it can do: ", seconds)
        complete = [record for record in run.records if record.is_complete]
        if not complete:
            errors = {record.error for record in run.records} or {"no answer in time"}
            raise UserError(f"not one request succeeded: {next(iter(errors))}")
        if run.interrupted:
            raise KeyboardInterrupt
        return len(complete) / max(record.ended for record in complete)

    def _verdict(self, rate: float, slo: Slo) -> RateVerdict:
        for _ in range(VOID_TRIES):
            run = self.run(self.workload(rate, None), f"{rate:.3g} requests/s: ")
            if run.interrupted:
                raise KeyboardInterrupt
            if run.valid:
                break
        result = summarize(run.records, slo).slo
        assert result is not None
        if run.saturation is not None:
            return RateVerdict(False, min(result.margin, OVERLOAD_MARGIN), result.margin_error)
        return RateVerdict(result.met, result.margin, result.margin_error)

    def _max_context(self) -> int:
        limit = self._plan.max_context
        if limit is not None:
            return limit
        if not self.served.max_context:
            return 0
        room = self.served.max_context - CHAT_ROOM
        return max(16, room if self._tokenizer is not None else int(UNCOUNTED_ROOM * room))

    def _make_text(self, pieces: Sequence[Piece]) -> str:
        return self._texts.prompt(pieces).text

    @property
    def _count_tokens(self) -> CountTokens | None:
        tokenizer = self._tokenizer
        if tokenizer is None:
            return None
        return lambda text: len(tokenizer.encode(text, add_special_tokens=False))


def most_requests(concurrency: int, seconds: float) -> int:
    """That a closed loop may come to in a time: their prompts are made before it begins."""
    return max(100, min(MOST_REQUESTS, int(REQUESTS_A_SECOND * concurrency * seconds)))


@dataclass(frozen=True)
class RateVerdict:
    met: bool
    margin: float
    margin_error: float


async def _look_at(target: Target) -> ServedModel:
    endpoint = parse_url(target)
    pool = ConnectionPool(asyncio.get_running_loop(), endpoint.address)
    try:
        await pool.open(1)
        models = await served_models(pool, endpoint)
    except (OSError, asyncio.TimeoutError) as error:
        raise UserError(f"{target.url}: nobody answers there ({error})") from None
    finally:
        await pool.close()
    if target.model is None:
        return models[0]
    named = [one for one in models if one.name == target.model]
    return named[0] if named else ServedModel(target.model)


def find_tokenizer(name: str | None, served: ServedModel) -> Tokenizer | None:
    """Of MODEL `name`, or of what is served if that is a model on this machine, else None. Raises
    CheckpointError where `name` has none."""
    from trimtab.checkpoints.resolve import resolve_model
    from trimtab.tokenization import load_tokenizer

    if name is not None:
        return load_tokenizer(resolve_model(name))
    root = served.root
    if root != "builtin" and not (root.startswith("/") and Path(root).exists()):
        return None
    try:
        return load_tokenizer(resolve_model(root))
    except CheckpointError:
        return None
