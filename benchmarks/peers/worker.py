"""One contender of the benchmarks: loads a model and answers requests about it.

    python worker.py PEER MODEL --options JSON

Runs in the peer's own environment, so neither this file nor the adapters beside it import trimtab
(but for trimtab's own). JSON lines: for each request on standard input one reply on standard
output.

    {"about": true}
    {"about": the peer's version and settings}

    {"prompts": [[token ids], ...], "tokens": n}
    {"seconds": s, "first_seconds": f, "peak_bytes": b}

seconds is the wall time from all prompts in hand to the last of n tokens of each, greedy, end
tokens ignored; first_seconds that to the first token, null unless there is one prompt; peak_bytes
the highest resident memory so far.

    {"windows": [[token ids], ...], "logits": path}
    {}

writes the logits of every position of every window, all of one length, to a .npy file, float32
[windows, length, vocabulary]. {"error": "..."} where something failed. What a peer prints goes to
standard error.
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

import numpy as np


@dataclass(frozen=True)
class Options:
    """Limits that a peer may size its memory by, and what it needs to know of its format."""

    threads: int
    max_context: int  # tokens of the longest prompt and its output
    max_streams: int
    max_tokens: int  # of all streams together
    format: str
    prefix_cache: bool = False  # reuse what earlier prompts left


@dataclass(frozen=True)
class Generated:
    tokens: list[list[int]]  # of each prompt
    first_at: float | None = None  # time.perf_counter() at the first token, of one prompt


class Peer(Protocol):
    @property
    def about(self) -> str:
        """Version and settings, one line."""
        ...

    def generate(self, prompts: list[list[int]], num_tokens: int) -> Generated:
        """Exactly num_tokens greedy tokens after each prompt, all prompts at once."""
        ...


class Scorer(Protocol):
    @property
    def about(self) -> str: ...

    def logits(self, window: list[int]) -> np.ndarray:
        """Of every position, float32 [length, vocabulary]."""
        ...


def load(peer: str, model: Path, options: Options) -> Any:
    """A Peer or a Scorer, or both: `PEER.py` beside this file has `load(model, options)`."""
    return importlib.import_module(peer).load(model, options)


def answer(peer: Any, request: dict[str, Any]) -> dict[str, Any]:
    if "about" in request:
        return {"about": peer.about}
    return score(peer, request) if "windows" in request else generate(peer, request)


def score(scorer: Scorer, request: dict[str, Any]) -> dict[str, Any]:
    logits = [scorer.logits(window) for window in request["windows"]]
    np.save(request["logits"], np.stack(logits).astype(np.float32, copy=False))
    return {}


def generate(peer: Peer, request: dict[str, Any]) -> dict[str, Any]:
    start = time.perf_counter()
    generated = peer.generate(request["prompts"], request["tokens"])
    seconds = time.perf_counter() - start
    lengths = {len(tokens) for tokens in generated.tokens}
    if len(generated.tokens) != len(request["prompts"]) or lengths != {request["tokens"]}:
        raise RuntimeError(f"asked for {request['tokens']} tokens each, got {sorted(lengths)}")
    first = generated.first_at
    return {
        "seconds": seconds,
        "first_seconds": None if first is None else first - start,
        "peak_bytes": peak_bytes(),
    }


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
            request = json.loads(line)
            print(json.dumps(answer(peer, request)), file=replies)
    except Exception as error:  # one line for the table; the whole of it for whoever looks
        text = " ".join(f"{type(error).__name__}: {error}".split())
        print(json.dumps({"error": text[:300]}), file=replies)
        raise


if __name__ == "__main__":
    main()
