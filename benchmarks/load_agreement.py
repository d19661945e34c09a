"""Our load generator beside guidellm and aiperf on the same server, definition by definition.

    python benchmarks/load_agreement.py mock mock-batch builtin \\
        --json benchmarks/results/load-agreement.json

Each round runs the three in turn, at the same constant rate, with prompts of the same lengths that
no server with a cache had before, on the completions route. Peers have environments of their
own (`--guidellm`, `--aiperf`: their commands; an empty one is left out) and the same real-time
priority as ours where that is allowed, so that definitions are compared and not priorities.

`mock`, `mock-batch`: the deterministic server. `builtin`, or any MODEL: `trimtab serve`.
What is compared: medians over the rounds; what a tool does not report is left out.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from load_peers import run_guidellm, run_peer
from measuring import slug
from serving import serving
from trimtab.bench.load import LoadRun, run_load
from trimtab.bench.load_state import LoadOptions
from trimtab.bench.load_target import Target
from trimtab.bench.mock_schedule import MockConfig
from trimtab.bench.mock_server import running_mock
from trimtab.builtin import target_path
from trimtab.tokenization import load_tokenizer
from trimtab.workloads.requests import Piece, PlannedRequest, Workload
from trimtab.workloads.texts import PieceTexts

PROMPT_TOKENS = 120


@dataclass(frozen=True)
class Shape:
    """Of a load, and of the mock server that it is for."""

    rate: float
    num_output_tokens: int
    mock: MockConfig | None = None


# Requests that do not meet, and requests that share steps; then a real server.
SHAPES = {
    "mock": Shape(2.0, 16, MockConfig(step_ms=20, prefill_ms_per_token=2.0)),
    "mock-batch": Shape(6.0, 64, MockConfig(step_ms=20, prefill_ms_per_token=0.2)),
}
SERVED = Shape(6.0, 64)
SECONDS = 600
Figures = dict[str, float]
# metric -> what it is. The first half of a name is ours.
DEFINITIONS = {
    "ttft_service mean": "sent to first token, ms: TTFT of both",
    "ttft_service p50": "its median, ms",
    "tpot mean": "(last token - first) / (tokens - 1), ms: ITL of both",
    "tpot_inclusive mean": "(last token - sent) / tokens, ms: TPOT of guidellm",
    "e2e_service mean": "sent to end, ms: request latency of both",
    "e2e_service p50": "its median, ms",
    "e2e mean": "schedule to end, ms: scheduled latency of guidellm",
    "ttft by the server": "the same requests as the mock server saw them, ms",
    "e2e by the server": "up to its last token, ms",
    "output tokens": "of an answer, mean",
    "prompt tokens": "of a prompt, mean",
    "requests/s": "completed / (first sent to last end)",
    "output tokens/s": "output tokens / (first sent to last end)",
}


def prompts_of(texts: PieceTexts, key: str, count: int) -> list[str]:
    return [texts.prompt([Piece(f"{key}/{n}", PROMPT_TOKENS)]).text for n in range(count)]


def ours(url: str, model: str, prompts: list[str], shape: Shape, folder: Path) -> Figures:
    requests = tuple(
        PlannedRequest(n, n / shape.rate, (Piece(text, 1),), shape.num_output_tokens, session=n)
        for n, text in enumerate(prompts)
    )
    run = run_load(
        Target(url, model, route="completions"),
        Workload("agreement", requests, shape.rate, None, 0),
        make_text=lambda pieces: pieces[0].key,
        options=LoadOptions(warm_up=0, stop_when_saturated=False),
    )
    if not run.valid:
        print(f"  void: {run.why}", file=sys.stderr)
    return figures_of(run)


def figures_of(run: LoadRun) -> Figures:
    """Over all requests of a run, as the peers do it."""
    records = run.records
    failed = [record.error for record in records if not record.is_complete]
    if failed:
        raise RuntimeError(f"{len(failed)} requests failed: {failed[0]}")

    def values(name: str) -> list[float]:
        found = [1e3 * getattr(record, name) for record in records]
        return [value for value in found if math.isfinite(value)]

    span = max(one.ended for one in records) - min(one.sent for one in records)
    tokens = sum(one.num_output_tokens for one in records)
    found = {
        f"{name} mean": statistics.fmean(values(name))
        for name in ("ttft_service", "tpot", "tpot_inclusive", "e2e_service", "e2e")
    }
    return found | {
        "ttft_service p50": statistics.median(values("ttft_service")),
        "e2e_service p50": statistics.median(values("e2e_service")),
        "output tokens": tokens / len(records),
        "prompt tokens": statistics.fmean(one.num_prompt_tokens for one in records),
        "requests/s": len(records) / span,
        "output tokens/s": tokens / span,
        "void": float(not run.valid),
    }


def guidellm(
    command: str, url: str, model: str, prompts: list[str], shape: Shape, folder: Path
) -> Figures:
    rows = [{"prompt": text, "output_tokens_count": shape.num_output_tokens} for text in prompts]
    profile = f"kind=constant,rate={shape.rate}"
    metrics = run_guidellm(command, url, model, target_path(), rows, profile, folder)["metrics"]

    def mean(name: str, statistic: str = "mean") -> float:
        return float(metrics[name]["successful"][statistic])

    totals = metrics["request_totals"]
    if totals["successful"] < 0.95 * len(prompts):
        raise RuntimeError(f"guidellm completed {totals}")
    return {
        "ttft_service mean": mean("time_to_first_token_ms"),
        "ttft_service p50": mean("time_to_first_token_ms", "median"),
        "tpot mean": mean("inter_token_latency_ms"),
        "tpot_inclusive mean": mean("time_per_output_token_ms"),
        "e2e_service mean": 1e3 * mean("request_latency"),
        "e2e_service p50": 1e3 * mean("request_latency", "median"),
        "e2e mean": 1e3 * mean("request_scheduled_latency"),
        "output tokens": mean("output_token_count"),
        "prompt tokens": mean("prompt_token_count"),
        "requests/s": mean("requests_per_second"),
        "output tokens/s": mean("output_tokens_per_second"),
        "failed": float(totals["errored"] + totals["incomplete"]),
    }


def aiperf(
    command: str, url: str, model: str, prompts: list[str], shape: Shape, folder: Path
) -> Figures:
    data, out = folder / "prompts.jsonl", folder / "aiperf"
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in prompts))
    fields = [f"{name}_tokens:{shape.num_output_tokens}" for name in ("max", "min")]
    run_peer(
        [
            command, "profile", "-m", model, "--url", url, "--endpoint-type", "completions",
            "--streaming", "--input-file", str(data), "--custom-dataset-type", "single_turn",
            "--dataset-sampling-strategy", "sequential",
            "--request-rate", str(shape.rate), "--request-rate-mode", "constant",
            "--request-count", str(len(prompts)), "--tokenizer", str(target_path()),
            "--use-server-token-count", "--extra-inputs", *fields, "ignore_eos:true",
            "temperature:0", "--output-artifact-dir", str(out), "--ui", "none",
        ],
        folder,
    )  # fmt: skip
    found = json.loads((out / "profile_export_aiperf.json").read_text())

    def of(name: str, statistic: str = "avg") -> float:
        return float(found[name][statistic])

    return {
        "ttft_service mean": of("time_to_first_token"),
        "ttft_service p50": of("time_to_first_token", "p50"),
        "tpot mean": of("inter_token_latency"),
        "e2e_service mean": of("request_latency"),
        "e2e_service p50": of("request_latency", "p50"),
        "output tokens": of("output_sequence_length"),
        "prompt tokens": of("input_sequence_length"),
        "requests/s": of("request_throughput"),
        "output tokens/s": of("output_token_throughput"),
    }


@contextmanager
def server_named(name: str, real_time: bool) -> Iterator[tuple[str, str]]:
    """(url, model)"""
    shape = SHAPES.get(name)
    if shape is not None:
        with running_mock(shape.mock) as url:
            yield url, "mock"
        return
    with serving(name, "--threads", "1") as server:
        if real_time:
            for pid in (server.process.pid, server.engine_pid):
                before_all_else(pid)
        yield server.url, server.model


def before_all_else(pid: int | None) -> None:
    """Real-time priority for all threads of a process of ours, as the clients have it: the machine
    has other users, and a server that waits for them answers each client differently."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setscheduler(int(task.name), os.SCHED_RR, os.sched_param(1))


def measure(
    name: str,
    tools: dict[str, Callable[..., Figures]],
    shape: Shape,
    count: int,
    rounds: int,
    real_time: bool,
) -> dict[str, list[Figures]]:
    texts = PieceTexts(load_tokenizer(target_path()))
    found: dict[str, list[Figures]] = {tool: [] for tool in tools}
    with server_named(name, real_time) as (url, model):
        for round_number in range(rounds):
            for tool, measured in tools.items():
                # A word is a token of the mock server, so that all ask it the same.
                key = f"{round_number}" if name in SHAPES else f"{tool}/{round_number}"
                prompts = prompts_of(texts, key, count)
                with tempfile.TemporaryDirectory(prefix=f"{slug(tool)}-") as folder:
                    figures = measured(url, model, prompts, shape, Path(folder))
                if name in SHAPES:
                    figures |= own_figures(url, count)
                found[tool].append(figures)
                print(f"{name} round {round_number} {tool}: {figures}", file=sys.stderr)
    return found


def own_figures(url: str, count: int) -> Figures:
    """What the mock server itself saw of the last requests."""
    with urllib.request.urlopen(f"{url}/mock/requests") as answer:
        entries = json.load(answer)[-count:]
    return {
        "ttft by the server": statistics.fmean(1e3 * (e["first"] - e["at"]) for e in entries),
        "e2e by the server": statistics.fmean(1e3 * (e["last"] - e["at"]) for e in entries),
    }


def table(name: str, found: dict[str, list[Figures]]) -> tuple[list[str], dict[str, Any]]:
    """Markdown lines, and {metric: {tool: median, tool/ours: ratio}}."""
    tools = list(found)
    lines = [f"| {name} | " + " | ".join(tools) + " | definition |"]
    lines.append("|---" * (len(tools) + 2) + "|")
    rows: dict[str, Any] = {}
    for metric, definition in DEFINITIONS.items():
        if metric not in found["ours"][0]:
            continue
        own = statistics.median(one[metric] for one in found["ours"])
        cells, row = [f"{own:.4g}"], {"ours": own}
        for tool in tools[1:]:
            if not all(metric in one for one in found[tool]):
                cells.append("-")
                continue
            value = statistics.median(one[metric] for one in found[tool])
            row |= {tool: value, f"{tool} / ours": value / own}
            cells.append(f"{value:.4g} ({100 * (value / own - 1):+.1f} %)")
        rows[metric] = row
        lines.append(f"| {metric} | " + " | ".join(cells) + f" | {definition} |")
    return lines, rows


def version_of(command: str) -> str:
    done = subprocess.run([command, "--version"], capture_output=True, text=True, timeout=SECONDS)
    return (done.stdout or done.stderr).strip().split()[-1]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("servers", nargs="+", help="mock, or a MODEL for `trimtab serve`")
    parser.add_argument("--rate", type=float, help="of a MODEL")
    parser.add_argument("--output-tokens", type=int, help="of a MODEL")
    parser.add_argument("--requests", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--real-time", action="store_true", help="for the MODEL's server, too")
    parser.add_argument("--guidellm", default="/opt/guidellm/bin/guidellm")
    parser.add_argument("--aiperf", default="/opt/aiperf/bin/aiperf")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    tools: dict[str, Callable[..., Figures]] = {"ours": ours}
    versions = {}
    for tool, command, measured in (
        ("guidellm", asked.guidellm, guidellm),
        ("aiperf", asked.aiperf, aiperf),
    ):
        if command:
            versions[tool] = version_of(command)
            tools[tool] = lambda *rest, c=command, m=measured: m(c, *rest)
    results: dict[str, Any] = {}
    if asked.json and asked.json.exists():  # of servers that were measured before
        results = json.loads(asked.json.read_text())["servers"]
    for name in asked.servers:
        shape = SHAPES.get(name) or Shape(
            asked.rate or SERVED.rate, asked.output_tokens or SERVED.num_output_tokens
        )
        found = measure(name, tools, shape, asked.requests, asked.rounds, asked.real_time)
        lines, rows = table(name, found)
        print("\n".join(lines), flush=True)
        results[name] = {
            "rate": shape.rate,
            "output_tokens": shape.num_output_tokens,
            "requests": asked.requests,
            "real_time_server": asked.real_time and name not in SHAPES,
            "medians": rows,
            "rounds": found,
        }
        if asked.json:
            about = {"prompt_tokens": PROMPT_TOKENS, "versions": versions}
            document = {**about, "definitions": DEFINITIONS, "servers": results}
            asked.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
