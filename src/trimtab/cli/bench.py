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


@with_config_options
def command(
    executor: ExecutorConfig,
    model: str = typer.Argument(help="builtin, a directory, a GGUF file or a Hugging Face id"),
    formats: str = typer.Option(
        "", help="compare weight formats in one run, interleaved: bf16,int8,int4-g64"
    ),
    prefill: str = typer.Option("512,2048", help="prompt lengths"),
    streams: str = typer.Option("8,16", help="numbers of concurrent requests"),
    contexts: str = typer.Option(
        "", help="decode with this many tokens in the KV cache too: 8192,32768"
    ),
    rounds: int = typer.Option(3, min=1, help="how often each row is measured"),
    seed: int = typer.Option(0, help="of the random prompts"),
    speculative: str = typer.Option(
        "",
        help="what guessing tokens ahead gains on a workload, instead: auto, or lookup, draft, "
        "heads, several joined by +",
    ),
    workload: Path | None = typer.Option(
        None, help='with --speculative: JSON lines of {"prompt": ...} or {"messages": ...}'
    ),
    draft_model: str | None = typer.Option(None, help="with --speculative: a smaller MODEL"),
    draft_heads: str | None = typer.Option(None, help="with --speculative: trained draft heads"),
    output_tokens: int = typer.Option(128, min=2, help="with --speculative: of each prompt"),
    temperature: float = typer.Option(0.0, min=0.0, help="with --speculative"),
    as_json: bool = typer.Option(False, "--json", help="one JSON object instead of a table"),
) -> None:
    """Measure how fast MODEL runs here: median of the rounds, and percent of the limit."""
    from trimtab.bench.run import run_benchmark
    from trimtab.bench.speculation import SpeculationPlan, measure_speculation
    from trimtab.bench.speed import Plan
    from trimtab.engine.llm import LLM

    if speculative:
        guessing = SpeculationPlan(
            parse_counts("--streams", streams), rounds, output_tokens, temperature, workload
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
        return

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
