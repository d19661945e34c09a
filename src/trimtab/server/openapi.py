"""`/openapi.json`: what the routes take and answer, from the structs that parse and send it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from trimtab.engine.client import EngineInfo, EngineStats
from trimtab.server import api_types as api
from trimtab.server import embeddings_api, messages_input, responses_input, tokenize_api, validation
from trimtab.server import messages_types as messages
from trimtab.server import responses_types as responses
from trimtab.server.api_errors import AnthropicError, ErrorDocument, JSONResponse
from trimtab.server.desk import Desk
from trimtab.server.fields import EXCEPTIONS, FIELDS, NESTED, REQUIRED, TOKEN_ID
from trimtab.version import VERSION

REF = "#/components/schemas/{name}"
Inert = Mapping[str, tuple[Any, ...]]


class Status(msgspec.Struct):
    status: str


@dataclass(frozen=True)
class Operation:
    method: str
    path: str
    summary: str
    answer: Any
    request: type[msgspec.Struct] | None = None
    event: Any = None  # of a stream, if the request can ask for one
    inert: Inert | None = None  # fields that take only these values
    is_open: bool = False  # without a key
    statuses: tuple[int, ...] = ()  # further ones, with an error
    error: type[msgspec.Struct] = ErrorDocument


OPERATIONS: tuple[Operation, ...] = (
    Operation("get", "/health", "Whether the engine's loop runs", Status, is_open=True),
    Operation("get", "/ready", "Whether a new request would be served", Status, is_open=True),
    Operation("get", "/stats", "The engine's counters", EngineStats),
    Operation("get", "/version", "The version of trimtab", tokenize_api.Version),
    Operation("get", "/v1/models", "The models: one", api.ModelList),
    Operation("get", "/v1/models/{model}", "One model", api.Model, statuses=(404,)),
    Operation(
        "post",
        "/v1/completions",
        "Complete prompts",
        api.Completion,
        api.CompletionRequest,
        api.Completion,
        validation.INERT_COMPLETION,
    ),
    Operation(
        "post",
        "/v1/chat/completions",
        "Answer a conversation",
        api.ChatCompletion,
        api.ChatRequest,
        api.ChatChunk,
        validation.INERT_CHAT,
    ),
    Operation(
        "post",
        "/v1/responses",
        "Answer a conversation, in OpenAI's newer form",
        responses.Response,
        responses.ResponsesRequest,
        responses.AnyEvent,
        responses_input.INERT | {"store": (None, False)},
    ),
    Operation(
        "post",
        "/v1/messages",
        "Answer a conversation, in Anthropic's form",
        messages.MessagesAnswer,
        messages.MessagesRequest,
        messages.AnyEvent,
        messages_input.INERT,
        error=AnthropicError,
    ),
    Operation(
        "post",
        "/v1/messages/count_tokens",
        "How many tokens a conversation has",
        messages.TokenCountAnswer,
        messages.CountRequest,
        inert=messages_input.INERT,
        error=AnthropicError,
    ),
    Operation(
        "post",
        "/v1/embeddings",
        "Inputs as vectors",
        embeddings_api.EmbeddingAnswer,
        embeddings_api.EmbeddingRequest,
        inert=embeddings_api.INERT,
    ),
    Operation(
        "post",
        "/tokenize",
        "Token ids of a text or a conversation",
        tokenize_api.TokenizeAnswer,
        tokenize_api.TokenizeRequest,
        inert=tokenize_api.INERT,
    ),
    Operation(
        "post",
        "/detokenize",
        "The text of token ids",
        tokenize_api.DetokenizeAnswer,
        tokenize_api.DetokenizeRequest,
    ),
)
_ERRORS = {
    400: "The request cannot be served; `param` names the field",
    401: "A valid key is required",
    403: "The key may not do this",
    404: "There is no such model",
    408: "The body took too long",
    413: "The body is too large",
    415: "The body is not JSON",
    429: "Too many requests; come back in `Retry-After` seconds",
    431: "The headers are too large",
    500: "The engine or the server failed",
    503: "Loading, restarting or draining; come back in `Retry-After` seconds",
}
_OF_EVERY = (400, 401, 403, 429, 431, 500, 503)
_OF_BODIES = (404, 408, 413, 415)


def routes(desk: Desk) -> list[Route]:
    documents: list[bytes] = []

    async def openapi(request: Request) -> Response:
        desk.require_ready()
        if not documents:
            made = document(OPERATIONS, desk.model.name, desk.engine.info)
            documents.append(msgspec.json.encode(made))
        return Response(documents[0], media_type=JSONResponse.media_type)

    return [Route("/openapi.json", openapi, methods=["GET"])]


def document(operations: Sequence[Operation], model: str, info: EngineInfo) -> dict[str, Any]:
    """The document for a served model; `info` gives the bounds of its token ids."""
    types = [
        *(t for op in operations for t in (op.error, op.request, op.answer, op.event) if t),
    ]
    schemas, components = msgspec.json.schema_components(types, ref_template=REF)
    of = {id(kind): schema for kind, schema in zip(types, schemas, strict=True)}
    for operation in operations:
        if operation.request is not None:
            name = of[id(operation.request)]["$ref"].rpartition("/")[2]
            _narrow(name, components[name], operation.inert or {}, model, info.vocab_size)
    for (name, field), values in NESTED.items():
        if name in components:
            _require(components[name], field, values)
    paths: dict[str, Any] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method] = _operation(operation, of)
    bearer = {"type": "http", "scheme": "bearer"}
    return {
        "openapi": "3.1.0",
        "info": {"title": "trimtab", "version": VERSION},
        "paths": paths,
        "components": {"schemas": components, "securitySchemes": {"bearer": bearer}},
        "security": [{"bearer": []}, {}],
    }


def _operation(operation: Operation, of: Mapping[int, Any]) -> dict[str, Any]:
    error = {"application/json": {"schema": of[id(operation.error)]}}
    content = {"application/json": {"schema": of[id(operation.answer)]}}
    if operation.event is not None:
        content["text/event-stream"] = {
            "schema": _event_schema(of[id(operation.event)], of[id(operation.error)])
        }
    statuses = {*_OF_EVERY, *operation.statuses, *(_OF_BODIES if operation.request else ())}
    answers: dict[str, Any] = {"200": {"description": "The answer", "content": content}}
    for status in sorted(statuses):
        answers[str(status)] = {"description": _ERRORS[status], "content": error}
    if operation.is_open:
        failed = {"application/json": {"schema": of[id(operation.answer)]}}
        answers["503"] = {"description": "It is not", "content": failed}
    result: dict[str, Any] = {
        "operationId": (operation.method + operation.path.translate(_TO_NAME)).rstrip("_"),
        "summary": operation.summary,
        "responses": answers,
    }
    if operation.request is not None:
        body = {"application/json": {"schema": of[id(operation.request)]}}
        result["requestBody"] = {"required": True, "content": body}
    if "{model}" in operation.path:
        name = {"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}
        result["parameters"] = [name]
    if operation.is_open:
        result["security"] = []
    return result


def _event_schema(document: Any, error: Any) -> dict[str, Any]:
    """Of one event. A stream that fails ends in an error instead."""
    either = {"anyOf": [document, error]}
    data = {"type": "string", "contentMediaType": "application/json", "contentSchema": either}
    properties = {"event": {"type": "string"}, "data": {"anyOf": [{"const": "[DONE]"}, data]}}
    return {"type": "object", "properties": properties, "required": ["data"]}


_TO_NAME = str.maketrans("/{.}", "____")


def _narrow(name: str, schema: dict[str, Any], inert: Inert, model: str, vocab_size: int) -> None:
    """Add what the types do not say: descriptions, bounds, and fields that take few values."""
    properties = schema["properties"]
    for field, own in properties.items():
        known = FIELDS.get(field)
        if known is None:
            continue
        own["description"] = known.description
        bounds = EXCEPTIONS.get((name, field), known.bounds)
        for option in own.get("anyOf", [own]):
            extra = bounds.get(option.get("type", ""), {})
            option |= _with_token_ids(extra, vocab_size)
        if field == "model":
            del own["anyOf"]
            own["enum"] = [model, None]
        if required := REQUIRED.get((name, field)):
            _require(schema, field, _with_token_ids(required, vocab_size))
    for field, values in inert.items():
        words = (
            {"description": "No other value is supported."}
            if values != (None,)
            else {"description": "Not supported."}
        )
        properties.setdefault(field, {"enum": list(values), **words})


def _require(schema: dict[str, Any], field: str, values: dict[str, Any]) -> None:
    own = schema["properties"][field]
    own.pop("default", None)
    if values.keys() & {"type", "enum", "const", "anyOf"}:
        own.pop("anyOf", None)
    own |= values
    schema["required"] = sorted({*schema.get("required", ()), field})


def _with_token_ids(bounds: Any, vocab_size: int) -> Any:
    """A copy with the range of this vocabulary where a token id stands."""
    if isinstance(bounds, list):
        return [_with_token_ids(one, vocab_size) for one in bounds]
    if isinstance(bounds, dict):
        result = {k: _with_token_ids(v, vocab_size) for k, v in bounds.items() if k != TOKEN_ID}
        if TOKEN_ID not in bounds:
            return result
        if "type" in bounds:
            return result | {"minimum": 0, "maximum": vocab_size - 1}
        return {"pattern": "^[0-9]{1,10}$"}  # the name of a property
    return bounds
