"""The OpenAI-compatible API over an EngineClient, as an ASGI application."""

from __future__ import annotations

import hashlib
import logging
import secrets
import time
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from trimtab.config import ServerConfig
from trimtab.engine.client import EngineClient
from trimtab.errors import EngineDeadError, TrimtabError
from trimtab.server import api_types as api
from trimtab.server import validation
from trimtab.server.api_errors import (
    ApiError,
    JSONResponse,
    as_api_error,
    internal_error,
    unavailable,
)
from trimtab.server.formats import AnswerFormat, ChatFormat, Collected, CompletionFormat, Header
from trimtab.server.generation import Generation, Placement
from trimtab.server.http import EventStream, Guard, Work, read_json_body
from trimtab.server.json_body import parse
from trimtab.server.prompts import PromptMaker
from trimtab.server.text import ServedModel, TextWorkers

logger = logging.getLogger("trimtab.server")

R = TypeVar("R", bound=api.GenerationFields)


class SupervisedEngine(EngineClient, Protocol):
    """An EngineClient that also says how its engine is."""

    @property
    def state(self) -> str: ...

    @property
    def healthy(self) -> bool: ...


@dataclass(frozen=True)
class Answer:
    generation: Generation
    format: AnswerFormat
    stream: bool
    include_usage: bool


class ApiServer:
    """The routes and what they share. `app` is the ASGI application."""

    def __init__(self, config: ServerConfig, engine: SupervisedEngine, model: ServedModel) -> None:
        self._config = config
        self._engine = engine
        self._model = model
        self._workers = TextWorkers()
        self._prompts = PromptMaker(model.tokenizer, self._workers)
        self._created = int(time.time())
        self.draining = False
        routes = Starlette(
            routes=[
                Route("/health", self._health, methods=["GET"]),
                Route("/ready", self._ready, methods=["GET"]),
                Route("/stats", self._stats, methods=["GET"]),
                Route("/v1/models", self._models, methods=["GET"]),
                Route("/v1/models/{model:path}", self._one_model, methods=["GET"]),
                Route("/v1/completions", self._completions, methods=["POST"]),
                Route("/v1/chat/completions", self._chat, methods=["POST"]),
            ],
            exception_handlers={
                ApiError: _on_api_error,
                HTTPException: _on_http_error,
                TrimtabError: _on_failure,
                Exception: _on_failure,
            },
        )
        routes.router.redirect_slashes = False
        self.app = Guard(routes, config.api_key)

    def close(self) -> None:
        self._workers.close()

    # -- routes

    async def _health(self, request: Request) -> Response:
        """200 while the engine's loop runs, whether or not it takes requests."""
        status = "ok" if self._engine.healthy else self._engine.state
        if status == "ready":
            status = "unresponsive"
        return JSONResponse({"status": status}, 200 if status == "ok" else 503)

    async def _ready(self, request: Request) -> Response:
        """200 while a new request would be served."""
        if self.draining:
            return JSONResponse({"status": "draining"}, 503)
        return await self._health(request)

    async def _stats(self, request: Request) -> Response:
        """The engine's counters (EngineStats), half a second old at most."""
        self._require_ready()
        return JSONResponse(await self._engine.stats())

    async def _models(self, request: Request) -> Response:
        self._require_ready()
        return JSONResponse(api.ModelList([self._describe_model()]))

    async def _one_model(self, request: Request) -> Response:
        self._require_ready()
        self._check_model(request.path_params["model"])
        return JSONResponse(self._describe_model())

    async def _completions(self, request: Request) -> Response:
        refuse = validation.refuse_unsupported_completion
        asked = await self._parse(request, api.CompletionRequest, refuse)
        info = self._engine.info
        params = validation.completion_params(asked, info)
        prompts = await self._prompts.completion(asked, params, info)
        placement = self._placement("cmpl", asked)
        generation = Generation(self._engine, prompts, placement, self._model.tokenizer)
        echoes = [prompt.text if asked.echo else "" for prompt in prompts for _ in range(params.n)]
        answer_format = CompletionFormat(
            self._header(placement), self._model.tokenizer, params.logprobs, echoes
        )
        return self._respond(asked, generation, answer_format)

    async def _chat(self, request: Request) -> Response:
        asked = await self._parse(request, api.ChatRequest, validation.refuse_unsupported_chat)
        info = self._engine.info
        params = validation.chat_params(asked, info)
        prompt = await self._prompts.chat(asked, params, info)
        placement = self._placement("chatcmpl", asked)
        generation = Generation(self._engine, [prompt], placement, self._model.tokenizer)
        answer_format = ChatFormat(
            self._header(placement), self._model.tokenizer, params.logprobs is not None
        )
        return self._respond(asked, generation, answer_format)

    # -- what both generation routes share

    async def _parse(
        self, request: Request, kind: type[R], refuse: Callable[[dict[str, Any]], None]
    ) -> R:
        body = await read_json_body(request, self._config.max_body_bytes)
        self._require_ready()
        asked = await self._workers.run(len(body) >> 4, partial(parse, body, kind, refuse))
        if asked.model is not None:
            self._check_model(asked.model)
        validation.check_stream_options(asked)
        return asked

    def _check_model(self, name: str) -> None:
        if name != self._model.name:
            raise ApiError(
                404,
                f"The model {name[:200]!r} does not exist; this server has {self._model.name!r}.",
                param="model",
                code="model_not_found",
            )

    def _require_ready(self) -> None:
        if self.draining:
            raise unavailable("The server is shutting down.", "draining")
        if self._engine.state == "loading":
            raise unavailable("The model is still loading.", "loading")
        if self._engine.state != "ready":
            raise unavailable("The engine is restarting; try again soon.", "engine_down")

    def _placement(self, prefix: str, asked: api.GenerationFields) -> Placement:
        """The cache namespace starts from the key: a caller's own salt only narrows it."""
        salt = ""
        if self._config.api_key or asked.cache_salt:
            text = f"{self._config.api_key or ''}\0{asked.cache_salt or ''}"
            salt = hashlib.sha256(text.encode()).hexdigest()
        return Placement(f"{prefix}-{secrets.token_hex(12)}", asked.priority or 0, salt)

    def _header(self, placement: Placement) -> Header:
        return Header(placement.request_id, int(time.time()), self._model.name)

    def _describe_model(self) -> api.Model:
        return api.Model(self._model.name, self._created, self._engine.info.max_context)

    def _respond(
        self, asked: api.GenerationFields, generation: Generation, answer_format: AnswerFormat
    ) -> Response:
        include_usage = bool(asked.stream_options and asked.stream_options.include_usage)
        answer = Answer(generation, answer_format, bool(asked.stream), include_usage)
        return Work(lambda scope, receive, send: self._answer(answer, scope, receive, send))

    async def _answer(self, answer: Answer, scope: Scope, receive: Receive, send: Send) -> None:
        """Until the first event an error is an HTTP status; after it, an event of the stream."""
        stream = EventStream(send)
        try:
            if answer.stream:
                await _stream(answer, stream)
            else:
                await (await _collect(answer))(scope, receive, send)
        except Exception as error:
            if isinstance(error, EngineDeadError) and self.draining:
                known: ApiError | None = unavailable("The server is shutting down.", "draining")
            else:
                known = as_api_error(error)
            if known is None:
                logger.error("a request failed", exc_info=error)
                known = internal_error()
            if stream.started:
                await stream.event(known.document)
                await stream.done()
            else:
                await known.response()(scope, receive, send)


async def _stream(answer: Answer, stream: EventStream) -> None:
    async with aclosing(answer.generation.events()) as events:
        async for event in events:
            for chunk in answer.format.chunks(event):
                await stream.event(chunk)
    if answer.include_usage:
        await stream.event(answer.format.usage_chunk(answer.generation.usage()))
    await stream.done()


async def _collect(answer: Answer) -> Response:
    choices = [Collected() for _ in answer.generation.choices]
    async with aclosing(answer.generation.events()) as events:
        async for event in events:
            choices[event.index].add(event)
    return JSONResponse(answer.format.whole(choices, answer.generation.usage()))


async def _on_api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error.response()


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    messages = {404: "There is no such route.", 405: "This route does not take this method."}
    message = messages.get(error.status_code, "The request was not understood.")
    return ApiError(error.status_code, message, headers=headers).response()


async def _on_failure(request: Request, error: Exception) -> Response:
    return (as_api_error(error) or internal_error()).response()
