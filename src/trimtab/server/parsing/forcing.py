"""Grammars that leave a model nothing but tool calls, in the syntax that it was trained on.

In llguidance's dialect of Lark. A marker that is a special token is named by its id, since the text
of a special token is not written by any text.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

Term = Callable[[str], str]  # the Lark for a marker


def literal(text: str) -> str:
    return json.dumps(text)


def objects(names: Sequence[str], key: str) -> str:
    """The rule `call`: {"name": ..., key: arguments} of one of the tools."""
    choices = [
        f"{literal(head)} arguments_{i} {literal('}')}"
        for i, name in enumerate(names)
        for head in [f'{{"name": {json.dumps(name)}, "{key}": ']
    ]
    return "call: " + "\n    | ".join(choices)


def listed(item: str, separator: str, several: bool) -> str:
    """`item`, or several with separators."""
    return f"{item} ({literal(separator)} {item})*" if several else item


def forced_grammar(rules: str, schemas: Sequence[dict[str, Any]], space_before: bool) -> str:
    """`rules` define `calls`, by `arguments_0`, `arguments_1` ...: JSON that follows the schema of
    the tool. `space_before` allows line breaks at the start."""
    start = r"start: /\n{0,2}/ calls" if space_before else "start: calls"
    arguments = [f"arguments_{i}: %json {json.dumps(schema)}" for i, schema in enumerate(schemas)]
    return "\n".join([start, rules, *arguments]) + "\n"
