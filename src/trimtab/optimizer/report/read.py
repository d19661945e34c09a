"""JSON values into typed dataclasses; what does not fit is refused, and where it stands is said."""

from __future__ import annotations

import dataclasses
import functools
import math
import types
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from trimtab.errors import UserError

Record = TypeVar("Record")
_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


class MisfitError(UserError):
    """A value that is not what its place asks for."""

    def __init__(self, where: str, problem: str) -> None:
        super().__init__(f"results: {where or 'the document'} {problem}")


@functools.cache
def _fields(kind: Any) -> dict[str, tuple[Any, bool]]:
    """Name to (type, may be left out)."""
    hints = get_type_hints(kind)
    return {
        one.name: (
            hints[one.name],
            one.default is not dataclasses.MISSING
            or one.default_factory is not dataclasses.MISSING,
        )
        for one in dataclasses.fields(kind)
    }


def read_record(kind: type[Record], value: Any, where: str = "") -> Record:
    """A dataclass from a JSON object.

    Fields that it does not name are left alone; null takes a field's default, where it has one.
    A class may take other forms of itself in a `from_json(value, where)`.
    """
    if (special := getattr(kind, "from_json", None)) is not None:
        return special(value, where)  # type: ignore[no-any-return]
    return read_fields(kind, value, where)


def read_fields(kind: type[Record], value: Any, where: str) -> Record:
    if not isinstance(value, dict):
        raise MisfitError(where, f"must be an object, not {shown(value)}")
    given = {}
    any_kind: Any = kind  # mypy holds that a type variable's class cannot be hashed
    for name, (hint, optional) in _fields(any_kind).items():
        place = f"{where}.{name}" if where else name
        if value.get(name) is None and optional:
            continue
        if name not in value:
            raise MisfitError(place, "is missing")
        given[name] = read_value(hint, value[name], place)
    return kind(**given)


def read_value(hint: Any, value: Any, where: str) -> Any:
    """`value` as `hint`, a type built of dataclasses, scalars, lists, dicts and unions.

    A number that is not finite is null, for JSON has no other word for it.
    """
    if isinstance(value, float) and not math.isfinite(value):
        value = None
    if hint is Any:
        return value
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return _read_union(get_args(hint), value, where)
    if origin in (list, dict):
        return _read_container(origin, get_args(hint), value, where)
    if dataclasses.is_dataclass(hint):
        return read_record(hint, value, where)  # type: ignore[arg-type]
    return _read_scalar(hint, value, where)


def _read_union(options: tuple[Any, ...], value: Any, where: str) -> Any:
    if type(None) in options and (value is None or _is_around_nothing(value)):
        return None
    problem: MisfitError | None = None
    for option in options:
        if option is not type(None):
            try:
                return read_value(option, value, where)
            except MisfitError as misfit:
                problem = problem or misfit
    assert problem is not None
    raise problem


def _is_around_nothing(value: Any) -> bool:
    """An interval whose value is not known."""
    if not isinstance(value, dict) or "value" not in value or "low" not in value:
        return False
    middle = value["value"]
    return middle is None or (isinstance(middle, float) and not math.isfinite(middle))


def _read_container(origin: Any, inner: tuple[Any, ...], value: Any, where: str) -> Any:
    if not isinstance(value, origin):
        kind = "a list" if origin is list else "an object"
        raise MisfitError(where, f"must be {kind}, not {shown(value)}")
    if origin is list:
        return [read_value(inner[0], one, f"{where}[{i}]") for i, one in enumerate(value)]
    return {str(key): read_value(inner[1], one, f"{where}.{key}") for key, one in value.items()}


def _read_scalar(hint: Any, value: Any, where: str) -> Any:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if hint is float and is_number:
        try:
            return float(value)
        except OverflowError:
            raise MisfitError(where, "is too large a number") from None
    if hint is int and is_number and value == int(value):
        return int(value)
    if hint in (str, bool) and isinstance(value, hint):
        return value
    raise MisfitError(where, f"must be {_NAMES[hint]}, not {shown(value)}")


def shown(value: Any) -> str:
    """A value in an error, at most about 40 characters."""
    if value is None:
        return "null"
    text = " ".join(repr(value).split())
    return text if len(text) <= 40 else f"{text[:37]}..."
