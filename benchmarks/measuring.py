"""One contender's process, and what is measured with it.

A round of a contender has phases, each in a fresh process:

    main        start, decode, prefill, streams, neighbour, peak memory; no prefix cache
    prefix      the prefix cache, for those that have one
    context N   decode after a prompt of N tokens; memory for that one stream only

The first round starts without anything that the contender kept on disk from earlier runs; its
files are in the system's page cache in every round.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from contenders import Contender
from peers.environments import interpreter, variables

OUTPUT_TOKENS = 128
PROMPT_TOKENS = 128
PREFIX_TOKENS = 2048
TAIL_TOKENS = 32
LIMIT_SECONDS = 3600.0  # of one answer
HERE = Path(__file__).resolve().parent


class PeerError(Exception):
    """One line: what a contender said when it could not go on."""


class Process:
    """A contender's worker, and the clock since it was started."""

    def __init__(
        self, environment: str, adapter: str, model: Path, options: dict[str, Any], root: Path
    ) -> None:
        name = f"{environment} {options['format']}"
        self.caches = root / "caches" / slug(name)
        settings = {
            **os.environ,
            **variables(root, environment),
            "OMP_NUM_THREADS": str(options["threads"]),
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "XDG_CACHE_HOME": str(self.caches),
        }
        for moved in ("TRIMTAB_PACKED_CACHE", "VLLM_CACHE_ROOT"):
            settings.pop(moved, None)
        self._log = (root / f"{slug(name)}.log").open("a")
        self.started = time.perf_counter()
        worker = HERE / "peers" / "worker.py"
        self._process = subprocess.Popen(
            [
                interpreter(root, environment),
                worker,
                adapter,
                model,
                "--options",
                json.dumps(options),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=settings,
        )
        self.peak_bytes = 0

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """The reply. Raises PeerError, also where there is none within an hour."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        guard = threading.Timer(LIMIT_SECONDS, self._process.kill)
        guard.start()
        try:
            with suppress(BrokenPipeError):  # it has said why it ended
                print(json.dumps(request), file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        finally:
            guard.cancel()
        if not line:
            raise PeerError(
                f"ended with status {self._process.wait()}; see {Path(self._log.name).name}"
            )
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            raise PeerError(reply["error"])
        self.peak_bytes = reply.get("peak_bytes", self.peak_bytes)
        return reply

    def about(self) -> str:
        """Version and settings. Raises PeerError."""
        return str(self.ask({"about": True})["about"])

    def seconds(self, prompts: list[list[int]], num_tokens: int) -> float:
        """Wall time of one generation. Raises PeerError."""
        return float(self.ask({"prompts": prompts, "tokens": num_tokens})["seconds"])

    def decode_rate(self, prompt: list[int]) -> float:
        """Tokens a second of one stream, from its first token on. Raises PeerError."""
        reply = self.ask({"prompts": [prompt], "tokens": OUTPUT_TOKENS})
        return (OUTPUT_TOKENS - 1) / max(float(reply["seconds"] - reply["first_seconds"]), 1e-9)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._log.close()


def slug(name: str) -> str:
    return name.replace(" ", "-")


@dataclass(frozen=True)
class Plan:
    prefill: tuple[int, ...]
    streams: tuple[int, ...]
    contexts: tuple[int, ...]  # of decode, beyond the prompt of 128
    context_rounds: int  # how many of the rounds have those
    neighbour: bool
    prefix: bool
    vocab_size: int
    seed: int

    def phases(self, contender: Contender, round_number: int) -> list[str]:
        phases = ["main"]
        if self.prefix and contender.prefix_cache:
            phases.append("prefix")
        if round_number < self.context_rounds:
            phases += [f"context {length}" for length in self.contexts]
        return phases

    def limits(self, phase: str) -> dict[str, Any]:
        """What a peer may size its memory by: the fields of peers/worker.py's Options."""
        streams, context = 1, PREFIX_TOKENS + TAIL_TOKENS + 8
        if phase == "main":
            streams = max(1, *self.streams) if self.streams else 1
            context = max(PROMPT_TOKENS, *self.prefill, 0) + OUTPUT_TOKENS
        elif phase != "prefix":
            context = int(phase.split()[1]) + OUTPUT_TOKENS
        tokens = max(context, (PROMPT_TOKENS + OUTPUT_TOKENS) * streams)
        return {
            "max_context": context,
            "max_streams": streams,
            "max_tokens": tokens,
            "prefix_cache": phase == "prefix",
        }


@contextmanager
def busy_neighbour(core: int) -> Iterator[None]:
    """A process that keeps one core busy for 5 ms of every 10."""
    code = (
        f"import os, time; os.sched_setaffinity(0, {{{core}}})\n"
        "while True:\n"
        "    end = time.perf_counter() + 0.005\n"
        "    while time.perf_counter() < end: pass\n"
        "    time.sleep(0.005)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    try:
        time.sleep(0.2)
        yield
    finally:
        process.kill()
        process.wait()


def read_through(path: Path) -> None:
    """So that its bytes are in the page cache, as far as they fit."""
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    for name in files:
        with name.open("rb", buffering=0) as file:
            while file.read(16 << 20):
                pass


def measure(
    contender: Contender,
    model: Path,
    plan: Plan,
    round_number: int,
    phase: str,
    threads: int,
    root: Path,
    samples: dict[str, float],
) -> str:
    """One phase: adds to `samples`; the peer's version and settings.

    Prompts are the same for all contenders of a round. Raises PeerError, with what was measured
    until then in `samples`.
    """
    first_start = phase == "main" and round_number == 0
    caches = root / "caches" / slug(contender.label)
    if first_start:
        shutil.rmtree(caches, ignore_errors=True)
    for path in (model, caches):
        read_through(path)
    options = {"threads": threads, "format": contender.format, **plan.limits(phase)}
    process = Process(contender.environment, contender.adapter, model, options, root)
    random = np.random.default_rng((plan.seed, round_number, zlib.crc32(phase.encode())))
    try:
        if phase == "main":
            _measure_main(process, plan, random, " cold" if first_start else "", samples)
        elif phase == "prefix":
            _measure_prefix(process, plan, random, samples)
        else:
            _warm_up(process, plan, random)
            length = int(phase.split()[1])
            samples[f"decode {length}"] = process.decode_rate(_prompts(random, plan, 1, length)[0])
            samples[f"peak GB {length}"] = process.peak_bytes / 1e9
        return process.about()
    finally:
        process.close()


def _prompts(random: np.random.Generator, plan: Plan, count: int, length: int) -> list[list[int]]:
    prompts: list[list[int]] = random.integers(0, plan.vocab_size, (count, length)).tolist()
    return prompts


def _warm_up(process: Process, plan: Plan, random: np.random.Generator) -> None:
    process.seconds(_prompts(random, plan, 1, PROMPT_TOKENS), 8)


def _measure_main(
    process: Process,
    plan: Plan,
    random: np.random.Generator,
    kind: str,
    samples: dict[str, float],
) -> None:
    def prompts(count: int, length: int) -> list[list[int]]:
        return _prompts(random, plan, count, length)

    process.seconds(prompts(1, PROMPT_TOKENS), 1)
    samples["start" + kind] = time.perf_counter() - process.started
    _warm_up(process, plan, random)
    samples[f"decode {PROMPT_TOKENS}"] = process.decode_rate(prompts(1, PROMPT_TOKENS)[0])
    for length in plan.prefill:
        samples[f"prefill {length}"] = length / process.seconds(prompts(1, length), 1)
    for count in plan.streams:
        elapsed = process.seconds(prompts(count, PROMPT_TOKENS), OUTPUT_TOKENS)
        samples[f"{count} streams"] = count * OUTPUT_TOKENS / elapsed
    if plan.neighbour:
        with busy_neighbour(min(os.sched_getaffinity(0))):
            samples["neighbour"] = process.decode_rate(prompts(1, PROMPT_TOKENS)[0])
    samples["peak GB" + kind] = process.peak_bytes / 1e9


def _measure_prefix(
    process: Process, plan: Plan, random: np.random.Generator, samples: dict[str, float]
) -> None:
    _warm_up(process, plan, random)
    prefix = _prompts(random, plan, 1, PREFIX_TOKENS)[0]
    for name, tail in zip(
        ("prefix miss", "prefix hit"), _prompts(random, plan, 2, TAIL_TOKENS), strict=True
    ):
        samples[name] = process.seconds([prefix + tail], 1)
