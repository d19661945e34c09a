"""Limits on a grammar's source, held before anything else looks at it.

Where they come from: engines of this kind were crashed or hung by nesting (a parser's stack), by
repeat counts such as a{1000000000} and by size. llguidance has limits of its own on nesting within
one expression and on the work of one step; these come first, and cover what it does not.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

from trimtab.engine.client import Grammar
from trimtab.errors import RequestError

MAX_SOURCE_BYTES = 256 << 10
MAX_SCHEMA_DEPTH = 64  # schemas in schemas
MAX_JSON_DEPTH = 4 * MAX_SCHEMA_DEPTH  # a schema in a schema is two to four levels of JSON
MAX_NESTING = 100  # brackets in brackets, of patterns and grammars
MAX_REPEATS = 10_000
MAX_CHOICES = 20_000
MAX_FORCED = 4096  # bytes, of a grammar that is followed within a step: some 10 ms at worst

_COUNTS = re.compile(r"\{\s*(\d*)\s*(?:,\s*(\d*)\s*)?\}|~\s*(\d+)(?:\s*\.\.\s*(\d+))?")
_ESCAPED = re.compile(r"\\.", re.DOTALL)
_BRACKETS = re.compile(r"[(\[{)\]}]")
_JSON_BRACKETS = re.compile(r'"(?:[^"\\]|\\.)*"?|[\[\]{}]', re.DOTALL)

_REFERENCE = re.compile(r'"\$(?:ref|dynamicRef|recursiveRef)"\s*:\s*"([^"]*)"')
_LEAST = re.compile(r'"min(?:Length|Items|Properties|Contains)"\s*:\s*(\d+)')
_RULE = re.compile(r"^\s*[?!]?([A-Za-z_][\w-]*)[^:\n]*:", re.MULTILINE)
_WORD = re.compile(r"[\w-]+")

# Where a schema holds others: as values, in a list, or by name.
_SUBSCHEMAS = frozenset(
    (
        *("additionalProperties", "additionalItems", "items", "contains", "propertyNames"),
        *("not", "if", "then", "else", "unevaluatedItems", "unevaluatedProperties"),
    )
)
_SUBSCHEMA_LISTS = frozenset(("allOf", "anyOf", "oneOf", "prefixItems", "items"))
_SUBSCHEMA_MAPS = frozenset(("properties", "patternProperties", "$defs", "definitions"))


def check_source(grammar: Grammar) -> None:
    """RequestError (param "grammar") for a source that breaks a limit or is not of its kind."""
    try:
        size = len(grammar.source.encode())
    except UnicodeEncodeError:
        raise refused("it has a lone surrogate, which is not valid Unicode") from None
    if size > MAX_SOURCE_BYTES:
        raise refused(f"it has {size} bytes; the limit is {MAX_SOURCE_BYTES}")
    if not grammar.source and grammar.kind == "lark":
        raise refused("it is empty")
    if grammar.kind == "json_schema":
        _check_schema(_parse(grammar.source))
    elif grammar.kind == "choice":
        _check_choices(_parse(grammar.source))
    elif grammar.kind != "json_object":
        _check_pattern(grammar.source)


def forces_little(grammar: Grammar) -> bool:
    """Whether it can be seen at once that no text of more than MAX_FORCED bytes is forced: its own
    length, times each least number of repeats, times the uses of each rule and reference."""
    source = grammar.source
    if "\\u" in source:
        return False  # a key may hide behind it
    counts = [count for groups in _COUNTS.findall(source) for count in groups if count]
    uses = Counter(_REFERENCE.findall(source))
    if grammar.kind == "lark":
        words = Counter(_WORD.findall(source))
        uses += Counter({name: words[name] - 1 for name in set(_RULE.findall(source))})
    most = len(source)
    for count in [*counts, *_LEAST.findall(source), *uses.values()]:
        most *= max(1, int(str(count)[:6]))
        if most > MAX_FORCED:
            break
    return most <= MAX_FORCED


def refused(reason: str) -> RequestError:
    return RequestError(f"the grammar cannot be used: {reason}", param="grammar")


def _parse(source: str) -> Any:
    depth = 0
    for match in _JSON_BRACKETS.finditer(source):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(match[0], 0)
        if depth > MAX_JSON_DEPTH:
            raise _too_deep()
    try:
        return json.loads(source)
    except ValueError:
        raise refused("it is not valid JSON") from None


def _too_deep() -> RequestError:
    return refused(f"schemas nest more than {MAX_SCHEMA_DEPTH} deep")


def _check_schema(schema: Any) -> None:
    if not isinstance(schema, (dict, bool)):
        raise refused("a JSON schema must be an object")
    level = [schema]
    for _ in range(MAX_SCHEMA_DEPTH):
        level = [inner for one in level if isinstance(one, dict) for inner in _schemas_in(one)]
        if not level:
            return
    raise _too_deep()


def _schemas_in(schema: dict[str, Any]) -> list[Any]:
    found: list[Any] = []
    for key, value in schema.items():
        if key == "pattern" and isinstance(value, str):
            _check_pattern(value)
        if key == "patternProperties" and isinstance(value, dict):
            for pattern in value:
                _check_pattern(pattern)
        if key in _SUBSCHEMA_MAPS and isinstance(value, dict):
            found += value.values()
        elif key in _SUBSCHEMA_LISTS and isinstance(value, list):
            found += value
        elif key in _SUBSCHEMAS:
            found.append(value)
    return found


def _check_choices(choices: Any) -> None:
    if not isinstance(choices, list) or not all(isinstance(one, str) for one in choices):
        raise refused("choices must be a list of strings")
    if not choices:
        raise refused("there must be at least one choice")
    if len(choices) > MAX_CHOICES:
        raise refused(f"there are {len(choices)} choices; the limit is {MAX_CHOICES}")


def _check_pattern(pattern: str) -> None:
    """Exact for nesting but for brackets in strings and character classes, which count as well,
    where they are balanced no more than others do."""
    plain = _ESCAPED.sub("", pattern)
    for match in _COUNTS.finditer(plain):
        for count in match.groups():
            if count and (len(count) > 9 or int(count) > MAX_REPEATS):
                raise refused(f"a repeat count is larger than {MAX_REPEATS}")
    depth = 0
    for match in _BRACKETS.finditer(plain):
        depth = depth + 1 if match[0] in "([{" else max(depth - 1, 0)
        if depth > MAX_NESTING:
            raise refused(f"brackets nest more than {MAX_NESTING} deep")
