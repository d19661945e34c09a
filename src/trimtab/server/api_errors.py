"""What a client is told when something goes wrong: our own words, in OpenAI's shape."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.responses import Response

from trimtab.errors import EngineDeadError, FatalRequestError, QueueFullError, RequestError

RETRY_AFTER_SECONDS = 1
DO_NOT_RETRY = {"x-should-retry": "false"}  # obeyed by OpenAI's clients


class ErrorBody(msgspec.Struct):
    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorDocument(msgspec.Struct):
    error: ErrorBody


class ApiError(Exception):
    """An answer that is an error. `message` is written for the client quoting only what it sent."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.document = ErrorDocument(ErrorBody(message, type, param, code))
        self.headers = headers or {}

    @property
    def name(self) -> str:
        """What kind of error it is, in metrics and logs."""
        error = self.document.error
        return error.code or error.type

    def response(self) -> Response:
        return JSONResponse(self.document, self.status, self.headers)


class AnthropicErrorBody(msgspec.Struct):
    type: str
    message: str


class AnthropicError(msgspec.Struct, tag_field="type", tag="error"):
    error: AnthropicErrorBody


MESSAGES_PATH = "/v1/messages"
_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def anthropic_error(error: ApiError) -> AnthropicError:
    """The same error in Anthropic's shape."""
    kind = "invalid_request_error" if error.status < 500 else "api_error"
    message = error.document.error.message
    return AnthropicError(AnthropicErrorBody(_ANTHROPIC_TYPES.get(error.status, kind), message))


def error_response(error: ApiError, path: str) -> Response:
    """The answer in the shape that clients of this path read."""
    if path == MESSAGES_PATH or path.startswith(MESSAGES_PATH + "/"):
        return JSONResponse(anthropic_error(error), error.status, error.headers)
    return error.response()


class JSONResponse(Response):
    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return msgspec.json.encode(content)


def bad_request(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    return ApiError(400, message, param=param, code=code)


def unavailable(message: str, code: str) -> ApiError:
    headers = {"Retry-After": str(RETRY_AFTER_SECONDS)}
    return ApiError(503, message, type="unavailable_error", code=code, headers=headers)


def timed_out() -> ApiError:
    return ApiError(
        408,
        "The request was not complete within its timeout.",
        type="timeout_error",
        code="timeout",
        headers=DO_NOT_RETRY,
    )


def as_api_error(error: Exception) -> ApiError | None:
    """The answer to a failure that we know; None for one that we do not, which is a bug."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, RequestError):
        return bad_request(str(error), error.param, error.code)
    if isinstance(error, QueueFullError):
        return ApiError(
            429,
            "The server is at its limit of running and waiting requests; try again later.",
            type="rate_limit_error",
            code="queue_full",
            headers={"Retry-After": str(error.retry_after)},
        )
    if isinstance(error, FatalRequestError):
        return ApiError(
            500,
            "The engine ended each time it ran this request; it was given up.",
            type="server_error",
            code="request_ends_engine",
            headers=DO_NOT_RETRY,
        )
    if isinstance(error, EngineDeadError):
        return ApiError(
            500,
            "The engine stopped before this request was complete; send it again.",
            type="server_error",
            code="engine_stopped",
        )
    return None


def generation_failed(reason: str) -> ApiError:
    return ApiError(
        500,
        f"The engine could not complete this request: {reason}",
        type="server_error",
        code="generation_failed",
    )


def internal_error() -> ApiError:
    return ApiError(
        500, "The server failed to answer this request.", type="server_error", code="internal_error"
    )
