"""`trimtab simulate`: what a load would meet, predicted from measured steps."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import typer

from trimtab.cli.options import with_config_options
from trimtab.config import ExecutorConfig, SchedulerConfig
from trimtab.errors import UserError


def _progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@with_config_options
def command(
    executor: ExecutorConfig,
    scheduler: SchedulerConfig,
    model: str = typer.Argument(help="builtin, a directory, a GGUF file or a Hugging Face id"),
    workload: str = typer.Option(
        "chat", help="chat, agent, rag, summarize, batch, code, or a FILE of prompts or a trace"
    ),
    rate: float | None = typer.Option(None, help="requests a second (open loop)"),
    concurrency: int | None = typer.Option(None, help="sessions at once (closed loop)"),
    duration: float | None = typer.Option(None, help="seconds in which requests are sent"),
    count: int | None = typer.Option(None, help="requests"),
    seed: int = typer.Option(0, help="of the workload"),
    scale: float = typer.Option(1.0, help="factor on all lengths of the workload"),
    burstiness: float | None = typer.Option(
        None, help="coefficient of variation between arrivals: 0 even, 1 Poisson, more: bursts"
    ),
    slo: str = typer.Option("", help='for goodput: "ttft:p99<300ms+0.3ms*in; itl:p99<50ms"'),
    step_times: Path | None = typer.Option(
        None, help="calibration to use; measured and written there if it does not exist"
    ),
    seconds: float = typer.Option(60.0, min=1.0, help="about how long to measure steps"),
    as_json: bool = typer.Option(False, "--json", help="one JSON object instead of a table"),
) -> None:
    """Predict latencies, goodput and occupancy of MODEL under a load, without running it: the
    engine's own scheduler in virtual time, with steps as long as they were measured here."""
    from trimtab.simulator.calibrate import CalibrationPlan
    from trimtab.simulator.calibration import Calibration, calibrate_model
    from trimtab.simulator.report import SimulationReport
    from trimtab.simulator.simulate import simulate
    from trimtab.workloads.make import make_workload
    from trimtab.workloads.slo import parse_slo

    if scheduler.speculative not in ("auto", "off"):
        raise UserError("simulate does not predict speculation: leave --speculative out")
    objective = parse_slo(slo) if slo else None
    if step_times is not None and step_times.exists():
        known = Calibration.load(step_times)
        if known.model != model:
            raise UserError(f"{step_times} was measured on {known.model}, not on {model}")
    else:
        plan = CalibrationPlan(seconds=seconds)
        known = calibrate_model(model, executor, scheduler, plan, _progress)
        if step_times is not None:
            known.save(step_times)
    server = known.server(scheduler, executor)
    load = make_workload(
        workload,
        rate=rate,
        concurrency=concurrency,
        duration=duration,
        count=count,
        seed=seed,
        max_context=server.max_context,
        scale=scale,
        burstiness=burstiness,
    )
    report = SimulationReport.of(known, load, simulate(server, load), objective)
    print(json.dumps(report.as_json()) if as_json else "\n".join(report.lines()))
