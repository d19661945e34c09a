"""Bytes from a client to a typed request: every limit on form is held here."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from trimtab.server.api_errors import ApiError, bad_request

MAX_JSON_DEPTH = 200
MAX_CONTAINERS = 100_000
_STRUCTURE = re.compile(rb'"(?:[^"\\]|\\.)*"?|[\[\]{}]', re.DOTALL)
_PATH = re.compile(r" - at `(?:key in )?\$\.?(?P<path>[^`]*)`$")

T = TypeVar("T")


def parse(body: bytes, into: type[T], refuse: Callable[[dict[str, Any]], None]) -> T:
    """A typed request. `refuse` sees the raw object first; it raises for what is not supported.

    Raises ApiError 400, naming the field where there is one. Runs in any thread.
    """
    document = _parse_object(body)
    refuse(document)
    return convert(document, into)


def _parse_object(body: bytes) -> dict[str, Any]:
    if too_complex(body):
        raise bad_request(
            f"The request body is nested more than {MAX_JSON_DEPTH} levels deep, or has more than"
            f" {MAX_CONTAINERS} arrays and objects."
        )
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


def too_complex(
    body: bytes, max_depth: int = MAX_JSON_DEPTH, max_containers: int = MAX_CONTAINERS
) -> bool:
    """Whether arrays and objects nest too deep or are too many. Exact for valid JSON; for any
    bytes it neither recurses nor allocates more than one token at a time."""
    if body.count(b"[") + body.count(b"{") <= min(max_depth, max_containers):
        return False
    depth = count = 0
    for match in _STRUCTURE.finditer(body):
        first = body[match.start()]
        if first in b"[{":
            depth += 1
            count += 1
            if depth > max_depth or count > max_containers:
                return True
        elif first in b"]}":
            depth -= 1
    return False


def convert(document: dict[str, Any], into: type[T]) -> T:
    """Raises ApiError 400, naming the field where there is one."""
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
