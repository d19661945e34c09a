"""YAML that a user gives: safe_load, of what has neither aliases nor depth."""

from __future__ import annotations

from typing import Any

from trimtab.errors import UserError

MAX_DEPTH = 8


def load_yaml(text: str, where: str) -> Any:
    """Raises UserError, one line that begins with `where`."""
    import yaml

    try:
        _check_shape(yaml, text, where)
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        at = "" if mark is None else f", line {mark.line + 1}"
        problem = getattr(error, "problem", None) or "damaged"
        raise UserError(f"{where}{at}: not YAML: {' '.join(str(problem).split())}") from None
    except (ValueError, RecursionError, OverflowError, TypeError, AttributeError):
        # PyYAML itself stumbles over some dates, numbers and depths.
        raise UserError(f"{where}: not YAML that can be read") from None


def _check_shape(yaml: Any, text: str, where: str) -> None:
    """Aliases can make a short file a huge document, and depth can exhaust the parser."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise UserError(f"{where}: YAML aliases have no place in it")
        if isinstance(event, yaml.ScalarEvent) and event.value == "<<":
            raise UserError(f"{where}: YAML merge keys have no place in it")
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise UserError(f"{where}: YAML too deep to be read")
