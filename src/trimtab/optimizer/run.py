"""One run: cheap questions first, each cutting the field for the next, nothing dropped on a guess.

probe      what the machine can do
bound      what no run of a variant can beat; drops only what cannot fit or meet the need
quality    of each variant, against the unmodified model
calibrate  the steps of each variant that is left
simulate   its runs, with the real scheduler on a virtual clock
measure    the survivors under load on the real server; the choice against the default, in turn
decide     the cheapest that meets everything; a plan, a report
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from trimtab.bench.footprint import footprint
from trimtab.checkpoints import open_checkpoint, resolve_model
from trimtab.config import Device, ExecutorConfig
from trimtab.errors import UserError
from trimtab.executors.placement import placement_of
from trimtab.executors.resources import available_cpus
from trimtab.optimizer.bounds import bounds_of
from trimtab.optimizer.content import content_hash
from trimtab.optimizer.decide import Shortfall
from trimtab.optimizer.devices import default_scheduler, facts_of, probe_limits
from trimtab.optimizer.entries import Entries, Entry
from trimtab.optimizer.fingerprint import this_machine, total_memory
from trimtab.optimizer.found import Found
from trimtab.optimizer.journal import Journal
from trimtab.optimizer.memory import predict_memory
from trimtab.optimizer.order import Order
from trimtab.optimizer.predict import GUESSING_SHARE, Predictor
from trimtab.optimizer.quality import quality_texts
from trimtab.optimizer.search import search_runs
from trimtab.optimizer.space import Candidate, Defaults, run_knobs
from trimtab.optimizer.stages import Budget, Progress
from trimtab.optimizer.trials import Trials
from trimtab.optimizer.variants import baseline_of, by_promise, has_torch, variants_for
from trimtab.tokenization import load_tokenizer
from trimtab.workloads.texts import PieceTexts

LARGE_BUDGET = 180.0  # from here on checkpoints are built, too
SIMULATED_REQUESTS = (100, 300)  # of a load, in a run of a minute and of ten
STEP_TOKENS: dict[Device, tuple[int, ...]] = {
    "cpu": (64, 128, 256, 512, 1024),
    "cuda": (512, 1024, 2048, 4096, 8192),
    "torch-cpu": (64, 128, 256, 512, 1024),
}
STEPS = 40  # that share the time of a calibration, if all were as long as the longest
PATIENCE = 0.05  # of the budget, with cores that lie apart
SAMPLE_RATE = 1.0
"""Requests a second at which lengths of the workload are looked at."""
MEASURED_KNOBS = ("threads",)
"""The simulator does not know what other numbers of threads would do."""


class Optimization:
    """One run. `go` leaves everything that was found in `found`."""

    def __init__(self, order: Order, progress: Progress) -> None:
        """Opens the model and measures the machine: a few seconds. UserError for an order that
        cannot be carried out."""
        self.order = order
        self.progress = progress
        self.budget = Budget(order.budget_seconds)
        path = resolve_model(order.model)
        self.checkpoint = open_checkpoint(path, order.max_context)
        with self.budget.stage("probe") as stage:
            progress(f"measuring the {'machine' if order.device == 'cpu' else 'device'}")
            self.machine = probe_limits(order.device)
            stage.tried = stage.left = 1
        device = facts_of(self.machine)
        if order.device == "cuda" and order.need.objective == "energy":
            raise UserError("--minimize energy: nothing here tells what a GPU takes")
        spec = self.checkpoint.spec
        self.texts = quality_texts(order.model, order.texts, order.tasks)
        memory = device.memory_bytes or total_memory()
        limit = min(order.need.memory_bytes or memory, memory)
        base = ExecutorConfig(max_context=order.max_context, device=order.device)
        if device.memory_bytes:
            base = replace(base, memory_share=min(base.memory_share, limit / memory))
            limit = int(base.memory_share * memory)
        self.defaults = Defaults(default_scheduler(order.device), base.memory_share)
        cores = available_cpus()
        low, high = self.machine.read_bytes_per_s_low, self.machine.read_bytes_per_s
        tokenizer = load_tokenizer(path)
        self.journal = Journal(order.journal_path, order.resume)
        trials = Trials(
            order,
            self.journal,
            content_hash(self.checkpoint),
            this_machine(device=device),
            base,
            spec.max_context,
            PieceTexts(tokenizer),
            progress,
            device,
            placement_of(
                cores if order.device == "cpu" else 1, PATIENCE * order.budget_seconds, progress
            ),
        )
        trials.workload(SAMPLE_RATE, order.seed, 1.0)  # complains, if it has to, now
        self.found = Found(
            order=order,
            entries=Entries(baseline_of(self.checkpoint)),
            trials=trials,
            budget=self.budget,
            machine=self.machine,
            noise=(high - low) / high / 2,
            checkpoint=self.checkpoint,
            predictor=Predictor(
                order.need.slo,
                trials.workload,
                order.seed,
                SIMULATED_REQUESTS[not self.is_brief],
            ),
            max_context=spec.max_context,
            num_cores=cores,
            memory_limit=limit,
        )
        methods = has_torch() and not self.is_brief
        self.variants = variants_for(self.checkpoint, methods=methods, device=order.device)
        most = base.memory_share if order.need.memory_bytes else 1.0
        self.knobs = run_knobs(cores, spec.max_context, order.device, most)

    def go(self) -> Found:
        try:
            self.bound()
            self.judge_quality()
            self.calibrate()
            self.simulate()
            self.measure()
            self.vary()
        finally:
            self.journal.close()
        return self.found

    def vary(self) -> None:
        from trimtab.optimizer.sensitivity import sensitivity

        ends = time.monotonic() + max(1.0, 0.05 * self.order.budget_seconds)
        with self.budget.stage("vary") as stage:
            self.found.sensitivity = sensitivity(self.found, lambda: time.monotonic() > ends)
            stage.tried = stage.left = len(self.found.sensitivity)

    @property
    def is_brief(self) -> bool:
        return self.order.budget_seconds < LARGE_BUDGET

    @property
    def default(self) -> Candidate:
        return Candidate.plain(self.found.entries.baseline, self.defaults)

    def bound(self) -> None:
        """Drop what does not fit, and what could not keep a limit if nothing but its weights took
        time."""
        found, need = self.found, self.order.need
        sample = found.trials.workload(SAMPLE_RATE, self.order.seed, 200.0)
        shortest = min(one.num_prompt_tokens for one in sample.requests)
        with self.budget.stage("bound") as stage:
            for variant in self.variants:
                entry = found.entries.of(Candidate.plain(variant, self.defaults))
                stage.tried += 1
                config = entry.candidate.executor(found.trials.base)
                formats = found.formats(entry.candidate)
                size = footprint(found.spec, config, formats)
                blocks = -(-found.max_context // 16)
                entry.memory = predict_memory(
                    found.spec, config, entry.candidate.scheduler, blocks, formats
                )
                bounds = bounds_of(size, self.machine, sample)
                found.predictor.limit(variant, bounds.rate)
                if entry.memory.total > found.memory_limit:
                    limit = float(found.memory_limit)
                    entry.cannot(Shortfall("memory", limit, float(entry.memory.total), "bytes"))
                    continue
                for term in need.slo.terms:
                    least = {"itl": bounds.decode_seconds, "tpot": bounds.decode_seconds}.get(
                        term.metric, 0.0
                    )
                    if term.metric == "ttft":
                        least = bounds.ttft(shortest)
                    limit = term.limit.of(shortest, 1)
                    if least > limit:
                        entry.cannot(Shortfall(term.as_text(), limit, least, "s"))
                if need.rate is not None and bounds.rate < need.rate:
                    asked = f"rate>={need.rate:g}rps"
                    entry.cannot(Shortfall(asked, need.rate, bounds.rate, "requests/s"))
            stage.left = len(self._alive())

    def judge_quality(self) -> None:
        found = self.found
        share = self.budget.of_stage("quality")
        with self.budget.stage("quality") as stage:
            start = time.monotonic()
            alive = self._alive()
            for number, entry in enumerate(alive):
                left = share - (time.monotonic() - start)
                if left <= 0 and number > 1:
                    entry.drop("quality", "not tried: the time for it was spent")
                    continue
                self.progress(f"quality of {entry.candidate.label}")
                stage.tried += 1
                try:
                    each = max(left / (len(alive) - number), 5.0)
                    ceiling = 32 if self.is_brief else 96
                    entry.quality = found.trials.quality(
                        entry.candidate.variant, self.texts, 4 * each + 20, ceiling
                    )
                except UserError as error:
                    entry.drop("quality", str(error))
                    continue
                entry.stage = "quality"
                if entry.candidate.variant == found.entries.baseline:
                    continue  # it is what the others are judged by
                if entry.quality.failed is not None:
                    entry.drop("quality", entry.quality.failed)
                elif not entry.quality.meets:
                    entry.drop("quality", _why_not(entry.quality))
            stage.left = len(self._alive())

    def calibrate(self) -> None:
        """Steps of every variant that is left, as far as time allows."""
        found = self.found
        share = self.budget.of_stage("calibrate")
        longest = min(found.max_context, 4096)
        with self.budget.stage("calibrate") as stage:
            start = time.monotonic()
            entries = {entry.candidate.variant: entry for entry in self._alive()}
            sizes = {one: self._bytes_per_step(entry) for one, entry in entries.items()}
            alive = [entries[one] for one in by_promise(sizes, self.default.variant)]
            each = max(share / max(len(alive), 1), 1.0)
            for number, entry in enumerate(alive):
                if number > 1 and time.monotonic() - start > share:
                    entry.drop("calibrate", "not tried: the time for it was spent")
                    continue
                self.progress(f"step times of {entry.candidate.label}")
                stage.tried += 1
                try:
                    chunk = self._largest_step(entry, each)
                    seconds = each / (1 + GUESSING_SHARE)
                    known, failed = found.trials.calibration(
                        entry.candidate, seconds, longest, chunk
                    )
                except UserError as error:
                    known, failed = None, str(error)
                if known is None:
                    entry.drop("calibrate", failed or "its steps could not be measured")
                    continue
                entry.stage = "calibrate"
                found.predictor.learn(entry.candidate, known)
            stage.left = len(self._alive())

    def simulate(self) -> None:
        found = self.found
        share = self.budget.of_stage("simulate")
        knobs = [knob for knob in self.knobs if knob.name not in MEASURED_KNOBS]
        with self.budget.stage("simulate") as stage:
            alive = [one for one in self._alive() if found.predictor.calibration(one.candidate)]
            start = time.monotonic()
            for number, entry in enumerate(alive):
                ends = start + share * (number + 1) / len(alive)
                self.progress(f"simulating {entry.candidate.variant.label}")
                ranked = search_runs(
                    entry.candidate,
                    knobs,
                    found.predictor,
                    lambda ends=ends: time.monotonic() > ends,  # type: ignore[misc]
                )
                for one in ranked:
                    this = found.entries.of(one.candidate)
                    this.quality, this.memory = entry.quality, entry.memory
                    this.predicted_rate, this.censored = one.score, one.censored
                    if one.score > 0 and not one.censored:
                        this.predicted = found.predictor.point(one.candidate, one.score)
                    this.stage = "simulated"
                    if one.censored:
                        this.drop("simulated", f"predicted to hold less than {one.score:.3g}/s")
                    elif one.score <= 0:
                        this.drop("simulated", "predicted not to meet the SLO at any rate")
                    elif self.order.need.rate and one.score < self.order.need.rate / 1.5:
                        this.drop("simulated", f"predicted to hold {one.score:.3g} requests/s")
                    stage.tried += 1
            stage.left = sum(e.stage == "simulated" and not e.dropped for e in found.entries.all)

    def measure(self) -> None:
        from trimtab.optimizer.finals import Finals

        with self.budget.stage("measure") as stage:
            Finals(self).play()
            stage.tried = sum(entry.measured is not None for entry in self.found.entries.all)
            stage.left = sum(entry.rate > 0 for entry in self.found.entries.all)

    def _alive(self) -> list[Entry]:
        return [entry for entry in self.found.entries.all if entry.dropped is None]

    def _largest_step(self, entry: Entry, seconds: float) -> int:
        """Tokens of the largest step that is measured: what is larger is predicted from it."""
        size = self.found.footprint(entry.candidate)
        rate = self.machine.linear_macs_per_s(size.layer_weights) / size.layer_macs_per_token
        counts = STEP_TOKENS[self.order.device]
        fitting = [count for count in counts if count / rate < seconds / STEPS]
        return max(fitting, default=counts[0])

    def _bytes_per_step(self, entry: Entry) -> int:
        return self.found.footprint(entry.candidate).read_bytes_per_step


def _why_not(quality: Any) -> str:
    bad = [term for term in quality.terms if term.status != "pass"]
    return "; ".join(
        f"{term.text}: {'missed' if term.status == 'fail' else 'not certain'}"
        + ("" if term.value is None else f", {term.value:.4g}")
        for term in bad
    )
