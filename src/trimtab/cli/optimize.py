"""`trimtab optimize`: the cheapest configuration that gives users what they need."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import typer

from trimtab.cli.options import with_config_options
from trimtab.config import Device
from trimtab.errors import UserError

NOT_MET = 3  # exit status


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _quiet(line: str) -> None:
    pass


@with_config_options
def command(
    model: str = typer.Argument(help="builtin, a directory, a GGUF file or a Hugging Face id"),
    slo: str = typer.Option(
        "", help="limits on latency: 'ttft:p99<300ms+0.3ms*in; itl:p99<50ms; e2e:p95<2s'"
    ),
    quality: str = typer.Option(
        "",
        help="what may be lost against the unmodified model: "
        "'kl:mean<0.02; top1>=0.98; tasks>=base-1%'",
    ),
    workload: str = typer.Option(
        "", help="chat (default), agent, rag, summarize, batch, code, or a FILE of requests"
    ),
    rate: str = typer.Option("", help="what it must hold: 4rps; without it, the highest"),
    headroom: str = typer.Option(
        "", help="share of the highest rate that is kept free (default 20%); not with --rate"
    ),
    memory: str = typer.Option("", help="the most that it may take: 6GiB; default: the machine's"),
    price_per_hour: float | None = typer.Option(None, help="of this machine, in your currency"),
    minimize: str = typer.Option("", help="cost (default), latency or energy"),
    maximize: str = typer.Option("", help="goodput"),
    need: Path | None = typer.Option(
        None, help="a YAML file with any of: slo, quality, workload, rate, headroom ..."
    ),
    device: Device = typer.Option("cpu", help="cpu, cuda, or torch-cpu (slow: for tests)"),
    text: list[Path] = typer.Option([], help="text to judge quality by; may be repeated"),
    tasks: Path | None = typer.Option(None, help="JSON lines of tasks with their answers"),
    budget: str = typer.Option("10m", help="how long it may take: 90s, 10m, 1h"),
    out: Path | None = typer.Option(
        None, help="directory of plan.yaml, report.html, results.json and the journal"
    ),
    max_context: int = typer.Option(
        0, min=0, help="longest prompt + completion in tokens; 0 = the model's"
    ),
    seed: int = typer.Option(0, min=0, help="of workloads"),
    resume: bool = typer.Option(False, help="go on with an interrupted run in the same directory"),
    cached: bool = typer.Option(
        False, help="if the directory has a plan for this very need and machine, keep it"
    ),
    dry_run: bool = typer.Option(False, help="say what would be tried, and how long it would take"),
    as_json: bool = typer.Option(False, "--json", help="print results.json instead of a summary"),
) -> int:
    """Find the cheapest way of running MODEL here that meets the need; write a plan and a report.

    Exit status 3 if nothing does: the closest plan is written, and what would have to give.
    """
    from trimtab.optimizer.need import make_need, parse_duration
    from trimtab.optimizer.need_file import read_need
    from trimtab.optimizer.optimize import dry_run as dry_run_of
    from trimtab.optimizer.optimize import optimize
    from trimtab.optimizer.order import Order, plan_of_before
    from trimtab.optimizer.report import summary_lines

    given: dict[str, Any] = {
        "slo": slo,
        "quality": quality,
        "workload": workload,
        "rate": rate,
        "headroom": headroom,
        "memory": memory,
        "price_per_hour": price_per_hour,
        "minimize": minimize,
        "maximize": maximize,
    }
    asked = read_need(need) if need is not None else {}
    asked |= {name: value for name, value in given.items() if value not in ("", None)}
    order = Order(
        model=model,
        need=make_need(**asked),
        directory=out or default_directory(model),
        budget_seconds=parse_duration("--budget", budget),
        texts=tuple(text),
        tasks=tasks,
        max_context=max_context,
        device=device,
        seed=seed,
        resume=resume,
        command="trimtab " + " ".join(map(shlex.quote, sys.argv[1:])),
    )
    progress = _quiet if as_json and not sys.stderr.isatty() else _progress
    if cached and not dry_run and (known := plan_of_before(order)) is not None:
        _progress(f"{known}: chosen before for this need on this machine (no --cached: again)")
        return 0
    if dry_run:
        intended = dry_run_of(order, progress)
        print(json.dumps(intended.as_json()) if as_json else "\n".join(intended.lines()))
        return 0
    results = optimize(order, progress)
    print(json.dumps(results) if as_json else "\n".join(summary_lines(results, 80)))
    return 0 if results["status"] == "met" else NOT_MET


def default_directory(model: str) -> Path:
    """`trimtab-NAME` in the working directory."""
    name = Path(model.rstrip("/")).name
    if not name or name in (".", ".."):
        raise UserError("--out: name a directory for the plan and the report")
    return Path(f"trimtab-{name}")
