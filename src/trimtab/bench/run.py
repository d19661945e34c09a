"""One benchmark run: engines loaded, rounds interleaved, limits measured in the same minutes."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from trimtab.bench.device import bandwidth_samples, measure_limits
from trimtab.bench.footprint import footprint
from trimtab.bench.long_context import check_context, context_blocks
from trimtab.bench.machine import MachineLimits
from trimtab.bench.report import Row, rows, table
from trimtab.bench.speed import Plan, Subject, measure
from trimtab.config import ExecutorConfig, SchedulerConfig

if TYPE_CHECKING:
    from trimtab.engine.engine import Engine


@dataclass(frozen=True)
class Report:
    model: str
    machine: MachineLimits
    plan: Plan
    configs: dict[str, ExecutorConfig]
    heads: dict[str, str]  # formats of the output heads
    results: dict[str, list[Row]]

    def as_json(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "machine": self.machine.as_json(),
            "seed": self.plan.seed,
            "results": [
                {
                    "weights": config.weights_label,
                    "output_head": self.heads[label],
                    "kv_cache": config.kv_cache,
                    "rows": [row.as_json() for row in self.results[label]],
                }
                for label, config in self.configs.items()
            ],
        }

    def lines(self) -> list[str]:
        machine = self.machine
        heads = ", ".join(f"{label}: {head}" for label, head in self.heads.items())
        return [
            f"{self.model} on {machine.title}, "
            f"reading {machine.read_bytes_per_s / 1e9:.1f} GB/s at best during the run "
            f"(median {machine.read_bytes_per_s_median / 1e9:.1f}, "
            f"lowest {machine.read_bytes_per_s_low / 1e9:.1f})",
            f"output head: {heads}. Cells: median [low, high] of ceiling: percent",
            "",
            *table(self.results),
        ]


def _num_blocks(plan: Plan) -> int:
    longest = max(256, *(length + 1 for length in plan.prefill), *(256 * n for n in plan.streams))
    return max(longest // 16 + 16, *(context_blocks(length, 16) for length in plan.contexts), 0)


def _engine(model: str, config: ExecutorConfig, plan: Plan) -> Engine:
    """An engine with a cache just large enough for the plan, so that several fit in memory."""
    from trimtab.engine.loading import load_engine

    if not (config.num_blocks or config.kv_cache_gib):
        config = replace(config, num_blocks=_num_blocks(plan))
    scheduler = SchedulerConfig(
        prefix_cache=False,
        max_num_requests=max(64, *plan.streams, 1),
        max_queued_requests=1024,
        speculative="off",  # prompts are random: see bench.speculation
    )
    return load_engine(model, config, scheduler)


def run_benchmark(
    model: str,
    configs: Sequence[ExecutorConfig],
    plan: Plan,
    progress: Callable[[str], None] = lambda text: None,
) -> Report:
    """Loads every configuration, then measures them in turn, round by round.

    Read bandwidth is measured before each round; the best reading of the run is the limit that the
    results are compared with. Raises UserError for what cannot be loaded.
    """
    from trimtab.executors.cpu import CpuExecutor
    from trimtab.executors.devices import check_device
    from trimtab.executors.formats import formats_of_config

    first = configs[0]
    check_device(first.device)
    subjects = []
    for config in configs:
        progress(f"loading {model} as {config.weights_label}")
        engine = _engine(model, config, plan)
        for context in plan.contexts:
            check_context(engine.executor, context)
        subjects.append(Subject(config.weights_label, engine, engine.info.vocab_size))
    progress("measuring the machine")
    machine = measure_limits(first)
    bandwidth: list[float] = []
    number = 0

    def before_round() -> None:
        nonlocal number
        number += 1
        bandwidth.extend(bandwidth_samples(first))
        progress(f"round {number} of {plan.rounds}")

    measure(subjects, plan, before_round)
    machine = replace(
        machine,
        read_bytes_per_s=max(bandwidth),
        read_bytes_per_s_median=statistics.median(bandwidth),
        read_bytes_per_s_low=min(bandwidth),
    )
    results, heads = {}, {}
    for subject, config in zip(subjects, configs, strict=True):
        executor = subject.engine.executor
        formats = executor.formats if isinstance(executor, CpuExecutor) else None
        formats = formats or formats_of_config(executor.spec, config)
        size = footprint(executor.spec, config, formats)
        results[subject.label] = rows(subject.rates(), size, machine)
        heads[subject.label] = formats.head.format.label
        subject.engine.close()
    return Report(model, machine, plan, {c.weights_label: c for c in configs}, heads, results)
