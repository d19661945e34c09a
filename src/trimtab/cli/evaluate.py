"""`trimtab eval`: what a model is worth, and what a format costs of that."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import typer

from trimtab.cli.options import with_config_options
from trimtab.config import ExecutorConfig
from trimtab.errors import UserError


@with_config_options
def command(
    executor: ExecutorConfig,
    model: str = typer.Argument(help="builtin, a directory, a GGUF file or a Hugging Face id"),
    text: list[Path] = typer.Option(
        [], help="UTF-8 files to score, each a document; may be given several times"
    ),
    tasks: Path | None = typer.Option(
        None, help='JSON lines {"prompt", "answer"}, and "kind" if there are several'
    ),
    baseline: str = typer.Option(
        "",
        help="compare with this, on the text: a weight format of the same model (f32, bf16, int8 "
        "...), or another model with the same vocabulary, as bf16, or MODEL:FORMAT",
    ),
    window: int = typer.Option(512, min=2, help="tokens of a window of text"),
    limit: int = typer.Option(0, min=0, help="score at most so many windows, spread over all"),
    as_json: bool = typer.Option(False, "--json", help="one JSON object instead of text"),
) -> None:
    """Measure MODEL's quality: perplexity, distance from a baseline, tasks, with error bars.

    builtin brings its own text and tasks.
    """
    from trimtab import builtin
    from trimtab.evaluation.run import Subject, parse_baseline, read_text, run_evaluation
    from trimtab.evaluation.tasks import read_tasks

    if model == "builtin" and not text and tasks is None:
        text, tasks = [builtin.heldout_path()], builtin.tasks_path()
    if not text and tasks is None:
        raise UserError("nothing to evaluate with: use --text FILE, --tasks FILE or both")
    if baseline and not text:
        raise UserError("--baseline compares on text: use --text FILE, too")
    subject = Subject(model, executor)
    report = run_evaluation(
        subject,
        [read_text(path) for path in text],
        read_tasks(tasks) if tasks is not None else [],
        window,
        limit,
        parse_baseline(baseline, subject) if baseline else None,
        progress=lambda line: print(line, file=sys.stderr, flush=True),
    )
    print(json.dumps(report.as_json()) if as_json else "\n".join(report.lines()))
