"""`trimtab bench http://...`: a load on any OpenAI server."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from trimtab import environment
from trimtab.errors import UserError

if TYPE_CHECKING:
    from trimtab.bench.load_plan import LoadPlan
    from trimtab.bench.load_report import LoadReport
    from trimtab.workloads.capacity import Capacity

VOID_STATUS = 1


@dataclass(frozen=True)
class LoadOutput:
    find_rate: bool
    self_check: bool
    as_json: bool
    csv: Path | None


def is_url(model: str) -> bool:
    return model.startswith(("http://", "https://"))


def make_plan(url: str, given: dict[str, Any]) -> LoadPlan:
    """From the options as typed. Raises UserError."""
    from trimtab.bench.load_plan import LoadPlan
    from trimtab.bench.load_state import LoadOptions
    from trimtab.bench.load_target import Target
    from trimtab.workloads.slo import parse_slo

    if not given["workload"]:
        raise UserError(
            "a load needs --workload: chat, agent, rag, summarize, batch, code or a FILE, and "
            "--rate or --concurrency"
        )
    route: Literal["auto", "chat", "completions"] = given["route"]
    if route not in ("auto", "chat", "completions"):
        raise UserError(f"--route {route!r}: use auto, chat or completions")
    target = Target(url, given["model_name"], given["api_key"] or environment.api_key(), route)
    options = LoadOptions(
        max_concurrency=given["max_concurrency"],
        request_seconds=given["request_timeout"],
        warm_up=given["warm_up"],
        obey_retry_after=given["retry_after"],
        stop_when_saturated=not given["keep_on"],
        token_ids=given["token_ids"],
    )
    return LoadPlan(
        target,
        given["workload"],
        rate=given["rate"],
        concurrency=given["concurrency"],
        duration=given["duration"],
        count=given["requests"],
        max_context=given["max_context"] or None,
        scale=given["scale"],
        burstiness=given["burstiness"],
        seed=given["seed"],
        repeats=given["repeats"],
        slo=parse_slo(given["slo"]) if given["slo"] else None,
        tokenizer=given["tokenizer"],
        options=options,
    )


def run_bench(plan: LoadPlan, output: LoadOutput) -> int:
    """Loads the server and prints what was found; the exit status, 1 if it counts for nothing."""
    from trimtab.bench.load_plan import LoadSession
    from trimtab.bench.load_progress import clear_progress, terminal_progress
    from trimtab.bench.self_check import check_client

    if output.find_rate and plan.slo is None:
        raise UserError("--find-rate needs --slo: a rate is the highest for some objective")
    if output.csv is not None and not output.csv.absolute().parent.is_dir():
        raise UserError(f"--csv {output.csv}: there is no such directory")
    try:
        session = LoadSession(plan, terminal_progress)
        check = check_client() if output.self_check else None
        capacity = session.find_rate() if output.find_rate else None
        if capacity is not None and capacity.rate is None:
            clear_progress()
            return _print_nothing(capacity, output)
        report = session.measure(check, None if capacity is None else capacity.rate)
    finally:
        clear_progress()
    if output.csv is not None:
        report.write_csv(output.csv)
    _print_report(report, capacity, output)
    if report.why_void:
        print(f"trimtab: error: void: {report.why_void}", file=sys.stderr)
        return VOID_STATUS
    return 130 if report.runs[-1].interrupted else 0


def _print_nothing(capacity: Capacity, output: LoadOutput) -> int:
    print(json.dumps({"capacity": capacity.as_json()}) if output.as_json else capacity.line())
    return 0


def _print_report(report: LoadReport, capacity: Capacity | None, output: LoadOutput) -> None:
    if output.as_json:
        found = report.as_json()
        if capacity is not None:
            found["capacity"] = capacity.as_json()
        print(json.dumps(found))
        return
    lines = report.lines()
    if capacity is not None:
        lines.insert(0, capacity.line())
    print("\n".join(lines))
