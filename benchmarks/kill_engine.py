"""Kill the engine again and again under streams, and see whether anybody noticed.

    python benchmarks/kill_engine.py [MODEL] [--streams 64] [--tokens 200] [--kills 10] [--seed 0]

Every stream runs once undisturbed, then once more with all the others while the engine process is
killed (SIGKILL) at random moments: whenever so many tokens, drawn at random, have arrived in all.
Half of the streams are greedy, half sample at temperature 0.8 with a seed of their own. Exit status
1 unless each of them finishes with the very text and logprobs that it had undisturbed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import sys
import time
from dataclasses import dataclass, field
from typing import Any

import httpx

from serving import Server, serving

WORDS = ["def", "class", "import", "return", "the", "of", "list", "string", "file", "value"]


@dataclass
class Answer:
    text: str = ""
    logprobs: list[float] = field(default_factory=list)
    finish_reason: str | None = None
    usage: dict[str, Any] | None = None
    error: Any = None
    longest_pause: float = 0.0


class Killer:
    """Kills the engine whenever the number of tokens passes one of `moments`."""

    def __init__(self, server: Server, moments: list[int]) -> None:
        self._server = server
        self._moments = sorted(moments)
        self._num_tokens = 0
        self.times: list[float] = []

    def token(self) -> None:
        self._num_tokens += 1
        if self._moments and self._num_tokens >= self._moments[0]:
            pid = self._server.engine_pid
            if pid is not None:
                os.kill(pid, signal.SIGKILL)
                self.times.append(time.monotonic())
                self._moments.pop(0)


def body(index: int, tokens: int, draw: random.Random) -> dict[str, Any]:
    prompt = " ".join(draw.choices(WORDS, k=draw.randrange(3, 60)))
    fields: dict[str, Any] = {"prompt": prompt, "max_tokens": tokens, "ignore_eos": True}
    fields |= {"temperature": 0} if index % 2 else {"temperature": 0.8, "seed": index}
    return fields | {"logprobs": 0, "stream": True, "stream_options": {"include_usage": True}}


async def ask(client: httpx.AsyncClient, fields: dict[str, Any], killer: Killer | None) -> Answer:
    answer = Answer()
    last = None
    async with client.stream("POST", "/v1/completions", json=fields) as response:
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line[6:])
            if "choices" not in event:
                answer.error = event
                break
            now = time.monotonic()
            answer.longest_pause = max(answer.longest_pause, now - last if last else 0.0)
            last = now
            answer.usage = event.get("usage") or answer.usage
            for choice in event["choices"]:
                answer.text += choice["text"]
                new = choice["logprobs"]["token_logprobs"] if choice.get("logprobs") else []
                answer.logprobs += new
                answer.finish_reason = choice.get("finish_reason") or answer.finish_reason
                for _ in new:
                    if killer is not None:
                        killer.token()
    return answer


async def ask_all(
    server: Server, bodies: list[dict[str, Any]], killer: Killer | None = None
) -> list[Answer]:
    async with server.client() as client:
        return await asyncio.gather(*[ask(client, one, killer) for one in bodies])


def same(first: Answer, second: Answer) -> bool:
    return (
        second.error is None
        and (first.text, first.logprobs, first.finish_reason)
        == (second.text, second.logprobs, second.finish_reason)
        and first.usage is not None
        and second.usage is not None
        and first.usage["completion_tokens"] == second.usage["completion_tokens"]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="builtin")
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    draw = random.Random(arguments.seed)
    bodies = [body(i, arguments.tokens, draw) for i in range(arguments.streams)]
    total = arguments.streams * arguments.tokens
    moments = [draw.randrange(1, total) for _ in range(arguments.kills)]
    with serving(arguments.model) as server:
        began = time.monotonic()
        undisturbed = asyncio.run(ask_all(server, bodies))
        seconds = time.monotonic() - began
        killer = Killer(server, moments)
        began = time.monotonic()
        disturbed = asyncio.run(ask_all(server, bodies, killer))
        killed_seconds = time.monotonic() - began
    equal = sum(same(one, other) for one, other in zip(undisturbed, disturbed, strict=True))
    document = {
        "streams": arguments.streams,
        "finished": sum(one.finish_reason == "length" for one in disturbed),
        "equal": equal,
        "kills": len(killer.times),
        "seconds_undisturbed": round(seconds, 2),
        "seconds_disturbed": round(killed_seconds, 2),
        "longest_pause_seconds": round(max(one.longest_pause for one in disturbed), 2),
        "errors": [one.error for one in disturbed if one.error][:3],
    }
    print(json.dumps(document, indent=2))
    return 0 if equal == arguments.streams and len(killer.times) == arguments.kills else 1


if __name__ == "__main__":
    sys.exit(main())
