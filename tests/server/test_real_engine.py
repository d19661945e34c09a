"""The same server on the native engine and a tiny random model, through `trimtab serve`."""

from __future__ import annotations

import asyncio
import json
import shlex
import socket
import subprocess
import sys
import time
from pathlib import Path

from live import Live, environment, serve_command, wait_until
from tiny_model import CONFIG

from trimtab import LLM, SamplingParams

TEXT = "/v1/completions"


def test_the_same_answers_as_in_process_together_and_alone(real: Live, model: Path) -> None:
    prompts = [f"prompt number {i}" * (1 + i % 5) for i in range(32)]

    async def ask() -> tuple[list[str], list[str]]:
        async with real.async_openai() as client:

            async def text(i: int) -> str:
                answer = await client.completions.create(
                    model="tiny", prompt=prompts[i], seed=i, max_tokens=12, temperature=i % 3 / 2
                )
                return answer.choices[0].text

            together = await asyncio.gather(*[text(i) for i in range(32)])
            return together, [await text(i) for i in range(32)]

    together, alone = asyncio.run(ask())
    assert together == alone
    with LLM(str(model), weights="f32", threads=2) as llm:
        params = [SamplingParams(seed=i, max_tokens=12, temperature=i % 3 / 2) for i in range(32)]
        results = llm.generate(prompts, params)
    assert [result.outputs[0].text for result in results] == alone


def test_chat_streams_what_it_answers(real: Live) -> None:
    client = real.openai()
    fields = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": 20,
        "seed": 3,
        "n": 2,
        "logprobs": True,
        "top_logprobs": 2,
        "extra_body": {"ignore_eos": True},
    }
    whole = client.chat.completions.create(**fields)
    texts = ["", ""]
    logprobs: list[list[float]] = [[], []]
    with client.chat.completions.create(**fields, stream=True) as stream:
        for chunk in stream:
            choice = chunk.choices[0]
            texts[choice.index] += choice.delta.content or ""
            if choice.logprobs:
                logprobs[choice.index] += [t.logprob for t in choice.logprobs.content or []]
    assert texts == [choice.message.content for choice in whole.choices]
    assert texts[0] != texts[1]
    for choice in whole.choices:
        assert choice.logprobs is not None
        entries = choice.logprobs.content or []
        assert [entry.logprob for entry in entries] == logprobs[choice.index]
        assert len(entries) == 20
        for entry in entries:
            assert [top.logprob for top in entry.top_logprobs] == sorted(
                (top.logprob for top in entry.top_logprobs), reverse=True
            )


def test_a_prefix_is_reported_as_cached_and_a_salt_keeps_apart(real: Live) -> None:
    body = {"prompt": "a prefix that is long enough for blocks" * 4, "max_tokens": 1}

    def cached(**fields: str) -> int:
        usage = real.post(TEXT, json=body | fields).json()["usage"]
        return usage["prompt_tokens_details"]["cached_tokens"]  # type: ignore[no-any-return]

    assert cached() == 0
    assert cached() > 0
    assert cached(cache_salt="mine") == 0
    assert cached(cache_salt="mine") > 0


def test_the_context_limit(real: Live) -> None:
    limit = CONFIG["max_position_embeddings"]
    for size in (limit, 50_000):
        response = real.post(TEXT, json={"prompt": "x" * size})
        assert response.status_code == 400
        assert response.json()["error"]["code"] == "context_length_exceeded"
    body = {"prompt": "x" * (limit - 5), "max_tokens": 5, "ignore_eos": True}
    full = real.post(TEXT, json=body).json()
    assert full["usage"]["total_tokens"] == limit


def test_a_client_that_leaves_frees_the_blocks(real: Live) -> None:
    def stats() -> dict[str, int]:
        return real.get("/stats").json()  # type: ignore[no-any-return]

    def generated() -> int:
        """Once nothing runs, and a heartbeat has said so."""
        wait_until(lambda: stats()["num_running"] == 0)
        time.sleep(1.1)
        assert stats()["num_free_blocks"] == stats()["num_blocks"]
        return stats()["num_generated_tokens"]

    before = generated()
    fields = {"prompt": "leave", "max_tokens": 500, "ignore_eos": True, "n": 8, "stream": True}
    body = json.dumps(fields).encode()
    host, port = real.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: " + str(len(body)).encode() + b"\r\n\r\n" + body
        )
        received = b""
        while b"data: " not in received:
            received += connection.recv(1 << 12)
    assert 0 < generated() - before < 8 * 480


def test_the_announcement_and_its_curl_line(model: Path) -> None:
    process = subprocess.Popen(
        serve_command(model, "--served-model-name", "it's mine"),
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    try:
        assert process.stdout is not None
        lines = dict(process.stdout.readline().rstrip().split(None, 1) for _ in range(4))
        assert lines["model"] == "it's mine"
        assert lines["address"].startswith("http://127.0.0.1:")
        assert lines["page"] == lines["address"].removesuffix("v1")
        assert "bf16" in lines["plan"]
        command = process.stdout.readline().removeprefix("try it").strip()
        assert shlex.split(command)[0] == "curl"
        done = subprocess.run(
            ["bash", "-c", command], capture_output=True, check=True, text=True, timeout=20
        )
        assert json.loads(done.stdout)["choices"][0]["message"]["role"] == "assistant"
    finally:
        process.terminate()
        process.communicate(timeout=20)
    assert process.returncode == 0


def run_serve(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "trimtab", "serve", *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        env=environment() | variables,
    )


def test_what_the_user_can_mend_is_one_line_and_status_2(real: Live, model: Path) -> None:
    port = real.url.rsplit(":", 1)[1]
    for done, words in (
        (run_serve(str(model), "--port", port), f"127.0.0.1:{port}"),
        (run_serve(str(model), "--port", "0", TRIMTAB_ISA="mmx"), "TRIMTAB_ISA"),
        (run_serve("/no/such/model", "--port", "0"), "/no/such/model"),
    ):
        assert done.returncode == 2
        assert done.stdout == ""
        (line,) = done.stderr.splitlines()
        assert line.startswith("trimtab: error: ")
        assert words in line
