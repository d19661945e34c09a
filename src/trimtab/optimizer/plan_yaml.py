"""Plans as YAML: written for people, read with every key and type checked."""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from typing import Any, TypeVar

from trimtab.config import ExecutorConfig, SchedulerConfig
from trimtab.errors import UserError
from trimtab.optimizer.fingerprint import Fingerprint, check_fingerprint
from trimtab.optimizer.plan import FORMAT, FORMAT_KEY, NEEDS, Measurement, Plan
from trimtab.optimizer.report.formatting import one_line
from trimtab.optimizer.safe_yaml import load_yaml
from trimtab.optimizer.variants import Variant

Config = TypeVar("Config")
_COMMENTS = {
    "model": "the model, and the hash of its weights, config and tokenizer",
    "variant": "what is done to it",
    "artifact": "hash of the quantized checkpoint; null: the model itself is served",
    "engine": "every knob",
    "machine": "where it was measured",
    "need": "what was asked for",
    "measured": "on that machine, with the interval of each",
    "predicted": "before it was measured",
}
_LINE_ENDS = frozenset("\x85\u2028\u2029")
_HEAD = "# A trimtab plan: trimtab serve THIS_FILE\n"


def dump_plan(plan: Plan) -> str:
    """YAML of plain scalars, in the order of `Plan.as_json`; settings that are not at their default
    are marked."""
    changed = plan.changed()
    lines = [_HEAD]
    if plan.headline:
        lines.append(f"# {one_line(plan.headline)}\n")
    for key, value in plan.as_json().items():
        if key in _COMMENTS:
            lines.append(f"\n# {_COMMENTS[key]}\n")
        if key == "engine":
            lines.append("engine:\n")
            for name, setting in value.items():
                mark = "  # not the default" if name in changed else ""
                lines.append(f"  {name}: {_scalar(setting)}{mark}\n")
            continue
        text = _dump({key: value}, width=100, default_flow_style=False)
        if key == "measured" and value:
            text = "measured:\n" + "".join(
                f"  {_scalar(name)}: {_scalar(one)}\n" for name, one in value.items()
            )
        lines.append(text)
    return "".join(lines)


def _scalar(value: Any) -> str:
    """On one line. Not JSON: YAML 1.1 takes 1e-05 for a text."""
    text = _dump(value, width=1 << 20, default_flow_style=True)
    return text.removesuffix("\n...\n").strip()


def _dump(value: Any, **options: Any) -> str:
    """PyYAML writes line ends of Unicode as they are, and reads some of them as spaces."""
    import yaml

    text: str = yaml.safe_dump(value, sort_keys=False, allow_unicode=True, **options)
    if not _LINE_ENDS.isdisjoint(text):
        text = yaml.safe_dump(value, sort_keys=False, **options)
    return text


def plan_from_yaml(text: str, where: str) -> Plan:
    """Raises UserError, one line that begins with `where`."""
    document = load_yaml(text, where)
    try:
        return _plan(document)
    except _DamagedError as error:
        raise UserError(f"{where}: {error}") from None
    except UserError as error:  # of a config
        raise UserError(f"{where}: {' '.join(str(error).split())}") from None


class _DamagedError(Exception):
    """One line says what is wrong."""


def _plan(document: Any) -> Plan:
    top = _mapping(document, "the file")
    version = top.get(FORMAT_KEY)
    if version is None:
        raise _DamagedError(f"not a trimtab plan: {FORMAT_KEY} is missing")
    if isinstance(version, bool) or version != FORMAT:
        raise _DamagedError(
            f"a plan of format {_show(version)}, but this version of trimtab reads {FORMAT}"
        )
    required = ("model", "variant", "artifact", "engine", "machine")
    optional = ("headline", "created", "versions", "need", "measured", "predicted")
    _keys(top, "", required, (FORMAT_KEY, *optional))
    model = _mapping(top["model"], "model")
    _keys(model, "model", ("name", "hash"), ())
    variant = _build("variant", _mapping(top["variant"], "variant"), Variant)
    engine = _mapping(top["engine"], "engine")
    executor_names = {one.name for one in fields(ExecutorConfig)}
    scheduler_names = {one.name for one in fields(SchedulerConfig)}
    _keys(engine, "engine", (), (*executor_names, *scheduler_names))
    executor = _build(
        "engine", {k: v for k, v in engine.items() if k in executor_names}, ExecutorConfig
    )
    if executor != variant.executor_config(executor):
        raise _DamagedError(
            f"engine: weights, group_size and kv_cache are not those of the variant {variant.label}"
        )
    artifact = top["artifact"]
    if artifact is not None and not variant.needs_build:
        raise _DamagedError(f"artifact: nothing is built for {variant.label}: must be null")
    if artifact is None and variant.needs_build:
        raise _DamagedError(f"artifact: {variant.label} is built: its hash must be there")
    machine = _build("machine", _mapping(top["machine"], "machine"), Fingerprint)
    return Plan(
        model=_text(model["name"], "model.name"),
        model_hash=_hash(model["hash"], "model.hash"),
        variant=variant,
        executor=executor,
        scheduler=_build(
            "engine", {k: v for k, v in engine.items() if k in scheduler_names}, SchedulerConfig
        ),
        machine=check_fingerprint(machine),
        artifact_hash=None if artifact is None else _hash(artifact, "artifact"),
        need=_texts(top.get("need"), "need", NEEDS),
        measured=_values(top.get("measured"), "measured", _measurement),
        predicted=_values(top.get("predicted"), "predicted", _number),
        versions=_texts(top.get("versions"), "versions", None),
        headline=_text(top.get("headline", ""), "headline", may_be_empty=True),
        created=_text(top.get("created", ""), "created", may_be_empty=True),
    )


def _build(where: str, values: Mapping[str, Any], cls: Callable[..., Config]) -> Config:
    """A dataclass of scalars, each of the type that it declares; what has no default must be
    there."""
    kind: Any = cls
    hints = typing.get_type_hints(kind)
    needed = [one.name for one in fields(kind) if one.default is MISSING]
    _keys(values, where, needed, tuple(hints))
    return cls(
        **{name: _typed(value, hints[name], f"{where}.{name}") for name, value in values.items()}
    )


def _typed(value: Any, hint: Any, where: str) -> Any:
    """A scalar of the hint: bool, int, float, str, a literal, or one of them or None."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        options = [one for one in typing.get_args(hint) if one is not type(None)]
        return None if value is None else _typed(value, options[0], where)
    if typing.get_origin(hint) is typing.Literal:
        known = typing.get_args(hint)
        if not isinstance(value, str) or value not in known:
            raise _DamagedError(f"{where}: {_show(value)} must be one of {', '.join(known)}")
        return value
    if hint is float:
        return _number(value, where)
    if hint is int and isinstance(value, int) and not isinstance(value, bool):
        if abs(value) >= 1 << 62:
            raise _DamagedError(f"{where}: {_show(value)} is too large")
        return value
    if hint is bool and isinstance(value, bool):
        return value
    if hint is str:
        return _text(value, where, may_be_empty=True)
    names = {int: "a whole number", bool: "true or false"}
    raise _DamagedError(f"{where}: {_show(value)} must be {names[hint]}")


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise _DamagedError(f"{where}: must be a mapping of names")
    return value


def _keys(
    found: Mapping[str, Any],
    where: str,
    required: typing.Iterable[str],
    optional: typing.Iterable[str],
) -> None:
    inside = f" in {where}" if where else ""
    for name in required:
        if name not in found:
            raise _DamagedError(f"{name} is missing{inside}")
    for name in found:
        if name not in required and name not in optional:
            raise _DamagedError(f"unknown key {_show(name)}{inside}")


def _text(value: Any, where: str, may_be_empty: bool = False) -> str:
    if not isinstance(value, str) or not (value or may_be_empty) or "\0" in value:
        raise _DamagedError(f"{where}: {_show(value)} must be a text")
    return value


def _hash(value: Any, where: str) -> str:
    text = _text(value, where)
    if len(text) != 64 or not set(text) <= set("0123456789abcdef"):
        raise _DamagedError(f"{where}: {_show(value)} is no hash")
    return text


def _number(value: Any, where: str) -> float:
    try:
        found = float(value) if isinstance(value, int | float) else math.nan
    except OverflowError:
        found = math.nan
    if isinstance(value, bool) or not math.isfinite(found):
        raise _DamagedError(f"{where}: {_show(value)} must be a number")
    return found


def _measurement(value: Any, where: str) -> Measurement:
    found = _mapping(value, where)
    _keys(found, where, ("value",), ("low", "high"))
    numbers = {name: _number(one, f"{where}.{name}") for name, one in found.items()}
    return Measurement(**numbers)


def _texts(value: Any, where: str, known: tuple[str, ...] | None) -> dict[str, str]:
    found = {} if value is None else _mapping(value, where)
    if known is not None:
        _keys(found, where, (), known)
    return {name: _text(one, f"{where}.{name}", may_be_empty=True) for name, one in found.items()}


Value = TypeVar("Value")


def _values(value: Any, where: str, read: Callable[[Any, str], Value]) -> dict[str, Value]:
    found = {} if value is None else _mapping(value, where)
    return {name: read(one, f"{where}.{_show(name)}") for name, one in found.items()}


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
