"""trimtab beside its peers, on one machine, in one run, pinned to the same cores.

    python benchmarks/compare.py --model qwen3-0.6b --work DIR --json benchmarks/results/NAME.json

Makes an environment for each peer (the first time: gigabytes, and minutes of compiling), writes one
random-weight checkpoint, gives every peer its own copy of it, then measures. Rounds are the outer
loop and every contender gets a fresh process in each, so that a noisy minute hits all alike.

    decode N       127 / (t(N, 128) - t(N, 1)): one stream after a prompt of N
    prefill N      N / t(N, 1)
    streams B      B * 128 / t(B prompts of 128, 128 each), prefill included
    neighbour      decode 128 while another process keeps the first core busy half of the time
    start          seconds from process start to the first token after a prompt of 128

Ceilings are the best read bandwidth and arithmetic measured during the run, against the bytes that
the contender's own formats make it read.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from contenders import CONTENDERS, Contender, convert
from make_model import make_model, read_config
from peers.environments import install, interpreter
from trimtab.bench.footprint import Footprint, footprint
from trimtab.bench.machine import MachineLimits, measure_bandwidth, measure_machine
from trimtab.bench.report import ceiling_of
from trimtab.checkpoints import open_checkpoint, resolve_model
from trimtab.config import ExecutorConfig
from trimtab.errors import UserError
from trimtab.executors.cpu import select_isa
from trimtab.models.spec import ModelSpec

OUTPUT_TOKENS = 128
PROMPT_TOKENS = 128
HERE = Path(__file__).resolve().parent


class PeerError(Exception):
    """One line: what a contender said when it could not go on."""


class Process:
    """A contender's worker, and the clock since it was started."""

    def __init__(self, contender: Contender, model: Path, options: dict[str, Any], root: Path):
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(options["threads"]),
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        python = interpreter(root, contender.environment)
        self._log = (root / f"{contender.label.replace(' ', '-')}.log").open("a")
        self.started = time.perf_counter()
        worker = HERE / "peers" / "worker.py"
        self._process = subprocess.Popen(
            [python, worker, contender.adapter, model, "--options", json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=environment,
        )
        self.peak_bytes = 0

    def seconds(self, prompts: list[list[int]], num_tokens: int) -> float:
        """Wall time of one generation. Raises PeerError."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            print(
                json.dumps({"prompts": prompts, "tokens": num_tokens}),
                file=self._process.stdin,
                flush=True,
            )
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = self._process.stdout.readline()
        if not line:
            raise PeerError(f"ended with status {self._process.wait()}; see {self._log.name}")
        reply = json.loads(line)
        if "error" in reply:
            raise PeerError(reply["error"])
        self.peak_bytes = reply["peak_bytes"]
        return float(reply["seconds"])

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._log.close()


@dataclass
class Result:
    """Samples of one contender by measure, or why there are none."""

    contender: Contender
    samples: dict[str, list[float]] = field(default_factory=dict)
    error: str = ""

    def add(self, measure: str, value: float) -> None:
        self.samples.setdefault(measure, []).append(value)


@dataclass(frozen=True)
class Plan:
    prefill: tuple[int, ...]
    streams: tuple[int, ...]
    contexts: tuple[int, ...]  # of decode, beyond the prompt of 128
    neighbour: bool
    vocab_size: int
    seed: int

    @property
    def max_context(self) -> int:
        return max(PROMPT_TOKENS, *self.prefill, *self.contexts) + OUTPUT_TOKENS

    @property
    def max_tokens(self) -> int:
        return max(self.max_context, (PROMPT_TOKENS + OUTPUT_TOKENS) * max(self.streams, default=1))


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


def measure(result: Result, process: Process, plan: Plan, round_number: int) -> None:
    """One round of one contender. Prompts are the same for all contenders of a round."""
    random = np.random.default_rng((plan.seed, round_number))

    def prompts(count: int, length: int) -> list[list[int]]:
        return random.integers(0, plan.vocab_size, (count, length)).tolist()

    def decode(length: int) -> float:
        first = process.seconds(prompts(1, length), 1)
        whole = process.seconds(prompts(1, length), OUTPUT_TOKENS)
        return (OUTPUT_TOKENS - 1) / max(whole - first, 1e-9)

    process.seconds(prompts(1, PROMPT_TOKENS), 1)
    result.add("start", time.perf_counter() - process.started)
    process.seconds(prompts(1, PROMPT_TOKENS), 8)  # warm-up
    result.add(f"decode {PROMPT_TOKENS}", decode(PROMPT_TOKENS))
    for length in plan.prefill:
        result.add(f"prefill {length}", length / process.seconds(prompts(1, length), 1))
    for count in plan.streams:
        elapsed = process.seconds(prompts(count, PROMPT_TOKENS), OUTPUT_TOKENS)
        result.add(f"{count} streams", count * OUTPUT_TOKENS / elapsed)
    for length in plan.contexts:
        result.add(f"decode {length}", decode(length))
    if plan.neighbour:
        with busy_neighbour(min(os.sched_getaffinity(0))):
            result.add("neighbour", decode(PROMPT_TOKENS))
    result.add("peak GB", process.peak_bytes / 1e9)


def ceiling(
    measure_name: str, contender: Contender, spec: ModelSpec, machine: MachineLimits
) -> float | None:
    """Tokens a second that the machine permits this contender; None where there is no such."""
    name = "decode" if measure_name in (f"decode {PROMPT_TOKENS}", "neighbour") else measure_name
    if name in ("start", "peak GB") or name.startswith("decode "):
        return None
    config = ExecutorConfig(weights=contender.group)
    model = own_bytes(footprint(spec, config), contender)
    return ceiling_of(name, model, config, machine)


def own_bytes(model: Footprint, contender: Contender) -> Footprint:
    """The footprint with the bytes that this contender's formats have."""
    layers = model.layer_macs_per_token * contender.layer_bits / 8
    head = model.head_macs_per_token * contender.head_bits / 8
    return replace(model, read_bytes_per_step=int(layers + head))


def table(results: Sequence[Result], spec: ModelSpec, machine: MachineLimits) -> list[str]:
    """Markdown: a line a contender, best first within its group; cells median [low, high]."""
    measures = list(dict.fromkeys(name for result in results for name in result.samples))
    lines = []
    for group in dict.fromkeys(result.contender.group for result in results):
        lines += [f"### {group}", "", "| | head | " + " | ".join(measures) + " |"]
        lines.append("|---" * (len(measures) + 2) + "|")
        for result in (r for r in results if r.contender.group == group):
            cells = [result.contender.label, result.contender.head]
            if result.error:
                lines.append("| " + " | ".join(cells) + f" | {result.error} |")
                continue
            for name in measures:
                samples = result.samples.get(name, [])
                cells.append(cell(name, samples, result.contender, spec, machine))
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    return lines


def cell(
    name: str, samples: list[float], contender: Contender, spec: ModelSpec, machine: MachineLimits
) -> str:
    if not samples:
        return "–"
    text = f"**{statistics.median(samples):.3g}** [{min(samples):.3g}, {max(samples):.3g}]"
    limit = ceiling(name, contender, spec, machine)
    return text if limit is None else f"{text} {100 * statistics.median(samples) / limit:.0f} %"


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="qwen3-0.6b", help="a name of benchmarks/configs")
    parser.add_argument("--work", type=Path, required=True, help="environments and checkpoints")
    parser.add_argument("--only", default="", help="contenders whose label contains one of a,b,c")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prefill", default="512,2048")
    parser.add_argument("--streams", default="8,16")
    parser.add_argument("--contexts", default="", help="decode after prompts of these lengths too")
    parser.add_argument("--no-neighbour", dest="neighbour", action="store_false")
    parser.add_argument("--cores", default="", help="such as 0,1; default: all of this process")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(",") if part)


def main() -> None:
    args = parse_args()
    if args.cores:
        os.sched_setaffinity(0, numbers(args.cores))
    threads = len(os.sched_getaffinity(0))
    args.work.mkdir(parents=True, exist_ok=True)
    wanted = [part for part in args.only.split(",") if part] or [""]
    results = [Result(c) for c in CONTENDERS if any(part in c.label for part in wanted)]
    if not results:
        raise SystemExit(f"no contender matches {args.only!r}")
    models = args.work / Path(args.model).stem
    checkpoint = models / "checkpoint"
    if not checkpoint.exists():
        make_model(read_config(args.model), checkpoint, args.seed)
    copies = {}
    for result in results:
        try:
            python = install(args.work, result.contender.environment)
            copies[result.contender.label] = convert(result.contender, python, checkpoint, models)
        except (OSError, subprocess.CalledProcessError) as error:
            result.error = f"not installed or converted: {error}"[:200]
        say(f"{result.contender.label}: {result.error or 'ready'}")
    spec = open_checkpoint(resolve_model(str(checkpoint))).spec
    prefill, streams, contexts = map(numbers, (args.prefill, args.streams, args.contexts))
    plan = Plan(prefill, streams, contexts, args.neighbour, spec.vocab_size, args.seed)
    isa = select_isa()
    machine = measure_machine(isa, threads)
    bandwidth: list[float] = []
    for round_number in range(args.rounds):
        for result in results:
            if result.error:
                continue
            bandwidth += measure_bandwidth(isa, threads, repeats=3)
            say(f"round {round_number + 1}: {result.contender.label}")
            options = {
                "threads": threads,
                "max_context": plan.max_context,
                "max_streams": max((1, *streams)),
                "max_tokens": plan.max_tokens,
                "format": result.contender.format,
            }
            copy = copies[result.contender.label]
            process = Process(result.contender, copy, options, args.work)
            try:
                measure(result, process, plan, round_number)
            except PeerError as error:
                result.error = str(error)
            finally:
                process.close()
    machine = replace(
        machine,
        read_bytes_per_s=max(bandwidth),
        read_bytes_per_s_median=statistics.median(bandwidth),
        read_bytes_per_s_low=min(bandwidth),
    )
    print("\n".join(table(results, spec, machine)))
    if args.json:
        document = {
            "model": f"{args.model} shape, random weights, seed {args.seed}",
            "machine": machine.as_json(),
            "results": [asdict(result) for result in results],
        }
        args.json.write_text(json.dumps(document, indent=1) + "\n")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
