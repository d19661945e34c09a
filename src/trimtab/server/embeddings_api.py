"""`/v1/embeddings`: of each input the state behind its last token, as a vector of length one."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Sequence
from contextlib import aclosing
from functools import partial
from typing import Any, Literal, cast

import msgspec
import numpy as np
import numpy.typing as npt
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from trimtab.engine.client import EngineRequest
from trimtab.engine.sampling_params import SamplingParams
from trimtab.server.api_errors import JSONResponse, bad_request, generation_failed, timed_out
from trimtab.server.desk import Desk
from trimtab.server.generation import Placement
from trimtab.server.http import Work
from trimtab.server.observation import current_call
from trimtab.server.prompts import check_text, prompt_list
from trimtab.server.validation import check_token_ids, refuse_all_but

MAX_INPUTS = 2048  # as OpenAI's API
MAX_AT_ONCE = 32  # inputs of one request that the engine has at a time

# What would change the vectors and is not obeyed, and the values that ask for nothing.
INERT: dict[str, tuple[Any, ...]] = {
    "dimensions": (None,),
    "truncate_prompt_tokens": (None,),
    "normalize": (None, True),
    "add_special_tokens": (None, True),
}
_PARAMS = SamplingParams(max_tokens=1, temperature=0)


class EmbeddingRequest(msgspec.Struct):
    input: str | list[Any] | None = None
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None
    priority: int | None = None
    cache_salt: str | None = None
    timeout: float | None = None  # seconds


class Embedding(msgspec.Struct, tag_field="object", tag="embedding"):
    index: int
    embedding: list[float] | str  # base64: of little-endian float32


class EmbeddingUsage(msgspec.Struct):
    prompt_tokens: int
    total_tokens: int


class EmbeddingAnswer(msgspec.Struct, tag_field="object", tag="list"):
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage


def routes(desk: Desk) -> list[Route]:
    async def embeddings(request: Request) -> Response:
        asked = await desk.parse(request, EmbeddingRequest, partial(refuse_all_but, inert=INERT))
        inputs = await _token_ids(desk, asked)
        placement = desk.placement("embd-", asked.priority, asked.cache_salt, asked.timeout)
        if call := current_call.get():
            call.prepare(sum(map(len, inputs)), len(inputs), placement.request_id)

        async def work(scope: Scope, receive: Receive, send: Send) -> None:
            try:
                embedding = _embed_all(desk, inputs, placement)
                vectors = await asyncio.wait_for(embedding, placement.timeout_seconds)
            except asyncio.TimeoutError:
                raise timed_out() from None
            as_text = asked.encoding_format == "base64"
            data = [Embedding(i, _encoded(vector, as_text)) for i, vector in enumerate(vectors)]
            size = sum(map(len, inputs))
            answer = EmbeddingAnswer(data, desk.model.name, EmbeddingUsage(size, size))
            await JSONResponse(answer)(scope, receive, send)

        return Work(work)

    return [Route("/v1/embeddings", embeddings, methods=["POST"])]


async def _token_ids(desk: Desk, asked: EmbeddingRequest) -> list[list[int]]:
    """Of each input. Raises ApiError 400 for one that is empty or cannot fit."""
    info = desk.engine.info
    given = prompt_list(asked.input, info, "input", MAX_INPUTS)
    if len(given) > MAX_INPUTS:
        raise bad_request(f"input: at most {MAX_INPUTS} inputs in one request", "input")
    size = sum(len(one) for one in given if isinstance(one, str))
    inputs = []
    for one in given:
        if isinstance(one, str):
            check_text(len(one), info, "input")
            encode = partial(desk.model.tokenizer.encode, one)
            token_ids = await desk.workers.run(size, encode) if one else []
        else:
            check_token_ids(one, info, "input")
            token_ids = one
        if not token_ids:
            raise bad_request("input: must not be empty", "input")
        inputs.append(token_ids)
    return inputs


async def _embed_all(
    desk: Desk, inputs: Sequence[list[int]], placement: Placement
) -> list[npt.NDArray[np.float32]]:
    """Raises what the engine raises, as soon as one input fails; the others are aborted."""
    free = asyncio.Semaphore(MAX_AT_ONCE)

    async def embed(index: int) -> npt.NDArray[np.float32]:
        async with free:
            request = EngineRequest(
                request_id=f"{placement.request_id}-{index}",
                prompt_ids=inputs[index],
                params=_PARAMS,
                priority=placement.priority,
                cache_salt=placement.cache_salt,
                completes=False,
                embeds=True,
            )
            vector = await _embed(desk, request)
            if call := current_call.get():
                call.finish(index, "stop")
            return vector

    tasks = [asyncio.ensure_future(embed(index)) for index in range(len(inputs))]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _embed(desk: Desk, request: EngineRequest) -> npt.NDArray[np.float32]:
    outputs = cast(Any, desk.engine.generate(request))
    async with aclosing(outputs):
        async for output in outputs:
            if output.embedding is not None:
                return _normalized(output.embedding)
            if output.finish_reason is not None:
                raise generation_failed(output.error or output.finish_reason)
    raise generation_failed("it gave no embedding")


def _normalized(values: list[float]) -> npt.NDArray[np.float32]:
    vector = np.array(values, np.float64)
    length = np.linalg.norm(vector)
    return (vector / length if length else vector).astype(np.float32)


def _encoded(vector: npt.NDArray[np.float32], as_text: bool) -> list[float] | str:
    if as_text:
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return cast("list[float]", vector.tolist())
