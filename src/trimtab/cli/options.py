"""Command-line options out of the config dataclasses: every knob stays documented in one place."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable
from typing import Any

import typer


def with_config_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Expand each parameter that is a config dataclass into one option for each of its knobs.

    The returned function takes the options and calls `function` with the configs built from them;
    a field name becomes `--field-name`, its help and default are the dataclass's own.
    """
    hints = typing.get_type_hints(function)
    parameters: list[inspect.Parameter] = []
    fields_of: dict[str, list[str]] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if dataclasses.is_dataclass(hints[name]):
            options = _options(hints[name])
            fields_of[name] = [option.name for option in options]
            parameters += options
        else:
            parameters.append(parameter.replace(annotation=hints[name]))

    @functools.wraps(function)
    def command(**given: Any) -> Any:
        for name, fields in fields_of.items():
            given[name] = hints[name](**{field: given.pop(field) for field in fields})
        return function(**given)

    del command.__wrapped__  # typer would look through it, at the unexpanded signature
    keyword = inspect.Parameter.KEYWORD_ONLY
    expanded = [parameter.replace(kind=keyword) for parameter in parameters]
    command.__signature__ = inspect.Signature(expanded)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in expanded}
    return command


def given_options(context: typer.Context, *configs: type[Any]) -> dict[str, Any]:
    """The knobs of these configs that the user set, on the command line or by environment."""
    names = [field.name for config in configs for field in dataclasses.fields(config)]
    unset = ("DEFAULT", "DEFAULT_MAP")
    found = {name: context.get_parameter_source(name) for name in names}
    return {
        name: context.params[name]
        for name, source in found.items()
        if source is not None and source.name not in unset
    }


def _options(config: type[Any]) -> list[inspect.Parameter]:
    hints = typing.get_type_hints(config)
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=typer.Option(field.default, help=field.metadata["help"]),
            annotation=hints[field.name],
        )
        for field in dataclasses.fields(config)
        if "help" in field.metadata
    ]
