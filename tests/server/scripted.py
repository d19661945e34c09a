"""A server in this process: an engine that says what a test wants, behind the ASGI application."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anthropic
import httpx
import httpx2
import openai
import tokenizers

from trimtab.config import ServerConfig
from trimtab.engine.client import (
    EngineInfo,
    EngineRequest,
    EngineStats,
    FinishReason,
    TokenLogprobs,
    TokenOutput,
)
from trimtab.server.app import ApiServer
from trimtab.server.text import ServedModel
from trimtab.tokenization import ChatTemplate, Tokenizer
from trimtab.tokenization.vocabulary import byte_level_alphabet

MODEL = "scripted"
MARKERS = (
    *("<think>", "</think>", "<tool_call>", "</tool_call>", "<|python_tag|>", "[TOOL_CALLS]"),
    *("[ARGS]", "[CALL_ID]"),
)
EOS = 256


def tokenizer_with(template: str | None, special: Sequence[str] = ()) -> Tokenizer:
    """Token i is byte i; 256 ends a text; the special tokens follow."""
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(dict(byte_level_alphabet()), []))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.add_special_tokens(["<eos>", *special])
    names = {"eos_token": "<eos>", "bos_token": ""}
    chat_template = None if template is None else ChatTemplate(template, names)
    return Tokenizer(backend, {"eos_token": "<eos>"}, [EOS], chat_template)


class ScriptedEngine:
    """Says `script` to every request, a few tokens at a time (`seed` decides how many), and then
    ends, with `reason`. Remembers the requests."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.script = ""
        self.reason: FinishReason = "stop"
        self.seed = 0
        self.requests: list[EngineRequest] = []

    state = "ready"
    healthy = True
    info = EngineInfo(300, 16384, 64, 32768, "scripted")

    async def generate(self, request: EngineRequest) -> AsyncGenerator[TokenOutput, None]:
        self.requests.append(request)
        ids = self._tokenizer.encode(self.script, add_special_tokens=False)
        cuts = random.Random(self.seed)
        while True:
            count = cuts.randint(1, 4)
            step, ids = ids[:count], ids[count:]
            logprobs = None
            if request.params.logprobs is not None:
                logprobs = [TokenLogprobs(-float(token)) for token in step]
            reason = None if ids else self.reason
            stop = EOS if reason == "stop" else None
            yield TokenOutput(request.request_id, step, logprobs, reason, stop)
            if not ids:
                return

    def submit(
        self, request: EngineRequest, sink: Callable[[TokenOutput | Exception], None]
    ) -> Callable[[], None]:
        async def pump() -> None:
            async for output in self.generate(request):
                sink(output)
                await asyncio.sleep(0)

        task = asyncio.get_running_loop().create_task(pump())

        def cancel() -> None:
            task.cancel()

        return cancel

    async def stats(self) -> EngineStats:
        raise NotImplementedError

    async def close(self) -> None:
        pass


class Scripted:
    """One server in this process, and clients of it."""

    def __init__(self, template: str | None, special: Sequence[str] = (), **config: Any) -> None:
        tokenizer = tokenizer_with(template, special)
        self.engine = ScriptedEngine(tokenizer)
        self.api = ApiServer(ServerConfig(**config), self.engine, ServedModel(MODEL, tokenizer))
        transport = httpx.ASGITransport(self.api.app)
        self.http = httpx.AsyncClient(transport=transport, base_url="http://scripted")
        self.openai = openai.AsyncOpenAI(
            base_url="http://scripted/v1", api_key="k", max_retries=0, http_client=self.http
        )
        # Anthropic's client has a fork of httpx.
        self.http2 = httpx2.AsyncClient(transport=httpx2.ASGITransport(self.api.app))
        self.anthropic = anthropic.AsyncAnthropic(
            base_url="http://scripted", api_key="k", max_retries=0, http_client=self.http2
        )

    def says(self, script: str, reason: FinishReason = "stop", seed: int = 0) -> None:
        self.engine.script, self.engine.reason, self.engine.seed = script, reason, seed

    @property
    def prompt(self) -> str:
        """What the last request was rendered to."""
        ids = self.engine.requests[-1].prompt_ids
        return self.engine._tokenizer.decode(ids, skip_special_tokens=False)

    async def close(self) -> None:
        await self.http.aclose()
        await self.http2.aclose()
        self.api.close()


@asynccontextmanager
async def scripted(
    template: str | None, special: Sequence[str] = (), **config: Any
) -> AsyncGenerator[Scripted, None]:
    server = Scripted(template, special, **config)
    try:
        yield server
    finally:
        await server.close()
