"""`trimtab bench`: prefill, decode and batched speed, beside the machine's limits."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import typer

from trimtab.cli.options import with_config_options
from trimtab.config import ExecutorConfig, SchedulerConfig, parse_weights
from trimtab.errors import UserError


def parse_formats(text: str, base: ExecutorConfig) -> list[ExecutorConfig]:
    """`bf16,int8,int4-g32` -> one config each; an empty text is the base alone."""
    configs = []
    for label in filter(None, text.split(",")):
        weights, group_size = parse_weights(label.strip())
        configs.append(replace(base, weights=weights, group_size=group_size))
    return configs or [base]


def parse_counts(option: str, text: str) -> tuple[int, ...]:
    """`512,2048` -> (512, 2048); empty = none."""
    try:
        counts = tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        counts = (0,)
    if any(count < 1 for count in counts):
        raise UserError(f"{option} {text!r}: use positive numbers with commas between, or ''")
    return counts


def _progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# Of `command`: what loads a server, and what both modes take. All else measures a model.
_OF_LOADS = {
    "rate", "concurrency", "duration", "requests", "slo", "repeats", "find_rate", "api_key",
    "model_name", "route", "tokenizer", "scale", "burstiness", "max_concurrency",
    "request_timeout", "warm_up", "retry_after", "keep_on", "token_ids", "self_check", "csv",
}  # fmt: skip
_OF_BOTH = {"model", "workload", "seed", "as_json", "max_context"}


def refuse_other_mode(context: typer.Context, loads: bool) -> None:
    """Raises UserError for an option that says nothing about what is measured."""
    for parameter in context.command.params:
        name = str(parameter.name)
        source = context.get_parameter_source(name)
        if source is None or source.name in ("DEFAULT", "DEFAULT_MAP") or name in _OF_BOTH:
            continue
        if (name in _OF_LOADS) != loads:
            option = max(parameter.opts, key=len)
            if loads:
                raise UserError(f"{option} measures a model here, not a server at a URL")
            raise UserError(f"{option} is of a load: give the URL of a server (http://...)")


@with_config_options
def command(
    context: typer.Context,
    executor: ExecutorConfig,
    model: str = typer.Argument(
        help="builtin, a directory, a GGUF file or a Hugging Face id; or the URL of a server"
    ),
    formats: str = typer.Option(
        "", help="compare weight formats in one run, interleaved: bf16,int8,int4-g64"
    ),
    prefill: str = typer.Option("512,2048", help="prompt lengths"),
    streams: str = typer.Option("8,16", help="numbers of concurrent requests"),
    contexts: str = typer.Option(
        "", help="decode with this many tokens in the KV cache too: 8192,32768"
    ),
    rounds: int = typer.Option(3, min=1, help="how often each row is measured"),
    seed: int = typer.Option(0, min=0, help="of the random prompts, or of the workload"),
    speculative: str = typer.Option(
        "",
        help="what guessing tokens ahead gains on a workload, instead: auto, or lookup, draft, "
        "heads, several joined by +",
    ),
    workload: str | None = typer.Option(
        None,
        help="of a server: chat, agent, rag, summarize, batch, code or a FILE (prompts, an Azure "
        'or Mooncake trace); with --speculative: JSON lines of {"prompt": ...} or '
        '{"messages": ...}',
    ),
    draft_model: str | None = typer.Option(None, help="with --speculative: a smaller MODEL"),
    draft_heads: str | None = typer.Option(None, help="with --speculative: trained draft heads"),
    output_tokens: int = typer.Option(
        128, min=2, help="with --speculative: of an answer, on average"
    ),
    temperature: float = typer.Option(0.0, min=0.0, help="with --speculative"),
    rate: float | None = typer.Option(None, help="requests a second, whatever the server does"),
    concurrency: int | None = typer.Option(
        None, help="sessions at once, instead: the next begins when one ends"
    ),
    duration: float | None = typer.Option(None, help="seconds in which requests begin"),
    requests: int | None = typer.Option(None, help="how many, instead of --duration"),
    slo: str | None = typer.Option(
        None, help="what users need: 'ttft:p99<300ms+0.3ms*in; itl:p99<50ms; e2e:p95<2s'"
    ),
    repeats: int = typer.Option(1, min=1, help="runs, each with fresh prompts; samples are pooled"),
    find_rate: bool = typer.Option(
        False, "--find-rate", help="find the highest rate that meets --slo, then measure there"
    ),
    api_key: str | None = typer.Option(
        None, help="of the server; TRIMTAB_API_KEY keeps it out of the process list"
    ),
    model_name: str | None = typer.Option(None, help="as the server calls it; else its first"),
    route: str = typer.Option("auto", help="chat, completions, or what fits the workload"),
    tokenizer: str | None = typer.Option(
        None, help="MODEL whose tokenizer counts prompts and answers, if it is not here by itself"
    ),
    scale: float = typer.Option(1.0, help="of the workload's lengths: 0.1 for small models"),
    burstiness: float | None = typer.Option(
        None, help="coefficient of variation of the arrivals: 0 constant, 1 Poisson, above: bursts"
    ),
    max_concurrency: int | None = typer.Option(
        None, min=1, help="at most so many in flight at --rate; waiting for it counts as latency"
    ),
    request_timeout: float = typer.Option(600.0, min=0.001, help="seconds for one answer"),
    warm_up: int = typer.Option(8, min=0, help="requests before, with prompts of their own"),
    retry_after: bool = typer.Option(
        False, "--retry-after", help="ask again after 429 and 503; else they are errors"
    ),
    keep_on: bool = typer.Option(
        False, "--keep-on", help="do not end the load when the queue grows without end"
    ),
    token_ids: bool = typer.Option(
        False, "--token-ids", help="ask for the ids of each event's tokens: exact, more work"
    ),
    self_check: bool = typer.Option(True, help="first measure what this client itself adds"),
    csv: Path | None = typer.Option(None, help="write one row a request to this file"),
    as_json: bool = typer.Option(False, "--json", help="one JSON object instead of a table"),
) -> int | None:
    """Measure how fast MODEL runs here (median of the rounds, percent of the limit), or, of a
    server's URL, latencies, throughput and goodput under a load."""
    from trimtab.cli import bench_load

    loads = bench_load.is_url(model)
    refuse_other_mode(context, loads)
    if loads:
        load = bench_load.make_plan(model, context.params)
        output = bench_load.LoadOutput(find_rate, self_check, as_json, csv)
        return bench_load.run_bench(load, output)
    if workload is not None and not speculative:
        raise UserError("--workload is of a load, or goes with --speculative")

    from trimtab.bench.run import run_benchmark
    from trimtab.bench.speculation import SpeculationPlan, measure_speculation
    from trimtab.bench.speed import Plan
    from trimtab.engine.llm import LLM

    if speculative:
        guessing = SpeculationPlan(
            parse_counts("--streams", streams),
            rounds,
            output_tokens,
            temperature,
            Path(workload) if workload else None,
        )
        scheduler = SchedulerConfig(
            speculative=speculative,
            draft_model=draft_model,
            draft_heads=draft_heads,
            prefix_cache=False,
        )
        with LLM(model, **asdict(executor), **asdict(scheduler)) as llm:
            found = measure_speculation(llm, model, guessing, _progress)
        print(json.dumps(found.as_json()) if as_json else "\n".join(found.lines()))
        return None

    plan = Plan(
        parse_counts("--prefill", prefill),
        parse_counts("--streams", streams),
        parse_counts("--contexts", contexts),
        rounds,
        seed,
    )
    report = run_benchmark(
        model,
        parse_formats(formats, executor),
        plan,
        progress=_progress,
    )
    print(json.dumps(report.as_json()) if as_json else "\n".join(report.lines()))
    return None
