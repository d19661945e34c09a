"""One contender of benchmarks/compare.py: loads a model and times the generations it is told to.

    python worker.py PEER MODEL --options JSON

Runs in the peer's own environment, so neither this file nor the adapters beside it import trimtab
(but for trimtab's own). JSON lines: for each request on standard input

    {"prompts": [[token ids], ...], "tokens": n}

one reply on standard output, where seconds is the wall time from all prompts in hand to the last of
n tokens of each, greedy, end tokens ignored:

    {"seconds": s, "first": [first token of each prompt], "peak_bytes": highest resident memory}

or {"error": "..."}. What a peer prints goes to standard error.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True)
class Options:
    """Limits that a peer may size its memory by, and what it needs to know of its format."""

    threads: int
    max_context: int  # tokens of the longest prompt and its output
    max_streams: int
    max_tokens: int  # of all streams together
    format: str


class Peer(Protocol):
    def generate(self, prompts: list[list[int]], num_tokens: int) -> list[list[int]]:
        """Exactly num_tokens greedy tokens after each prompt, all prompts at once."""
        ...


def load(peer: str, model: Path, options: Options) -> Peer:
    """`benchmarks/peers/PEER.py` has a function `load(model, options)`."""
    loaded: Peer = importlib.import_module(peer).load(model, options)
    return loaded


def answer(peer: Peer, request: dict[str, Any]) -> dict[str, Any]:
    start = time.perf_counter()
    outputs = peer.generate(request["prompts"], request["tokens"])
    seconds = time.perf_counter() - start
    lengths = {len(output) for output in outputs}
    if len(outputs) != len(request["prompts"]) or lengths != {request["tokens"]}:
        raise RuntimeError(f"asked for {request['tokens']} tokens each, got {sorted(lengths)}")
    first = [int(output[0]) for output in outputs]
    return {"seconds": seconds, "first": first, "peak_bytes": peak_bytes()}


def peak_bytes() -> int:
    """Of this program; getrusage would also count what its parent had when it forked."""
    status = Path("/proc/self/status").read_text()
    lines = dict(line.split(":", 1) for line in status.splitlines())
    return int(lines["VmHWM"].split()[0]) * 1024


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("peer")
    parser.add_argument("model", type=Path)
    parser.add_argument("--options", required=True)
    args = parser.parse_args()
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    try:
        peer = load(args.peer, args.model, Options(**json.loads(args.options)))
        for line in sys.stdin:
            print(json.dumps(answer(peer, json.loads(line))), file=replies)
    except Exception as error:  # one line for the table; the whole of it for whoever looks
        print(json.dumps({"error": f"{type(error).__name__}: {error}"[:300]}), file=replies)
        raise


if __name__ == "__main__":
    main()
