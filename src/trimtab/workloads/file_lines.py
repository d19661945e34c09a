"""Lines of a user's file, and what is wrong with them in one line."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from trimtab.errors import UserError


class BadLine(Exception):  # noqa: N818  (not an error that leaves this room)
    """What is wrong with the line at hand; `at_line` says where."""


def lines_of(path: Path) -> Iterator[tuple[int, str]]:
    """(number, line) of those with something in them. Raises UserError for what is no text."""
    try:
        with path.open("rb") as file:
            for number, raw in enumerate(file, 1):
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                if line:
                    yield number, line
    except UnicodeDecodeError:
        raise UserError(f"{path}, line {number}: not UTF-8") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None


def at_line(path: Path, number: int, problem: BadLine | str) -> UserError:
    return UserError(f"{path}, line {number}: {problem}")


def json_object(line: str) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        raise BadLine("not JSON") from None
    if not isinstance(entry, dict):
        raise BadLine("a JSON object is needed, {...}")
    return entry


def whole_number(value: Any, name: str, least: int = 0) -> int:
    """An int, also as text or as a float without a fraction."""
    if isinstance(value, str) and re.fullmatch(r"\d{1,12}", value.strip()):
        value = int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 10**9:
        raise BadLine(f"{name} must be a whole number of at least {least}, not {shown(value)}")
    return value


def seconds(value: Any, name: str) -> float:
    """A number of seconds, at least 0."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or value < 0:
        raise BadLine(f"{name} must be a number of seconds, at least 0, not {shown(value)}")
    return float(value)


_DATE = re.compile(r"(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d:\d\d)(\.\d+)?\s*(Z|[+-]\d\d:?\d\d)?")


def date_seconds(text: str, name: str) -> float:
    """Seconds since 1970 of `2023-11-16 18:15:46.6805900`, with or without a zone (UTC)."""
    match = _DATE.fullmatch(text.strip())
    try:
        if match is None:
            raise ValueError
        zone = (match[4] or "Z").replace("Z", "+00:00")
        zone = zone if ":" in zone else f"{zone[:3]}:{zone[3:]}"
        whole = datetime.fromisoformat(f"{match[1]}T{match[2]}{zone}")
    except ValueError:
        raise BadLine(
            f"{name} must be a time like 2023-11-16 18:15:46.68, not {shown(text)}"
        ) from None
    return whole.astimezone(timezone.utc).timestamp() + float(match[3] or 0)


def shown(value: Any) -> str:
    """A value in an error message, short and on one line."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 40 else f"{text[:37]}..."
