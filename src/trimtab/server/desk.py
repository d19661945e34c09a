"""What all generation routes share: requests taken in, answers handed out."""

from __future__ import annotations

import hashlib
import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from trimtab.config import ServerConfig
from trimtab.errors import EngineDeadError
from trimtab.server.api_errors import (
    ApiError,
    as_api_error,
    bad_request,
    error_response,
    internal_error,
    unavailable,
)
from trimtab.server.choice import ChoiceEvent
from trimtab.server.formats import AnswerFormat, Collected, Header
from trimtab.server.generation import Generation, Placement
from trimtab.server.http import EventStream, Work, read_json_body, with_timings
from trimtab.server.json_body import parse
from trimtab.server.observation import Observer, Timings, current_call, note_error
from trimtab.server.parsing.choose import ModelParsers
from trimtab.server.prompts import PromptMaker
from trimtab.server.supervised import SupervisedEngine
from trimtab.server.text import ServedModel, TextWorkers
from trimtab.server.validation import timeout_seconds

logger = logging.getLogger("trimtab.server")

T = TypeVar("T", bound=msgspec.Struct)


@dataclass(frozen=True)
class Answer:
    generation: Generation
    format: AnswerFormat
    stream: bool
    reword: Callable[[ApiError], ApiError]


class Desk:
    """The engine, the model, and the way of a request in and of its answer out.

    A route of any API: `parse` its body, make prompts and a Generation, `respond` in its format.
    """

    def __init__(self, config: ServerConfig, engine: SupervisedEngine, model: ServedModel) -> None:
        self.config = config
        self.engine = engine
        self.model = model
        self.workers = TextWorkers()
        self.observer = Observer()
        self.parsers = ModelParsers(model.tokenizer, config.tool_parser, config.reasoning_parser)
        self.prompts = PromptMaker(model.tokenizer, self.workers, self.parsers)
        self.draining = False

    def close(self) -> None:
        self.workers.close()

    async def parse(
        self,
        request: Request,
        kind: type[T],
        refuse: Callable[[dict[str, Any]], None] = lambda document: None,
    ) -> T:
        """The body as a `kind`. Raises ApiError: every limit on form, 503 while not ready, 404 for
        another model's name. `refuse` sees the raw object first and raises for what is not
        supported."""
        body = await read_json_body(request, self.config.max_body_bytes)
        self.require_ready()
        asked = await self.workers.run(len(body) >> 4, partial(parse, body, kind, refuse))
        model = getattr(asked, "model", None)
        if model is not None:
            self.check_model(model)
        if getattr(asked, "timings", None) and (call := current_call.get()):
            call.wants_timings = True
        return asked

    def check_model(self, name: str) -> None:
        if name != self.model.name:
            raise ApiError(
                404,
                f"The model {name[:200]!r} does not exist; this server has {self.model.name!r}.",
                param="model",
                code="model_not_found",
            )

    def require_ready(self) -> None:
        if self.draining:
            raise unavailable("The server is shutting down.", "draining")
        if self.engine.state == "loading":
            raise unavailable("The model is still loading.", "loading")
        if self.engine.state not in ("ready", "restarting"):
            raise unavailable("The engine does not start again.", "engine_down")

    def placement(
        self,
        prefix: str,
        priority: int | None = None,
        cache_salt: str | None = None,
        timeout: float | None = None,
    ) -> Placement:
        """The cache namespace starts from the key: a caller's own salt only narrows it. `timeout`
        is in seconds. Raises ApiError 400 for one that is none, and for a priority that the engine
        cannot hold."""
        if priority is not None and not -(1 << 63) <= priority < 1 << 63:
            raise bad_request(f"priority={priority}: must be a 64-bit integer", "priority")
        call = current_call.get()
        key = b"" if call is None or call.account is None else call.account.key.digest
        salt = ""
        if key or cache_salt:
            salt = hashlib.sha256(key + b"\0" + (cache_salt or "").encode()).hexdigest()
        seconds = timeout_seconds(timeout, self.config.timeout_seconds)
        return Placement(f"{prefix}{secrets.token_hex(12)}", priority or 0, salt, seconds)

    def header(self, placement: Placement) -> Header:
        return Header(placement.request_id, int(time.time()), self.model.name)

    def respond(
        self,
        generation: Generation,
        answer_format: AnswerFormat,
        *,
        stream: bool,
        reword: Callable[[ApiError], ApiError] = lambda error: error,
    ) -> Response:
        """`reword` makes an error of the generation one that the client of this route knows."""
        answer = Answer(generation, answer_format, stream, reword)
        return Work(lambda scope, receive, send: self._answer(answer, scope, receive, send))

    async def _answer(self, answer: Answer, scope: Scope, receive: Receive, send: Send) -> None:
        """Until the first event an error is an HTTP status; after it, an event of the stream."""
        answer_format = answer.format
        stream = EventStream(scope, send, answer_format.named_events, answer_format.text_template)
        try:
            if answer.stream:
                await _stream(answer, stream)
            else:
                await (await _collect(answer, self.workers))(scope, receive, send)
        except Exception as error:
            if isinstance(error, EngineDeadError) and self.draining:
                known: ApiError | None = unavailable("The server is shutting down.", "draining")
            else:
                known = as_api_error(error)
            if known is None:
                logger.error("a request failed", exc_info=error)
                known = internal_error()
            known = answer.reword(known)
            note_error(known)
            if stream.started:
                stream.put(lambda: [answer.format.failure(known)])
                await stream.end()
            else:
                await error_response(known, scope["path"])(scope, receive, send)
        finally:
            stream.close()


async def _stream(answer: Answer, stream: EventStream) -> None:
    """Timings, where they are wanted, go into the last document, which is held back for them."""
    call = current_call.get()
    is_timed = call is not None and call.wants_timings
    held: list[msgspec.Struct] = []

    def timed_chunks(event: ChoiceEvent) -> list[msgspec.Struct]:
        chunks = [*held, *answer.format.chunks(event)]
        held[:] = [chunks.pop()] if chunks and event.finish_reason else []
        return chunks

    make = timed_chunks if is_timed else answer.format.chunks
    await answer.generation.deliver(
        lambda event: stream.put(partial(make, event)), None if is_timed else stream.put_text
    )
    stream.put(lambda: [*held, *answer.format.ending(answer.generation.usage())], _timings())
    await stream.end()


async def _collect(answer: Answer, workers: TextWorkers) -> Response:
    """What many logprobs are made into does not hold up other requests."""
    choices = [Collected() for _ in answer.generation.choices]
    await answer.generation.deliver(lambda event: choices[event.index].add(event))
    usage, timings = answer.generation.usage(), _timings()
    data = await workers.run(
        sum(choice.num_logprobs for choice in choices),
        lambda: with_timings(answer.format.whole(choices, usage), timings),
    )
    return Response(data, media_type="application/json")


def _timings() -> Timings | None:
    """Of this request, if it wants them."""
    call = current_call.get()
    return call.timings() if call is not None and call.wants_timings else None
