"""Writes docs/api.md: every field of every route, from the OpenAPI document itself.

    PYTHONPATH=src python tools/api_fields.py

The model's name and vocabulary, which the document of a server knows, are left open here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from trimtab.engine.client import EngineInfo
from trimtab.server.openapi import OPERATIONS, document

PAGE = Path(__file__).parents[1] / "docs" / "api.md"
VOCAB_SIZE = 1 << 30  # stands for "the model's own" in the table
HEAD = """# The fields of every route

Written by `tools/api_fields.py` from the document that a server gives on `/openapi.json`, which is
made from the structs that parse the requests. A null is the same as an absent field. A field that
would change the answer and is not supported is a 400 that names it; fields that are not in these
tables are ignored.

## The order in which sampling parameters act

On the logits of one token, the same on every executor:

1. `logit_bias` is added.
2. `repetition_penalty` over the tokens of prompt and output, then `frequency_penalty` and
   `presence_penalty` over those of the output.
3. What may not be chosen becomes impossible: end and stop tokens before `min_tokens`, what would
   complete one of `bad_words`, what is not in `allowed_token_ids`, what a grammar forbids.
4. `temperature`; 0 picks the likeliest of what is left, and nothing below acts.
5. `top_k`.
6. `top_p`, relative to the mass that `top_k` left.
7. `min_p`, relative to the likeliest token.
8. One token is drawn: noise from (`seed`, position, token) alone.

`logprobs` are those of the model itself, before all of this. On the text act
`skip_special_tokens`, then `stop`.
"""


def kind(schema: Any) -> str:
    """A schema in a few words."""
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "anyOf" in schema:
        kinds = [kind(one) for one in schema["anyOf"] if one.get("type") != "null"]
        return " or ".join(dict.fromkeys(kinds))
    if "enum" in schema:
        values = [json.dumps(value) for value in schema["enum"] if value is not None]
        return ", ".join(f"`{value}`" for value in values) or "null"
    if schema.get("type") == "array":
        return f"list of {kind(schema.get('items', {}))}{_range(schema, 'minItems', 'maxItems')}"
    limits = {"string": ("minLength", "maxLength")}.get(schema.get("type"), ("minimum", "maximum"))
    return str(schema.get("type", "any")) + _range(schema, *limits)


def _range(schema: Any, low: str, high: str) -> str:
    if schema.get(high) == VOCAB_SIZE - 1:
        return " (token id)"
    lowest, highest = schema.get(low), schema.get(high)
    if lowest is None and highest is None:
        return ""
    if lowest is None:
        return f" (to {highest})"
    return f" ({lowest} to {highest})" if highest is not None else f" (from {lowest})"


def page() -> str:
    info = EngineInfo(VOCAB_SIZE, 1, 1, 1, "")
    schemas = document(OPERATIONS, "the served model", info)["components"]["schemas"]
    parts = [HEAD]
    for operation in OPERATIONS:
        if operation.request is None:
            continue
        schema = schemas[operation.request.__name__]
        rows = ["| field | takes | what it does |", "|---|---|---|"]
        for name, own in schema["properties"].items():
            must = " (required)" if name in schema.get("required", ()) else ""
            rows.append(f"| `{name}`{must} | {kind(own)} | {own.get('description', '')} |")
        title = f"## `{operation.method.upper()} {operation.path}`"
        parts.append(f"{title}\n\n{operation.summary}.\n\n" + "\n".join(rows) + "\n")
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page())
