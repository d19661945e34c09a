"""`trimtab inspect`: what a model is, what it needs in memory, what limits its speed here."""

from __future__ import annotations

import json

import typer

from trimtab.cli.options import with_config_options
from trimtab.config import ExecutorConfig


@with_config_options
def command(
    executor: ExecutorConfig,
    model: str = typer.Argument(help="builtin, a directory, a GGUF file or a Hugging Face id"),
    as_json: bool = typer.Option(False, "--json", help="one JSON object instead of text"),
) -> None:
    """Say what MODEL is, its bytes by part, and the ceilings that this machine puts on it.

    Bandwidth and arithmetic are measured now, for two seconds or so.
    """
    from trimtab.bench.device import measure_limits
    from trimtab.bench.inspection import describe, inspection
    from trimtab.checkpoints import open_checkpoint, resolve_model
    from trimtab.executors.devices import check_device
    from trimtab.executors.formats import choose_formats

    check_device(executor.device)
    checkpoint = open_checkpoint(resolve_model(model), executor.max_context)
    formats = choose_formats(checkpoint, executor)
    machine = measure_limits(executor)
    found = inspection(checkpoint.spec, executor, machine, formats)
    print(json.dumps(found.as_json()) if as_json else "\n".join(describe(found)))
