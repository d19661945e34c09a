"""`trimtab serve`: an OpenAI-compatible server, of a model or of a plan."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from trimtab import environment
from trimtab.cli.options import given_options, with_config_options
from trimtab.config import ExecutorConfig, SchedulerConfig, ServerConfig

if TYPE_CHECKING:
    from trimtab.optimizer.serving import Prepared
    from trimtab.server.run import Announcement


@with_config_options
def command(
    context: typer.Context,
    executor: ExecutorConfig,
    scheduler: SchedulerConfig,
    server: ServerConfig,
    model: str = typer.Argument(
        help="builtin, a directory, a GGUF file, a Hugging Face id, or a plan.yaml"
    ),
    as_json: bool = typer.Option(False, "--json", help="announce the server as one line of JSON"),
) -> None:
    """Serve MODEL behind an OpenAI-compatible API.

    A plan is served as it was measured. Of a model, what is not given is fitted to this machine.
    """
    from trimtab.optimizer.plan import is_plan_file
    from trimtab.optimizer.serving import prepare_model, prepare_plan
    from trimtab.server.run import Serving, serve

    if server.api_key is None:
        server = replace(server, api_key=environment.api_key())
    if server.admin_key is None:
        server = replace(server, admin_key=environment.admin_key())
    if sys.stderr.isatty():
        print(f"loading {model} ...", file=sys.stderr)
    given = given_options(context, ExecutorConfig, SchedulerConfig)
    if is_plan_file(model):
        prepared = prepare_plan(Path(model).expanduser(), given, _print_progress)
        report = Path(model).expanduser().with_name("report.html")
        if server.report is None and report.is_file():
            server = replace(server, report=str(report))
    else:
        prepared = prepare_model(model, executor, scheduler, given)
    if server.served_model_name is None:
        server = replace(server, served_model_name=prepared.name)
    announce = partial(_print_json if as_json else _print_lines, prepared)
    serve(Serving(prepared.model, prepared.executor, prepared.scheduler, server), announce)


def _print_progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _curl(announcement: Announcement) -> str:
    """A line that works as it stands in a shell; it never shows the key."""
    body = {
        "model": announcement.model.name,
        "messages": [{"role": "user", "content": "Hello!"}],
        "max_tokens": 64,
    }
    path = "/v1/chat/completions"
    if not announcement.model.has_chat_template:
        path = "/v1/completions"
        del body["messages"]
        body["prompt"] = "Hello"
    has_keys = announcement.server.api_key or announcement.server.api_key_file
    key = ' -H "Authorization: Bearer $TRIMTAB_API_KEY"' if has_keys else ""
    return (
        f"curl -s {announcement.url}{path}{key}"
        f" -H 'Content-Type: application/json' -d {shlex.quote(json.dumps(body))}"
    )


def _print_lines(prepared: Prepared, announcement: Announcement) -> None:
    info = announcement.engine
    print(f"model    {announcement.model.name}")
    print(
        f"plan     {info.executor}; context {info.max_context} tokens,"
        f" KV cache {info.kv_capacity_tokens} tokens"
    )
    print(f"address  {announcement.url}/v1")
    if announcement.server.page:
        print(f"page     {announcement.url}/")
        if announcement.server.report is not None:
            print(f"report   {announcement.url}/report")
    print(f"try it   {_curl(announcement)}")
    for word, line in prepared.lines:
        print(f"{word:<8} {line}")
    sys.stdout.flush()


def _print_json(prepared: Prepared, announcement: Announcement) -> None:
    info = announcement.engine
    document: dict[str, Any] = {
        "url": announcement.url,
        "model": announcement.model.name,
        "plan": info.executor,
        "max_context": info.max_context,
        "kv_capacity_tokens": info.kv_capacity_tokens,
        "curl": _curl(announcement),
        "prepared": prepared.document,
    }
    print(json.dumps(document), flush=True)
