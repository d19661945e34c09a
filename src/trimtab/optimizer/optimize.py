"""A run from the order to its files; and what a run would try."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trimtab.optimizer.found import Found
from trimtab.optimizer.order import Order, need_texts
from trimtab.optimizer.run import Optimization
from trimtab.optimizer.stages import SHARES, Progress


def optimize(order: Order, progress: Progress) -> dict[str, Any]:
    """Run it; write plan.yaml, results.json and report.html; give the results."""
    from trimtab.optimizer.report import write_report
    from trimtab.optimizer.results import results_json

    found = Optimization(order, progress).go()
    results = results_json(found)
    write_outputs(found, results)
    write_report(results, order.report_path)
    return results


def write_outputs(found: Found, results: dict[str, Any]) -> None:
    """plan.yaml of the choice, or of what came closest, and results.json; each atomically."""
    from trimtab.optimizer.cache import write_atomically
    from trimtab.optimizer.plan import Measurement
    from trimtab.optimizer.results import plan_measurements
    from trimtab.optimizer.shortfall import closest_entry

    entry = found.chosen or closest_entry(found) or found.default
    if entry is not None:
        plan = replace(
            found.trials.plan(entry.candidate),
            need=need_texts(found.order.need),
            measured={
                name: Measurement(**value) for name, value in plan_measurements(found).items()
            },
            predicted={} if entry.predicted_rate is None else {"rate": entry.predicted_rate},
            headline=results["headline"],
        )
        plan.write(found.order.plan_path)
    write_atomically(found.order.results_path, json.dumps(results, indent=1).encode())


@dataclass(frozen=True)
class Intent:
    """What a run would try."""

    variants: list[dict[str, Any]]  # label, dropped
    num_runs: int  # of each variant
    shares: dict[str, float]  # seconds of each stage

    def as_json(self) -> dict[str, Any]:
        return dict(self.__dict__)

    def lines(self) -> list[str]:
        lines = [f"{len(self.variants)} variants of the model, {self.num_runs} ways to run each:"]
        for one in self.variants:
            dropped = one["dropped"]
            lines.append(
                f"  {one['label']}" + (f": dropped, {dropped['reason']}" if dropped else "")
            )
        stages = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in self.shares.items())
        return [*lines, f"about {sum(self.shares.values()):.0f} s: {stages}"]


def dry_run(order: Order, progress: Progress) -> Intent:
    """Probes and bounds, and no more; writes no results."""
    import tempfile

    with tempfile.TemporaryDirectory(prefix="trimtab-optimize-") as directory:
        run = Optimization(replace(order, directory=Path(directory), resume=False), progress)
        run.bound()
        run.journal.close()
    entries = run.found.entries.all
    left = run.budget.left
    return Intent(
        [{"label": e.candidate.variant.label, "dropped": e.dropped} for e in entries],
        math.prod(len(knob.values) for knob in run.knobs),
        {name: left * share for name, share in SHARES.items()},
    )
