"""What the optimizer's search leaves on the table: its choice beside every configuration there is.

    python benchmarks/optimizer_sweep.py sweep builtin --out DIR      # an hour; resumes
    python benchmarks/optimizer_sweep.py choose builtin --out DIR     # by the optimizer
    python benchmarks/optimizer_sweep.py compare builtin --out DIR --json OUT

`sweep` loads each of some 220 configurations on the real server with the same requests, at two
rates: the same lengths and pattern of arrivals, only faster, in texts of their own. Searches that
each went their own way would differ by the requests that they met, and those differ more than
configurations do. The margins of a configuration (log of limit over observed) become a rate by
the slope that all of them have on average. DIR/sweep.jsonl keeps all. `choose` lets the optimizer
loose on the same space, with nothing but its own search. `compare` measures the choice and the
best of the sweep once more, in turn, with other seeds and longer loads, because the best of so
many noisy figures is partly luck; and plays random search, a grid and TPE (optuna) on the sweep's
figures, many times, with as many configurations measured as the optimizer took.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.bench.load import run_load
from trimtab.bench.load_state import LoadOptions
from trimtab.bench.load_target import Target
from trimtab.bench.machine import cpu_name
from trimtab.checkpoints import resolve_model
from trimtab.config import SchedulerConfig
from trimtab.optimizer.found import Found
from trimtab.optimizer.heats import FAR, Probe, rates_held
from trimtab.optimizer.measure import LazyServer
from trimtab.optimizer.need import make_need
from trimtab.optimizer.order import Order
from trimtab.optimizer.points import LoadPoint, load_point
from trimtab.optimizer.run import Optimization
from trimtab.optimizer.served import TrialFailedError
from trimtab.optimizer.space import Candidate, Knob, all_runs
from trimtab.optimizer.variants import Variant, variants_for
from trimtab.tokenization import load_tokenizer
from trimtab.workloads.requests import Piece
from trimtab.workloads.texts import PieceTexts

SLO = "ttft:p95<150ms+0.3ms*in; itl:p95<20ms"
QUALITY = "kl:mean<10"  # any: the sweep is of speed
KNOBS = [
    Knob("speculative", ("auto", "off")),
    Knob("max_batch_tokens", (64, 256, 1024)),
    Knob("max_num_requests", (4, 16, 64)),
]
RATES = (6.0, 11.0)  # requests a second
AGAIN = (1.5, 2.3, 3.6)  # times what the plan says that nearly every load holds
SWEEP_SEED, AGAIN_SEEDS = 3_000_000, 4_000_000
VOID_TRIES = 3  # of a load whose client was the limit
NUM_REQUESTS, MANY_REQUESTS = 24, 144  # of a load
BEST = 3  # of the sweep, measured again
ROUNDS = 7
DRAWS = 2000  # of random search
TPE_DRAWS = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("verb", choices=("sweep", "choose", "compare"))
    parser.add_argument("model")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--at-most", type=int, default=10_000, help="configurations, this time")
    parser.add_argument("--budget", type=float, default=170.0, help="seconds of the optimizer")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    {"sweep": sweep, "choose": choose, "compare": compare}[args.verb](args)


def optimization(args: argparse.Namespace, name: str) -> Optimization:
    order = Order(
        args.model,
        make_need(slo=SLO, quality=QUALITY),
        args.out / name,
        budget_seconds=args.budget,
        resume=True,
    )
    made = Optimization(order, progress)
    made.knobs = KNOBS
    made.variants = variants_for(
        made.checkpoint, methods=False
    )  # what is packed at load; whatever the budget
    return made


def space(run: Optimization) -> list[Candidate]:
    return [one for variant in run.variants for one in all_runs(variant, KNOBS)]


def progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# ---- every configuration


def sweep(args: argparse.Namespace) -> None:
    run = optimization(args, "sweep")
    path = args.out / "sweep.jsonl"
    done = {one["label"] for one in _lines(path)}
    waiting = [one for one in space(run) if one.label not in done]
    random.Random(0).shuffle(waiting)  # a machine that drifts does so for all kinds alike
    for candidate in waiting[: args.at_most]:
        began = time.monotonic()
        try:
            points = loads(run, candidate, RATES, NUM_REQUESTS, SWEEP_SEED)
            failed = None
        except TrialFailedError as error:
            points, failed = [], str(error)
        line = {
            "label": candidate.label,
            "variant": candidate.variant.as_json(),
            "scheduler": asdict(candidate.scheduler),
            "failed": failed,
            "probes": [[point.rate, point.margin] for point in points],
            "seconds": round(time.monotonic() - began, 1),
        }
        with path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        progress(f"{candidate.label}: {line['probes']}")
    progress(f"{len(waiting[args.at_most :])} of {len(space(run))} left")


def loads(
    run: Optimization, candidate: Candidate, rates: Sequence[float], count: int, seed: int
) -> list[LoadPoint]:
    trials = run.found.trials
    with (
        tempfile.TemporaryDirectory() as directory,
        trials.server(candidate, Path(directory)) as server,
    ):
        return [load(run, server, rate, count, seed) for rate in rates]


def load(run: Optimization, server: LazyServer, rate: float, count: int, seed: int) -> LoadPoint:
    """Lengths and the pattern of arrivals are those of the seed; texts also depend on the rate, so
    that no cache has them."""
    seconds, slo = count / rate, run.order.need.slo
    texts = PieceTexts(load_tokenizer(resolve_model(run.order.model)))

    def make_text(pieces: Sequence[Piece]) -> str:
        return texts.prompt([replace(one, key=f"{rate}/{one.key}") for one in pieces]).text

    for attempt in range(VOID_TRIES):
        done = run_load(
            Target(server.get().url, route="completions"),
            run.found.trials.workload(rate, seed, seconds),
            make_text=make_text,
            slo=slo,
            options=LoadOptions(warm_up=4, request_seconds=120.0),
        )
        if done.interrupted:
            raise KeyboardInterrupt
        if done.valid or attempt == VOID_TRIES - 1:
            break
    return load_point(rate, seed, seconds, done.records, slo)


def rates_of(lines: Sequence[dict[str, Any]]) -> dict[str, float]:
    """By label, requests a second; 0 of a server that failed."""
    found = rates_held(
        {
            one["label"]: [Probe(rate, margin, 0) for rate, margin in one["probes"]]
            for one in lines
            if one["probes"]
        }
    )
    return {one["label"]: found.get(one["label"], 0.0) for one in lines}


def crossing(points: Sequence[LoadPoint]) -> float:
    """The rate at which the least-squares line of margin on log rate is 0, within a factor of two
    of what was loaded."""
    rates = [point.rate for point in points]
    y = np.clip([point.margin for point in points], -FAR, FAR)
    slope, height = np.polyfit(np.log(rates), y, 1)
    low, high = min(rates) / 2, max(rates) * 2
    if slope >= 0:
        return high if y.mean() > 0 else low
    return float(min(high, max(low, math.exp(min(50.0, -height / slope)))))


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


# ---- the optimizer, on the same space


def choose(args: argparse.Namespace) -> None:
    found = optimization(args, "choice").go()
    loads, measured = work_of(found)
    chosen = found.chosen
    result = {
        "label": None if chosen is None else chosen.candidate.label,
        "variant": None if chosen is None else asdict(chosen.candidate.variant),
        "scheduler": None if chosen is None else asdict(chosen.candidate.scheduler),
        "rate": found.rate,
        "num_measured": measured,
        "num_loads": loads,
        "num_simulated": sum(e.predicted_rate is not None for e in found.entries.all),
        "seconds": round(found.budget.spent, 1),
        "stages": [stage.as_json() for stage in found.budget.stages],
    }
    (args.out / "choice.json").write_text(json.dumps(result, indent=1) + "\n")
    progress(json.dumps(result))


def work_of(found: Found) -> tuple[int, int]:
    """Loads that were run, and configurations that they were run on."""
    measured = [entry.measured for entry in found.entries.all if entry.measured is not None]
    return sum(len(one.points) + len(one.repeats) for one in measured), len(measured)


# ---- beside one another


def compare(args: argparse.Namespace) -> None:
    lines = _lines(args.out / "sweep.jsonl")
    if not lines or not (args.out / "choice.json").exists():
        sys.exit(f"{args.out} has no sweep and choice: run `sweep` and `choose` into it first")
    choice = json.loads((args.out / "choice.json").read_text())
    rates = rates_of(lines)
    lines = [one | {"rate": rates[one["label"]]} for one in lines]
    ranked = sorted(rates, key=lambda label: -rates[label])
    run = optimization(args, "compare")
    # The optimizer turns knobs one at a time: what it leaves at a default need not be in the sweep.
    chosen = Candidate(Variant(**choice["variant"]), SchedulerConfig(**choice["scheduler"]))
    by_label = {one.label: one for one in (*space(run), chosen)}
    contestants = list(dict.fromkeys([choice["label"], *ranked[:BEST]]))
    again_rates = [factor * choice["rate"] for factor in AGAIN]
    again: dict[str, list[float]] = {label: [] for label in contestants}
    for number in range(ROUNDS):
        for label in contestants[:: 1 if number % 2 == 0 else -1]:
            seed = AGAIN_SEEDS + number
            found = crossing(loads(run, by_label[label], again_rates, MANY_REQUESTS, seed))
            again[label].append(found)
            progress(f"round {number + 1}, {label}: {found:.4g}")
    medians = {label: statistics.median(values) for label, values in again.items()}
    best = max(medians.values())
    budgets = sorted({choice["num_measured"], round(0.15 * len(rates))})
    result = {
        "cpu": cpu_name(),
        "model": args.model,
        "slo": SLO,
        "workload": "chat",
        "configurations": len(rates),
        "rates": {"sweep": RATES, "again": again_rates},
        "requests": {"sweep": NUM_REQUESTS, "again": MANY_REQUESTS},
        "sweep": [[one, round(rates[one], 2)] for one in ranked],
        "probes": {one["label"]: one["probes"] for one in lines},
        "choice": choice,
        "choice_in_sweep": rates[choice["label"]] / rates[ranked[0]]
        if choice["label"] in rates
        else None,
        "measured_again": again,
        "choice_of_best": medians[choice["label"]] / best,
        "share_measured": choice["num_measured"] / len(rates),
        "searches": {
            str(budget): {
                "random": _spread(random_search(lines, budget)),
                "grid": _spread(grid_search(lines, budget)),
                "tpe": _spread(tpe_search(lines, budget)),
            }
            for budget in budgets
        },
    }
    print(json.dumps({k: v for k, v in result.items() if k not in ("sweep", "probes")}, indent=1))
    if args.json is not None:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


def _spread(shares: list[float]) -> dict[str, float]:
    """Of the sweep's best rate."""
    ordered = sorted(shares)
    return {
        "median": statistics.median(ordered),
        "p10": ordered[len(ordered) // 10],
        "p90": ordered[9 * len(ordered) // 10],
    }


def random_search(lines: list[dict[str, Any]], budget: int) -> list[float]:
    rates = [one["rate"] for one in lines]
    draw = random.Random(0)
    return [max(draw.sample(rates, budget)) / max(rates) for _ in range(DRAWS)]


def grid_search(lines: list[dict[str, Any]], budget: int) -> list[float]:
    """Every n-th configuration in the order of the axes, from each first one."""
    ordered = sorted(lines, key=_axes)
    rates = [one["rate"] for one in ordered]
    step = max(1, len(rates) // budget)
    return [max(rates[first::step][:budget]) / max(rates) for first in range(step)]


def _axes(one: dict[str, Any]) -> list[str]:
    return [str(value) for value in _choices(one).values()]


def _choices(one: dict[str, Any]) -> dict[str, Any]:
    variant = one["variant"]
    names = [knob.name for knob in KNOBS]
    return {
        "weights": f"{variant['weights']}-{variant['group_size']}",
        "kv_cache": variant["kv_cache"],
        **{name: one["scheduler"][name] for name in names},
    }


def tpe_search(lines: list[dict[str, Any]], budget: int) -> list[float]:
    """Shares by optuna's TPE over the sweep's figures; none if optuna is not installed."""
    try:
        import optuna
    except ImportError:
        progress("TPE is left out: optuna is not installed")
        return [float("nan")]
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    table = {tuple(_choices(one).items()): one["rate"] for one in lines}
    names = list(_choices(lines[0]))
    values = {name: sorted({_choices(one)[name] for one in lines}, key=str) for name in names}

    def objective(trial: Any) -> float:
        chosen = {name: trial.suggest_categorical(name, values[name]) for name in names}
        return float(table.get(tuple(chosen.items()), 0.0))

    best = max(table.values())
    found = []
    for seed in range(TPE_DRAWS):
        sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=min(10, budget))
        study = optuna.create_study(direction="maximize", sampler=sampler)
        study.optimize(_until(objective, study, budget), n_trials=4 * budget)
        found.append(study.best_value / best)
    return found


def _until(objective: Callable[[Any], float], study: Any, budget: int) -> Callable[[Any], float]:
    """Asking for the same configuration again costs nothing: `budget` counts different ones."""
    seen: set[tuple[Any, ...]] = set()

    def ask(trial: Any) -> float:
        value = objective(trial)
        seen.add(tuple(trial.params.items()))
        if len(seen) >= budget:
            study.stop()
        return value

    return ask


if __name__ == "__main__":
    main()
