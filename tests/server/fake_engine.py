"""A deterministic engine and model for server tests: bytes are tokens, some prompts misbehave."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import time
from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path

import tokenizers

from trimtab.config import ExecutorConfig, SchedulerConfig
from trimtab.engine.client import (
    EngineInfo,
    EngineRequest,
    EngineStats,
    PrefillChunk,
    RequestTimeline,
    TokenLogprobs,
    TokenOutput,
)
from trimtab.errors import (
    CheckpointError,
    ConfigError,
    EngineDeadError,
    QueueFullError,
    RequestError,
)
from trimtab.server import messages
from trimtab.server.text import FoundModel
from trimtab.tokenization import ChatTemplate, Tokenizer
from trimtab.tokenization.vocabulary import byte_level_alphabet

EOS = 256
VOCAB_SIZE = 258
MAX_CONTEXT = 2048
MODEL_NAME = "fake-model"


def next_token(request: EngineRequest, num_done: int) -> int:
    """A letter or a space, from the prompt and, when sampling, the seed."""
    seed = request.params.seed if request.params.temperature > 0 else 0
    if seed is None:
        seed = int.from_bytes(os.urandom(4), "little")
    key = f"{request.prompt_ids}{seed}{num_done}".encode()
    value = hashlib.sha256(key).digest()[0]
    return b"abcdefghijklmnopqrstuvwxyz "[value % 27]


def prompt_logprobs(request: EngineRequest) -> list[TokenLogprobs] | None:
    """Of token i the logprob is -i; x, y ... are the most likely everywhere."""
    if request.prompt_logprobs is None:
        return None
    top = [(ord("x") + i, -0.5 - i) for i in range(request.prompt_logprobs)]
    return [TokenLogprobs(-float(i), top) for i in range(1, len(request.prompt_ids))]


async def _misbehave(text: bytes) -> None:
    """End or stop this process: in the way that the text names."""
    if b"SEGV" in text:
        os.kill(os.getpid(), signal.SIGSEGV)
    elif b"EXIT" in text:
        os._exit(0)
    elif b"LOOP" in text:
        while True:
            pass
    elif b"STALL" in text:
        await asyncio.sleep(60)
    elif b"GARBAGE" in text:
        messages.encode = lambda message: b"\xa1\xff nonsense"
    elif b"DEAD" in text:
        raise EngineDeadError("the engine thread died")
    elif b"FREEZE" in text:
        os.kill(os.getpid(), signal.SIGSTOP)
    else:
        os.kill(os.getpid(), signal.SIGKILL)


class FakeEngine:
    """An EngineClient. Words in the prompt make it misbehave: see the code."""

    def __init__(self, config: SchedulerConfig, identity: str = "") -> None:
        self._identity = identity
        self._config = config
        self._limit = config.max_num_requests + config.max_queued_requests
        self._running = 0
        self._steps = 0
        self._generated = 0

    @property
    def info(self) -> EngineInfo:
        queued = self._config.max_queued_requests
        return EngineInfo(VOCAB_SIZE, MAX_CONTEXT, queued, 4096, "fake", identity=self._identity)

    async def generate(self, request: EngineRequest) -> AsyncGenerator[TokenOutput, None]:
        text = bytes(token for token in request.prompt_ids if token < 256)
        if request.params.n != 1:
            raise RequestError("n", "n")
        if self._running >= self._limit:
            raise QueueFullError("full")
        if b"CRASH" in text:
            os.kill(os.getpid(), signal.SIGKILL)
        self._running += 1
        try:
            async for output in self._tokens(request, text):
                yield output
        finally:
            self._running -= 1

    async def _tokens(
        self, request: EngineRequest, text: bytes
    ) -> AsyncGenerator[TokenOutput, None]:
        if not request.completes:
            await asyncio.sleep(30 if b"SLOW" in text else 0)
            yield self._output(request, [], "length", prompt_logprobs=prompt_logprobs(request))
            return
        limit = MAX_CONTEXT - len(request.prompt_ids)
        limit = min(limit, request.params.max_tokens or limit)
        script = "é🙂".encode() if b"UTF8" in text else None
        said = text.rpartition(b"SAY[")[2].partition(b"]YAS")[0] if b"SAY[" in text else None
        for i in range(len(request.completion_ids), limit):
            if i == 5 and (b"POISON" in text or (b"FALTER" in text and not request.completion_ids)):
                await _misbehave(text)
            await asyncio.sleep(0.05 if b"SLOW" in text else 0.002)
            if b"BROKEN" in text and i == 2:
                yield self._output(request, [], "error", error="the model's logits were not finite")
                return
            ends = i == 3 if said is None else i == len(said)
            if (b"EOS" in text or said) and ends and not request.params.ignore_eos:
                stop_logprobs = None if request.params.logprobs is None else TokenLogprobs(-0.125)
                yield self._output(
                    request, [], "stop", stop_token_id=EOS, stop_logprobs=stop_logprobs
                )
                return
            script = said or script
            token = script[i % len(script)] if script else next_token(request, i)
            last = i == limit - 1
            scores, request = prompt_logprobs(request), replace(request, prompt_logprobs=None)
            reason = "length" if last else None
            output = self._output(request, [token], reason, prompt_logprobs=scores)
            if i == 0 or last:
                chunk = PrefillChunk(0.0005, 0.0015, 2)
                output.timeline = RequestTimeline(0.0005, [chunk], 0.002, 0.002 * (i + 1))
            yield output

    def _output(  # type: ignore[no-untyped-def]
        self,
        request,
        token_ids,
        reason=None,
        error=None,
        stop_token_id=None,
        prompt_logprobs=None,
        stop_logprobs=None,
    ):
        self._steps += 1
        self._generated += len(token_ids)
        logprobs = None
        if request.params.logprobs is not None:
            count = request.params.logprobs
            top = [(97 + i, -1.0 - i) for i in range(count)]
            if top:
                top[-1] = (top[-1][0], float("-inf"))
            logprobs = [TokenLogprobs(-0.5, top) for _ in token_ids]
        return TokenOutput(
            request.request_id,
            token_ids,
            logprobs,
            reason,
            stop_token_id,
            error,
            3,
            prompt_logprobs,
            stop_logprobs,
        )

    async def stats(self) -> EngineStats:
        used = min(self._running, 5)
        return EngineStats(
            num_running=self._running,
            num_waiting=0,
            num_blocks=8,
            num_free_blocks=8 - used,
            num_cached_blocks=3,
            num_steps=self._steps,
            num_preemptions=0,
            num_prompt_tokens=0,
            num_cached_prompt_tokens=0,
            num_generated_tokens=self._generated,
        )

    async def close(self) -> None:
        pass


def load(model: str, executor: ExecutorConfig, scheduler: SchedulerConfig) -> FakeEngine:
    if model == "missing":
        raise ConfigError("missing: no such model")
    if model == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    if model == "bug":
        raise TypeError("a bug in the loader")
    if model == "slow-load":
        time.sleep(1.5)
    if model.startswith("/"):  # what the file says happens as long as it exists
        what = Path(model).read_text() if Path(model).exists() else ""
        if what == "exit":
            os._exit(7)
        if what == "hang":
            Path(model).with_suffix(".hanging").touch()
            time.sleep(60)
        return FakeEngine(scheduler, identity=what)
    return FakeEngine(scheduler)


TEMPLATE = """{%- for message in messages -%}
{%- if message.content == "REFUSED BY TEMPLATE" -%}{{ raise_exception("not these") }}{%- endif -%}
<{{ message.role }}>{{ message.content }}
{% endfor -%}
<assistant>"""


def byte_tokenizer(chat_template: str | None = TEMPLATE) -> Tokenizer:
    """Token i is byte i; 256 ends a text and adds nothing to it."""
    vocabulary = dict(byte_level_alphabet())
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.add_special_tokens(["<eos>"])
    template = None if chat_template is None else ChatTemplate(chat_template)
    return Tokenizer(backend, {"eos_token": "<eos>"}, [EOS], template)


def find_model(model: str, served_name: str | None) -> FoundModel:
    return FoundModel(served_name or MODEL_NAME, model)


def load_tokenizer(path: str) -> Tokenizer:
    """By then the engine process is there, and the two load at the same time."""
    if not Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
        raise CheckpointError(f"{path}: the tokenizer is read before there is an engine process")
    if path == "no-tokenizer":
        raise CheckpointError("no-tokenizer: no such vocabulary")
    if path == "tools":
        return byte_tokenizer(
            "{% for tool in tools or [] %}{{ tool | tojson }}{% endfor %}" + TEMPLATE
        )
    return byte_tokenizer(None if path == "no-template" else TEMPLATE)
