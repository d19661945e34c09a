"""What HTTP and the process boundary cost: streams through the server beside the bare engine.

    python benchmarks/serving_overhead.py MODEL --weights int8 --rounds 5
    python benchmarks/serving_overhead.py MODEL --weights int4 --route chat --json

Each round runs the same prompts twice: on an engine in this process, and as streaming requests to
`trimtab serve`, one connection each. Shown are tokens/s of both, their ratio, and the processor
time of the front process for each streamed token (all of its threads, by the kernel's own count).
The client shares the cores with the server; its time is shown, too. Leave the machine alone
meanwhile.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from trimtab.bench.machine import cpu_name
from trimtab.bench.speed import Clock, Subject
from trimtab.config import ExecutorConfig, SchedulerConfig, parse_weights
from trimtab.engine.loading import load_engine
from trimtab.executors.cpu import select_isa

WORDS = ["def", "return", "import", "class", "value", "list", "print", "with", "for", "self"]


@dataclass(frozen=True)
class Round:
    engine_tokens_per_s: float
    served_tokens_per_s: float
    front_us_per_token: float
    client_us_per_token: float
    events_per_token: float  # near 1, or what a streamed token costs was not measured

    @property
    def ratio(self) -> float:
        return self.served_tokens_per_s / self.engine_tokens_per_s


class Server:
    """`trimtab serve` as a child, and what it costs."""

    def __init__(self, model: str, weights: str, threads: int) -> None:
        name, group_size = parse_weights(weights)
        command = [sys.executable, "-m", "trimtab", "serve", model, "--port", "0", "--json"]
        command += ["--weights", name, "--group-size", str(group_size), "--threads", str(threads)]
        self._process = subprocess.Popen(
            [*command, "--no-prefix-cache", "--speculative", "off"],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("the server did not start")
        self.announcement = json.loads(line)

    def cpu_seconds(self) -> float:
        """Of all threads of the front process so far."""
        tasks = Path(f"/proc/{self._process.pid}/task").iterdir()
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) * 1e-9

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()


async def stream(address: tuple[str, int], path: str, body: dict[str, Any]) -> int:
    """The number of data events of one streamed answer, [DONE] not among them."""
    reader, writer = await asyncio.open_connection(*address)
    payload = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: benchmark\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(payload)}\r\n\r\n".encode() + payload)
    count, tail = 0, b""
    while not tail.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n"):
        data = await reader.read(1 << 16)
        if not data:
            raise RuntimeError(f"the stream broke off: {tail!r}")
        count += data.count(b"\ndata: {") + data.startswith(b"data: {")
        tail = (tail + data)[-200:]
    writer.close()
    return count


async def streams(url: str, path: str, bodies: Sequence[dict[str, Any]]) -> int:
    parts = urlsplit(url)
    address = parts.hostname or "", parts.port or 0
    return sum(await asyncio.gather(*(stream(address, path, body) for body in bodies)))


def bodies(args: argparse.Namespace, vocab_size: int, seed: int) -> tuple[str, list[Any]]:
    """The route, and one request for each stream: prompts that share nothing."""
    shared = {"stream": True, "temperature": 0, "max_tokens": args.tokens, "ignore_eos": True}
    random = np.random.default_rng(seed)
    if args.route == "completions":
        ids = random.integers(0, vocab_size, (args.streams, args.prompt)).tolist()
        return "/v1/completions", [{"prompt": prompt} | shared for prompt in ids]
    texts = [" ".join(random.choice(WORDS, args.prompt).tolist()) for _ in range(args.streams)]
    messages = [[{"role": "user", "content": text}] for text in texts]
    return "/v1/chat/completions", [{"messages": one} | shared for one in messages]


def name_every_token(model: Path, directory: Path) -> None:
    """The checkpoint, linked into `directory`, with a tokenizer as large as its vocabulary.

    Checkpoints of random weights have a small tokenizer and emit any token: those that it does not
    know have no text, so nothing would be streamed for them.
    """
    for file in model.iterdir():
        if file.name != "tokenizer.json":
            (directory / file.name).symlink_to(file.resolve())
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    known = {*vocabulary.values(), *(token["id"] for token in tokenizer["added_tokens"])}
    size = json.loads((model / "config.json").read_text())["vocab_size"]
    space = "\u0120"  # as byte-level BPE writes it
    vocabulary.update({f"{space}w{i}": i for i in range(size) if i not in known})
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))


def measure(args: argparse.Namespace) -> dict[str, Any]:
    weights, group_size = parse_weights(args.weights)
    config = ExecutorConfig(weights=weights, group_size=group_size, threads=args.threads)
    engine = load_engine(args.model, config, SchedulerConfig(prefix_cache=False, speculative="off"))
    subject = Subject("engine", engine, engine.info.vocab_size)
    server, clock = Server(args.model, args.weights, args.threads), Clock(0)
    rounds = []
    try:
        for index in range(-1, args.rounds):
            seconds = clock.seconds(subject, args.streams, args.prompt, args.tokens)
            path, asked = bodies(args, engine.info.vocab_size, index + 1)
            front, client, start = server.cpu_seconds(), time.process_time(), time.perf_counter()
            events = asyncio.run(streams(server.announcement["url"], path, asked))
            served = time.perf_counter() - start
            total = args.streams * args.tokens
            if index >= 0:  # the first one warms up
                rounds.append(
                    Round(
                        total / seconds,
                        total / served,
                        (server.cpu_seconds() - front) / total * 1e6,
                        (time.process_time() - client) / total * 1e6,
                        events / total,
                    )
                )
    finally:
        server.close()
        engine.close()
    return {
        "cpu": cpu_name(),
        "isa": select_isa(),
        "plan": server.announcement["plan"],
        "route": args.route,
        "streams": args.streams,
        "prompt_tokens": args.prompt,
        "completion_tokens": args.tokens,
        "rounds": [asdict(one) | {"ratio": one.ratio} for one in rounds],
    }


def report(document: dict[str, Any]) -> str:
    lines = [
        f"{document['plan']}: {document['streams']} streams, prompts of"
        f" {document['prompt_tokens']}, {document['completion_tokens']} tokens each,"
        f" /v1/{document['route']}"
    ]
    rows = {
        "engine_tokens_per_s": "engine alone, tokens/s",
        "served_tokens_per_s": "served, tokens/s",
        "ratio": "served / engine",
        "front_us_per_token": "front process, us a token",
        "client_us_per_token": "client, us a token",
        "events_per_token": "events a token",
    }
    for key, label in rows.items():
        values = [one[key] for one in document["rounds"]]
        digits = 1 if "_per_s" in key or "_us_" in key else 3
        low, high = min(values), max(values)
        lines.append(
            f"{label:28} {statistics.median(values):8.{digits}f}"
            f"   [{low:.{digits}f}, {high:.{digits}f}]"
        )
    return "\n".join(lines)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--weights", default="int8", help="bf16, int8, int8-g32, int4-g64 ...")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--route", choices=["completions", "chat"], default="completions")
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--prompt", type=int, default=128, help="tokens (of a chat: words)")
    parser.add_argument("--tokens", type=int, default=128, help="of each completion")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with tempfile.TemporaryDirectory() as directory:
        if (Path(args.model) / "tokenizer.json").is_file():
            name_every_token(Path(args.model), Path(directory))
            args.model = directory
        document = measure(args)
    print(json.dumps(document, indent=1) if "--json" in sys.argv else report(document))


if __name__ == "__main__":
    main()
