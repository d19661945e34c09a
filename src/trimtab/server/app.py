"""The OpenAI-compatible API over an EngineClient, as an ASGI application."""

from __future__ import annotations

import time

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from trimtab.config import ServerConfig
from trimtab.errors import TrimtabError
from trimtab.server import (
    admin_api,
    dashboard,
    embeddings_api,
    messages_api,
    openapi,
    responses_api,
    tokenize_api,
    validation,
)
from trimtab.server import api_types as api
from trimtab.server.api_errors import (
    ApiError,
    JSONResponse,
    as_api_error,
    error_response,
    internal_error,
)
from trimtab.server.chat_format import ChatFormat
from trimtab.server.completion_format import CompletionFormat
from trimtab.server.desk import Desk
from trimtab.server.formats import Extras
from trimtab.server.generation import Generation, Placement, Prompt
from trimtab.server.guard import Guard
from trimtab.server.keys import KeyRing, make_keys
from trimtab.server.logs import log_request
from trimtab.server.observation import note_error
from trimtab.server.page_routes import read_page
from trimtab.server.prompts import echoed_text
from trimtab.server.supervised import SupervisedEngine
from trimtab.server.text import ServedModel
from trimtab.server.tracing import tracing_to


class ApiServer:
    """The routes. `app` is the ASGI application."""

    def __init__(self, config: ServerConfig, engine: SupervisedEngine, model: ServedModel) -> None:
        self._desk = Desk(config, engine, model)
        self._created = int(time.time())
        keys = KeyRing(make_keys(config.api_key, config.api_key_file), time.perf_counter())
        routes = Starlette(
            routes=[
                *(read_page(config.report) if config.page else ()),
                Route("/health", self._health, methods=["GET"]),
                Route("/ready", self._ready, methods=["GET"]),
                Route("/stats", self._stats, methods=["GET"]),
                Route("/v1/models", self._models, methods=["GET"]),
                Route("/v1/models/{model:path}", self._one_model, methods=["GET"]),
                Route("/v1/completions", self._completions, methods=["POST"]),
                Route("/v1/chat/completions", self._chat, methods=["POST"]),
                *tokenize_api.routes(self._desk),
                *embeddings_api.routes(self._desk),
                *responses_api.routes(self._desk),
                *dashboard.routes(self._desk),
                *messages_api.routes(self._desk),
                *openapi.routes(self._desk),
                *(admin_api.routes(self._desk, keys) if config.admin_key is not None else []),
            ],
            exception_handlers={
                ApiError: _on_api_error,
                HTTPException: _on_http_error,
                TrimtabError: _on_failure,
                Exception: _on_failure,
            },
        )
        routes.router.redirect_slashes = False
        self.routes = [route for route in routes.routes if isinstance(route, Route)]
        self._desk.observer.on_end.append(log_request)
        observer = self._desk.observer
        self._tracing = None
        if config.otlp_endpoint is not None:
            self._tracing = tracing_to(config.otlp_endpoint, model.name)
            observer.on_end.append(self._tracing.end)
        self.app = Guard(routes, routes.routes, config, keys, observer, self._tracing)

    @property
    def draining(self) -> bool:
        return self._desk.draining

    @draining.setter
    def draining(self, draining: bool) -> None:
        self._desk.draining = draining

    def close(self) -> None:
        self._desk.close()
        if self._tracing is not None:
            self._tracing.close()

    async def _health(self, request: Request) -> Response:
        """200 while this process can do its work: a lost engine is being replaced. 503 before the
        first one is ready, and when none comes up."""
        status = self._status()
        alive = status in ("ok", "unresponsive", "restarting")
        return JSONResponse({"status": status}, 200 if alive else 503)

    async def _ready(self, request: Request) -> Response:
        """200 while a new request would be served at once: by an engine that gets on."""
        status = "draining" if self.draining else self._status()
        return JSONResponse({"status": status}, 200 if status == "ok" else 503)

    def _status(self) -> str:
        engine = self._desk.engine
        if engine.healthy:
            return "ok"
        return "unresponsive" if engine.state == "ready" else engine.state

    async def _stats(self, request: Request) -> Response:
        """The engine's counters (EngineStats), a second old at most."""
        self._desk.require_ready()
        return JSONResponse(await self._desk.engine.stats())

    async def _models(self, request: Request) -> Response:
        self._desk.require_ready()
        return JSONResponse(api.ModelList([self._describe_model()]))

    async def _one_model(self, request: Request) -> Response:
        self._desk.require_ready()
        self._desk.check_model(request.path_params["model"])
        return JSONResponse(self._describe_model())

    async def _completions(self, request: Request) -> Response:
        desk = self._desk
        refuse = validation.refuse_unsupported_completion
        asked = await desk.parse(request, api.CompletionRequest, refuse)
        validation.check_stream_options(asked)
        info, tokenizer = desk.engine.info, desk.model.tokenizer
        params = validation.completion_params(asked, info)
        prompts = await desk.prompts.completion(asked, params, info)
        placement = self._placement("cmpl-", asked)
        generation = Generation(desk.engine, prompts, placement, tokenizer)
        answer_format = CompletionFormat(
            desk.header(placement),
            tokenizer,
            asked.logprobs,
            [prompt.text if asked.echo else "" for prompt in prompts],
            include_usage=validation.includes_usage(asked),
            extras=_extras(asked, prompts),
        )
        return desk.respond(generation, answer_format, stream=bool(asked.stream))

    async def _chat(self, request: Request) -> Response:
        desk = self._desk
        refuse = validation.refuse_unsupported_chat
        asked = await desk.parse(request, api.ChatRequest, refuse)
        validation.check_stream_options(asked)
        info, tokenizer = desk.engine.info, desk.model.tokenizer
        params = validation.chat_params(asked, info)
        prompt = await desk.prompts.chat(asked, params, info)
        placement = self._placement("chatcmpl-", asked)
        generation = Generation(desk.engine, [prompt], placement, tokenizer)
        answer_format = ChatFormat(
            desk.header(placement),
            tokenizer,
            params.logprobs is not None,
            include_usage=validation.includes_usage(asked),
            extras=_extras(asked, [prompt]),
            echo=echoed_text(asked.messages) if asked.echo else "",
        )
        return desk.respond(generation, answer_format, stream=bool(asked.stream))

    def _placement(self, prefix: str, asked: api.GenerationFields) -> Placement:
        return self._desk.placement(prefix, asked.priority, asked.cache_salt, asked.timeout)

    def _describe_model(self) -> api.Model:
        desk = self._desk
        limit = validation.context_limit(desk.engine.info)
        return api.Model(desk.model.name, self._created, limit, desk.model.name)


def _extras(asked: api.GenerationFields, prompts: list[Prompt]) -> Extras:
    return Extras(
        prompts,
        asked.n or 1,
        bool(asked.return_token_ids),
        bool(asked.return_tokens_as_token_ids),
        asked.prompt_logprobs is not None,
    )


async def _on_api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return _refuse(request, error)


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    messages = {404: "There is no such route.", 405: "This route does not take this method."}
    message = messages.get(error.status_code, "The request was not understood.")
    return _refuse(request, ApiError(error.status_code, message, headers=headers))


async def _on_failure(request: Request, error: Exception) -> Response:
    return _refuse(request, as_api_error(error) or internal_error())


def _refuse(request: Request, error: ApiError) -> Response:
    note_error(error)
    return error_response(error, request.scope["path"])
