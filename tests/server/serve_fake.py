"""A real server with the fake engine: `python serve_fake.py '{"model": ..., "server": {...}}'`.

Prints one JSON line when it serves, and ends like `trimtab serve`.
"""

from __future__ import annotations

import json
import socket
import sys
import tempfile
from typing import Any

import fake_engine

from trimtab.config import ExecutorConfig, SchedulerConfig, ServerConfig
from trimtab.errors import TrimtabError, UserError
from trimtab.server import http, protocol, run
from trimtab.server.process_client import SupervisionPolicy
from trimtab.server.run import Announcement, Serving, serve


def announce(announcement: Announcement) -> None:
    print(json.dumps({"url": announcement.url}), flush=True)


def _print_bound() -> None:
    """Say the address as soon as it is bound, before the model is loaded."""
    original = run.bind

    def bind(host: str, port: int) -> socket.socket:
        listener = original(host, port)
        print(json.dumps({"bound": f"http://127.0.0.1:{listener.getsockname()[1]}"}), flush=True)
        return listener

    run.bind = bind


def main(options: dict[str, Any]) -> int:
    serving = Serving(
        model=options.get("model", "fake"),
        executor=ExecutorConfig(),
        scheduler=SchedulerConfig(**options.get("scheduler", {})),
        server=ServerConfig(port=0, **options.get("server", {})),
        loader="fake_engine:load",
        find_model=fake_engine.find_model,
        load_tokenizer=fake_engine.load_tokenizer,
        policy=SupervisionPolicy(**options.get("policy", {})),
    )
    if options.get("port"):
        _print_bound()
    protocol.HEADER_SECONDS = options.get("header_seconds", protocol.HEADER_SECONDS)
    http.BODY_SECONDS = options.get("body_seconds", http.BODY_SECONDS)
    protocol.READ_SECONDS = options.get("read_seconds", protocol.READ_SECONDS)
    protocol.LEFTOVER_SECONDS = options.get("leftover_seconds", protocol.LEFTOVER_SECONDS)
    if tmp := options.get("tmp"):
        tempfile.tempdir = tmp
    try:
        serve(serving, announce)
    except TrimtabError as error:
        print(f"trimtab: error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
