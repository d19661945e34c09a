"""Bytes from a client to a typed request: every limit on form is held here."""

from __future__ import annotations

import re
from typing import Any, TypeVar

import msgspec

from trimtab.server.api_errors import ApiError, bad_request

MAX_JSON_DEPTH = 200
_STRUCTURE = re.compile(rb'"(?:[^"\\]|\\.)*"?|[\[\]{}]', re.DOTALL)
_PATH = re.compile(r" - at `(?:key in )?\$\.?(?P<path>[^`]*)`$")

T = TypeVar("T")


def parse_object(body: bytes) -> dict[str, Any]:
    """The JSON object in `body`. Raises ApiError 400 for anything else."""
    if json_depth_exceeds(body, MAX_JSON_DEPTH):
        raise bad_request(f"The request body is nested more than {MAX_JSON_DEPTH} levels deep.")
    try:
        document = msgspec.json.decode(body)
    except UnicodeDecodeError:
        raise bad_request("The request body is not valid UTF-8.") from None
    except (msgspec.MsgspecError, RecursionError) as error:
        detail = str(error) if isinstance(error, msgspec.MsgspecError) else "nested too deeply"
        raise bad_request(f"The request body is not valid JSON: {detail}") from None
    if not isinstance(document, dict):
        raise bad_request("The request body must be a JSON object.")
    return document


def json_depth_exceeds(body: bytes, limit: int) -> bool:
    """Whether arrays and objects nest deeper than `limit`. Never recurses; exact for valid JSON."""
    if body.count(b"[") + body.count(b"{") <= limit:
        return False
    depth = 0
    for match in _STRUCTURE.finditer(body):
        first = body[match.start()]
        if first in b"[{":
            depth += 1
            if depth > limit:
                return True
        elif first in b"]}":
            depth -= 1
    return False


def convert(document: dict[str, Any], into: type[T]) -> T:
    """Typed fields of a parsed request. Raises ApiError 400 naming the offending field."""
    try:
        return msgspec.convert(document, into)
    except msgspec.ValidationError as error:
        raise _wrong_type(error) from None


def _wrong_type(error: msgspec.ValidationError) -> ApiError:
    text = str(error)
    found = _PATH.search(text)
    if found is None or not found["path"]:
        missing = re.search(r"missing required field `(\w+)`", text)
        return bad_request(text, missing[1] if missing else None)
    reason = text[: found.start()]
    missing = re.search(r"missing required field `(\w+)`", reason)
    param = f"{found['path']}.{missing[1]}" if missing else found["path"]
    return bad_request(f"{param}: {reason}", re.split(r"[.\[]", param)[0])
