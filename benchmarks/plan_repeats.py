"""Whether a plan keeps its word: served again and loaded with fresh seeds.

    trimtab optimize builtin --out /tmp/plan
    python benchmarks/plan_repeats.py /tmp/plan/plan.yaml --repeats 10 --json OUT

Each repeat is a load of the plan's own workload at the rate that the plan names, with a seed that
the search did not have; a load whose client was the limit is repeated. With `--guidellm COMMAND`
guidellm sends such loads, too: the same kind of requests at the same times, judged by the same SLO.
Then the highest rate is looked for once more, with seeds of its own. Asked: 9 of 10 repeats meet
the SLO, and the rate is within 10 % of the plan's.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from load_peers import guidellm_records, run_guidellm
from trimtab.bench.load import run_load
from trimtab.bench.load_state import LoadOptions
from trimtab.bench.load_target import Target
from trimtab.checkpoints import open_checkpoint, resolve_model
from trimtab.optimizer.plan import Plan, read_plan
from trimtab.optimizer.points import LoadPoint, load_point, void
from trimtab.optimizer.served import running_server
from trimtab.server.loading import model_name
from trimtab.tokenization import load_tokenizer
from trimtab.workloads.capacity import highest_rate
from trimtab.workloads.make import make_workload
from trimtab.workloads.requests import Workload
from trimtab.workloads.slo import parse_slo
from trimtab.workloads.texts import PieceTexts

FIRST_SEED = 77_000_000
VOID_TRIES = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("plan", type=Path)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--seconds", type=float, help="of each load; default: as the plan's were")
    parser.add_argument("--probes", type=int, default=6, help="for the highest rate; 0: none")
    parser.add_argument("--guidellm", help="its command, in an environment of its own")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    plan = read_plan(args.plan)
    rate = plan.measured["rate"].value
    own = plan.measured.get("load_seconds")
    seconds = args.seconds or (own.value if own else 20.0)
    seeds = itertools.count(FIRST_SEED)
    with running_server(args.plan) as server:
        load = Loads(plan, server.url, seconds, seeds)
        repeats, theirs = [], []
        for _ in range(args.repeats):  # in turn: a machine that drifts does so for both
            repeats.append(load(rate))
            if args.guidellm:
                theirs.append(load.by_guidellm(args.guidellm, rate))
        found = None
        if args.probes:
            found = highest_rate(
                load, rate / 16, rate * 16, start=rate, width=0.05, max_probes=args.probes
            )
    held = sum(point.met for point in repeats)
    achieved = statistics.median(point.achieved for point in repeats)
    result: dict[str, Any] = {
        "plan": plan.as_json(),
        "rate": rate,
        "load_seconds": seconds,
        "repeats": [point.for_report(is_repeat=True) | {"met": point.met} for point in repeats],
        "held": held,
        "achieved": achieved,
        "guidellm": [point.for_report(is_repeat=True) | {"met": point.met} for point in theirs],
        "found_again": None if found is None else found.as_json(),
    }
    print(f"{plan.describe()}: {held} of {len(repeats)} loads at {rate:.3g} requests/s met the SLO")
    print(
        f"median rate of the repeats: {achieved:.3g} requests/s, {achieved / rate:.2f} of its own"
    )
    if theirs:
        print(f"guidellm: {sum(point.met for point in theirs)} of {len(theirs)} met the SLO")
    if found is not None and found.rate:
        print(f"highest rate found again: {found.line()}; {found.rate / rate:.2f} of the plan's")
    if args.json is not None:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


class Loads:
    """Of a plan's workload on its server."""

    def __init__(self, plan: Plan, url: str, seconds: float, seeds: itertools.count[int]) -> None:
        path = resolve_model(plan.model)
        self.path, self.plan, self.url = path, plan, url
        self.seconds, self.seeds = seconds, seeds
        self.slo = parse_slo(plan.need["slo"])
        self.texts = PieceTexts(load_tokenizer(path))
        self.max_context = open_checkpoint(path, plan.executor.max_context).spec.max_context

    def __call__(self, rate: float) -> LoadPoint:
        for _ in range(VOID_TRIES):
            seed = next(self.seeds)
            run = run_load(
                Target(self.url, route="completions"),
                self.workload(rate, seed),
                make_text=lambda pieces: self.texts.prompt(pieces).text,
                slo=self.slo,
                options=LoadOptions(warm_up=4),
            )
            point = load_point(rate, seed, self.seconds, run.records, self.slo)
            if run.valid:
                break
            point = void(point, run.why)
        return self.told(point, "")

    def by_guidellm(self, command: str, rate: float) -> LoadPoint:
        """Requests of one turn only: it replays times, and does not wait for answers."""
        seed = next(self.seeds)
        rows = [
            {
                "prompt": self.texts.prompt(one.pieces).text,
                "output_tokens_count": one.num_output_tokens,
                "relative_timestamp": one.at,
            }
            for one in self.workload(rate, seed).requests
        ]
        with tempfile.TemporaryDirectory() as folder:
            name = model_name(self.plan.model, self.path)
            found = run_guidellm(
                command, self.url, name, self.path, rows, "kind=replay", Path(folder)
            )
        records = guidellm_records(found)
        return self.told(load_point(rate, seed, self.seconds, records, self.slo), "guidellm, ")

    def workload(self, rate: float, seed: int) -> Workload:
        return make_workload(
            self.plan.need["workload"],
            rate=rate,
            duration=self.seconds,
            seed=seed,
            max_context=self.max_context,
        )

    def told(self, point: LoadPoint, who: str) -> LoadPoint:
        verdict = "met" if point.met else "MISSED"
        print(f"{who}{point.rate:.3g} requests/s, seed {point.seed}: {verdict}", file=sys.stderr)
        return point


if __name__ == "__main__":
    main()
