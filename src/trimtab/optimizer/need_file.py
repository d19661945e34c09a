"""A need out of a YAML file: the names and the texts of the command line's options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trimtab.errors import UserError
from trimtab.optimizer.safe_yaml import load_yaml

NAMES = (
    "slo",
    "quality",
    "workload",
    "rate",
    "headroom",
    "memory",
    "price_per_hour",
    "minimize",
    "maximize",
)
MAX_BYTES = 1 << 20


def read_need(path: Path) -> dict[str, Any]:
    """Arguments of `make_need`. UserError, naming the file, for anything else in it."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    if len(content) > MAX_BYTES:
        raise UserError(f"{path}: too large for a need")
    try:
        text = content.decode()
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8") from None
    found = load_yaml(text, str(path))
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise UserError(f"{path}: use lines of NAME: VALUE with the names {', '.join(NAMES)}")
    unknown = [name for name in found if name not in NAMES]
    if unknown:
        raise UserError(f"{path}: unknown name {unknown[0]!r}: use {', '.join(NAMES)}")
    return {name: _value(path, name, value) for name, value in found.items()}


def _value(path: Path, name: str, value: Any) -> Any:
    if name == "price_per_hour":
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise UserError(f"{path}: price_per_hour: {value!r} is no number")
        return float(value)
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise UserError(f"{path}: {name}: {value!r} is no text")
    return str(value)
