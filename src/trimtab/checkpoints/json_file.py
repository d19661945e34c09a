"""JSON from files that other people made: bounded, without duplicate keys, one-line errors."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

from trimtab.errors import CheckpointError
from trimtab.models.config_reader import show

MAX_JSON_BYTES = 64 << 20
MAX_INTEGER_DIGITS = 20


def open_regular(path: Path) -> tuple[int, int]:
    """A read-only descriptor of a regular file and its size; the caller closes it.

    Symbolic links are followed (the Hugging Face cache is made of them); pipes, devices and
    directories are refused before they can block. Raises CheckpointError.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise CheckpointError(f"{path}: not a regular file")
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError:
        raise CheckpointError(f"{show(str(path))}: not a possible file name") from None
    info = os.fstat(descriptor)
    if not stat.S_ISREG(info.st_mode):
        os.close(descriptor)
        raise CheckpointError(f"{path}: not a regular file")
    return descriptor, info.st_size


def read_json_object(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds. Raises CheckpointError naming the file."""
    descriptor, size = open_regular(path)
    with os.fdopen(descriptor, "rb") as file:
        if size > MAX_JSON_BYTES:
            raise CheckpointError(f"{path}: {size} bytes is too large (at most {MAX_JSON_BYTES})")
        data = file.read(size)
    return parse_json_object(data, str(path))


def parse_json_object(data: bytes, where: str, *, integers_only: bool = False) -> dict[str, Any]:
    """Parse one JSON object; `where` opens every error message.

    Duplicate keys are refused at every depth: two readers of such a file can see two models.
    Nesting that exhausts the parser and integers of more than 20 digits are refused. With
    `integers_only`, so are all other numbers. Raises CheckpointError.
    """

    def refuse_number(text: str) -> Any:
        raise CheckpointError(f"{where}: the number {show(text)} must be an integer")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            seen: set[str] = set()
            for key, _ in pairs:
                if key in seen:
                    raise CheckpointError(f"{where}: duplicate key {show(key)}")
                seen.add(key)
        return result

    def bounded(text: str) -> int:
        if len(text) > MAX_INTEGER_DIGITS:
            raise CheckpointError(f"{where}: the number {show(text)} is too large")
        return int(text)

    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=unique,
            parse_int=bounded,
            parse_float=refuse_number if integers_only else None,
            parse_constant=refuse_number if integers_only else None,
        )
    except RecursionError:
        raise CheckpointError(f"{where}: nested too deeply") from None
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{where}: not UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{where}: not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{where}: must hold a JSON object")
    return value
