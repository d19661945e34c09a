"""A Jinja environment for templates that nobody has read: no way out, and bounded work.

On top of Jinja's own sandbox (no attribute that leads to Python's insides, no mutation), every loop
iteration, call, filter and operator passes a meter, and every value that is made is measured, so
that no single operation can be large and no number of them can go on for long.
"""

from __future__ import annotations

import functools
import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, LoopControlExtension
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_STEPS = 1_000_000
MAX_SECONDS = 10.0
MAX_SIZE = 32 << 20  # characters of a text; a value that is not text counts 64
MAX_INTEGER_BITS = 4096
VALUE_SIZE = 64
CONTAINERS = (list, tuple, dict, set, frozenset)
# Filters without use in a chat template, whose output can be far longer than their input.
REMOVED_FILTERS = ("batch", "center", "pprint", "random", "slice", "urlize", "wordwrap", "xmlattr")
REFUSED_TEXT_METHODS = frozenset(
    {"center", "expandtabs", "format_map", "ljust", "rjust", "translate", "zfill"}
)
WIDE_FORMAT = re.compile(r"\d{5,}|\*|\{[^{}]*\{")


class TemplateLimitError(Exception):
    """The template did more than a chat template ever needs."""


class TemplateRefusalError(Exception):
    """The template called raise_exception."""


class Meter:
    """The work of one rendering."""

    def __init__(self) -> None:
        self._steps = 0
        self._written = 0
        self._deadline = time.monotonic() + MAX_SECONDS
        # Containers cannot change in the sandbox, so their size is computed once. The value is kept
        # beside it, so that its id stays its own.
        self._sizes: dict[int, tuple[Any, int]] = {}

    def step(self) -> None:
        self._steps += 1
        if self._steps > MAX_STEPS:
            raise TemplateLimitError(f"more than {MAX_STEPS} steps")
        if self._steps % 256 == 0 and time.monotonic() > self._deadline:
            raise TemplateLimitError(f"more than {MAX_SECONDS:g} seconds")

    def check_size(self, size: int) -> None:
        if size > MAX_SIZE:
            raise TemplateLimitError("a value that is too large")

    def write(self, size: int) -> None:
        """Count output, that of macros and captured blocks included."""
        self._written += size
        if self._written > MAX_SIZE:
            raise TemplateLimitError("too much text")

    def admit(self, value: Any) -> Any:
        """The value itself, if it is small enough."""
        if isinstance(value, int) and value.bit_length() > MAX_INTEGER_BITS:
            raise TemplateLimitError("a number that is too large")
        self.check_size(self.size(value))
        return value

    def size(self, value: Any) -> int:
        """What writing the value out, or comparing it, costs at most; shared parts count again."""
        if isinstance(value, str):
            return len(value)
        if not isinstance(value, CONTAINERS):
            return VALUE_SIZE
        known = self._sizes.get(id(value))
        if known is None:
            parts = [*value.keys(), *value.values()] if isinstance(value, dict) else value
            total = VALUE_SIZE
            for part in parts:
                total += VALUE_SIZE + self.size(part)
            known = self._sizes[id(value)] = (value, total)
        return known[1]


_meter: ContextVar[Meter] = ContextVar("meter")


@contextmanager
def metered() -> Iterator[Meter]:
    """Within it, templates of a Sandbox can be compiled and rendered."""
    token = _meter.set(Meter())
    try:
        yield _meter.get()
    finally:
        _meter.reset(token)


class _Counted:
    """An iterable whose items are counted as they are taken."""

    def __init__(self, items: Any) -> None:
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Any]:
        meter = _meter.get()
        for item in self._items:
            meter.step()
            yield item


def _concatenate(parts: list[Any]) -> str:
    meter = _meter.get()
    meter.check_size(sum(meter.size(part) for part in parts))
    return "".join(map(str, parts))


def _admit(value: Any) -> Any:
    return _meter.get().admit(value)


def _write(value: Any) -> Any:
    meter = _meter.get()
    meter.write(meter.size(meter.admit(value)))
    return value


@jinja2.pass_context  # a filter that needs a context is not evaluated by the compiler
def _write_literal(context: Any, text: str) -> str:
    _meter.get().write(len(text))
    return text


def _check_replace(text: str, old: Any, new: Any) -> None:
    occurrences = text.count(old) if old else len(text) + 1
    _meter.get().check_size(len(text) + occurrences * len(new))


def _check_join(separator: str, items: Any) -> None:
    meter = _meter.get()
    if isinstance(items, CONTAINERS):
        meter.check_size(meter.size(items) + len(separator) * len(items))


def _check_format(text: str, *values: Any) -> None:
    if WIDE_FORMAT.search(text):
        raise TemplateLimitError("a format with a width that is too large")
    meter = _meter.get()
    num_fields = 1 + text.count("%") + text.count("{")
    meter.check_size(len(text) + num_fields * sum(meter.size(value) for value in values))


def _check_text_method(method: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
    text = getattr(method, "__self__", None)
    name = getattr(method, "__name__", "")
    if not isinstance(text, str):
        return
    if name in REFUSED_TEXT_METHODS:
        raise TemplateLimitError(f"the text method {name} is not available")
    if name == "replace" and len(arguments) >= 2:
        _check_replace(text, arguments[0], arguments[1])
    elif name == "join" and arguments:
        _check_join(text, arguments[0])
    elif name == "format":
        _check_format(text, *arguments, *named.values())


# --- filters and globals of our own ---


def _replace(text: Any, old: Any, new: Any, count: int | None = None) -> str:
    whole = str(text)
    _check_replace(whole, str(old), str(new))
    return whole.replace(str(old), str(new), -1 if count is None else count)


@jinja2.pass_eval_context
def _join(context: Any, value: Any, d: str = "", attribute: Any = None) -> str:
    items = list(_Counted(value))
    _check_join(str(d), items)
    joined: str = jinja2.filters.do_join(context, items, d, attribute)
    return joined


def _indent(text: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    columns = width if isinstance(width, int) else len(width)
    _meter.get().check_size(len(text) + columns * (1 + text.count("\n")))
    return jinja2.filters.do_indent(text, width, first, blank)


def _format(text: str, *values: Any, **named: Any) -> str:
    _check_format(text, *values, *named.values())
    return jinja2.filters.do_format(text, *values, **named)


def _round(value: float, precision: int = 0, method: Any = "common") -> float:
    if not -20 <= precision <= 20:
        raise TemplateLimitError("a rounding precision that is too large")
    return jinja2.filters.do_round(value, precision, method)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as it is (Jinja's own escapes HTML), with the options that chat templates use."""
    if indent is not None and not (isinstance(indent, int) and indent <= 16):
        raise TemplateLimitError("an indent that is too large")
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: Any) -> None:
    raise TemplateRefusalError(str(message))


def _strftime_now(format: str) -> str:
    _check_format(format)
    return datetime.now().strftime(format)


def _metered_filter(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def metered(*arguments: Any, **named: Any) -> Any:
        _meter.get().step()
        return _admit(function(*arguments, **named))

    return metered


class _GenerationTag(Extension):
    """{% generation %} marks what the assistant wrote, for training; here it only groups."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


def _through(name: str, node: Any) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


class _Instrument(jinja2.visitor.NodeTransformer):
    """Puts loops, literal text, concatenations and literals of containers through the meter."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        if node.recursive:
            raise jinja2.TemplateSyntaxError("recursive loops are not supported", node.lineno)
        node.iter = _through("_counted", node.iter)
        return node

    def visit_TemplateData(self, node: nodes.TemplateData) -> nodes.Node:  # noqa: N802
        return _through("_write_literal", nodes.Const(node.data, lineno=node.lineno))

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        parts = nodes.List(node.nodes, lineno=node.lineno)
        return _through("_concatenate", parts)

    def _visit_literal(self, node: Any) -> nodes.Node:
        self.generic_visit(node)
        return node if getattr(node, "ctx", "load") == "store" else _through("_admit", node)

    visit_List = visit_Tuple = visit_Dict = _visit_literal  # noqa: N815


class Sandbox(ImmutableSandboxedEnvironment):
    """What transformers offers to chat templates: `tojson`, `raise_exception`, `strftime_now`, loop
    controls, `generation` blocks, trimmed blocks. Use only within `metered()`."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,  # or the compiler would evaluate constant expressions
            finalize=_write,
            extensions=[_GenerationTag, LoopControlExtension],
        )
        for name in REMOVED_FILTERS:
            self.filters.pop(name)
        self.filters.update(
            replace=_replace, join=_join, indent=_indent, format=_format, round=_round
        )
        self.filters["tojson"] = _tojson
        self.filters = {name: _metered_filter(f) for name, f in self.filters.items()}
        self.filters.update(_counted=_Counted, _concatenate=_concatenate, _admit=_admit)
        self.filters["_write_literal"] = _write_literal
        self.globals.pop("lipsum")
        self.globals.update(raise_exception=_raise_exception, strftime_now=_strftime_now)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree: nodes.Template = _Instrument().visit(super()._parse(source, name, filename))
        return tree

    def call(self, context: Any, method: Any, /, *arguments: Any, **named: Any) -> Any:
        _meter.get().step()
        _check_text_method(getattr(method, "__wrapped__", method), arguments, named)
        return _admit(super().call(context, method, *arguments, **named))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        meter = _meter.get()
        meter.step()
        if operator == "+":
            meter.check_size(meter.size(left) + meter.size(right))
        elif operator == "*":
            for repeated, count in ((left, right), (right, left)):
                if isinstance(repeated, str | list | tuple) and isinstance(count, int):
                    meter.check_size(meter.size(repeated) * max(count, 0))
        elif operator == "%" and isinstance(left, str):
            _check_format(left, *(right if isinstance(right, tuple) else (right,)))
        elif operator == "**" and not (abs(left) <= 1 << 32 and abs(right) <= 64):
            raise TemplateLimitError("a power that is too large")
        return meter.admit(super().call_binop(context, operator, left, right))
