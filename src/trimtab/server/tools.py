"""The tools that a request brings, and which of them it wants called."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from trimtab.server.api_errors import bad_request
from trimtab.server.api_types import NamedToolChoice, Tool

MAX_TOOLS = 128
MAX_TOOL_BYTES = 256 << 10  # of all definitions together, as JSON
MAX_SCHEMA_DEPTH = 64
NAME = re.compile(r"[A-Za-z0-9_-]{1,128}")
NO_PARAMETERS: dict[str, Any] = {"type": "object", "properties": {}}

Mode = Literal["auto", "none", "required", "named"]


@dataclass(frozen=True)
class ToolUse:
    """Tools as templates take them, {"type": "function", "function": {...}}; none if none is to
    be called."""

    tools: Sequence[dict[str, Any]] = ()
    mode: Mode = "none"
    parallel: bool = True
    num_bytes: int = 0

    @property
    def names(self) -> list[str]:
        return [tool["function"]["name"] for tool in self.tools]

    @property
    def is_forced(self) -> bool:
        """A call must come, and nothing else."""
        return self.mode in ("required", "named")


def read_tools(
    tools: Sequence[Tool] | None,
    choice: str | NamedToolChoice | None,
    parallel: bool | None,
) -> ToolUse:
    """Raises ApiError 400 for tools or a choice among them that cannot be served. A named choice
    leaves one tool."""
    if not tools:
        if choice not in (None, "none", "auto"):
            raise bad_request("tool_choice needs tools", "tool_choice")
        return ToolUse()
    if len(tools) > MAX_TOOLS:
        raise bad_request(f"tools: at most {MAX_TOOLS}", "tools")
    rendered = [_rendered(i, tool) for i, tool in enumerate(tools)]
    num_bytes = len(msgspec.json.encode(rendered))
    if num_bytes > MAX_TOOL_BYTES:
        raise bad_request(f"tools: {num_bytes} bytes; at most {MAX_TOOL_BYTES}", "tools")
    names = [tool.function.name for tool in tools]
    if len(set(names)) < len(names):
        raise bad_request("tools: each must have a name of its own", "tools")
    mode, rendered = _chosen(choice, rendered)
    return ToolUse(rendered, mode, parallel is not False, num_bytes)


def _chosen(
    choice: str | NamedToolChoice | None, tools: list[dict[str, Any]]
) -> tuple[Mode, list[dict[str, Any]]]:
    if choice is None or choice == "auto":
        return "auto", tools
    if choice == "none":
        return "none", []
    if choice == "required":
        return "required", tools
    if isinstance(choice, str):
        raise bad_request(
            f"tool_choice={choice[:64]!r}: must be auto, none, required or a named function",
            "tool_choice",
        )
    if choice.type != "function":
        raise bad_request(
            f"tool_choice: type {choice.type[:64]!r} is not supported, only function", "tool_choice"
        )
    named = [tool for tool in tools if tool["function"]["name"] == choice.function.name]
    if not named:
        raise bad_request(
            f"tool_choice: there is no tool named {choice.function.name[:64]!r}", "tool_choice"
        )
    return "named", named


def _rendered(index: int, tool: Tool) -> dict[str, Any]:
    where = f"tools[{index}]"
    if tool.type != "function":
        raise bad_request(
            f"{where}: type {tool.type[:64]!r} is not supported, only function", "tools"
        )
    definition = tool.function
    if not NAME.fullmatch(definition.name):
        raise bad_request(
            f"{where}.function.name: must be 1 to 128 letters, digits, _ and -", "tools"
        )
    function: dict[str, Any] = {"name": definition.name}
    if definition.description is not None:
        function["description"] = definition.description
    parameters = definition.parameters
    if parameters is not None:
        _check_schema(f"{where}.function.parameters", parameters)
    function["parameters"] = parameters or NO_PARAMETERS
    return {"type": "function", "function": function}


def _check_schema(where: str, schema: dict[str, Any]) -> None:
    """That it is a JSON Schema of an object, as far as templates and clients rely on it."""
    if schema.get("type", "object") != "object":
        raise bad_request(f"{where}: must be the schema of an object", "tools")
    properties = schema.get("properties", {})
    if not isinstance(properties, dict) or not all(
        isinstance(value, dict | bool) for value in properties.values()
    ):
        raise bad_request(f"{where}.properties: must map names to schemas", "tools")
    required = schema.get("required", [])
    if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
        raise bad_request(f"{where}.required: must be a list of names", "tools")
    if _depth(schema) > MAX_SCHEMA_DEPTH:
        raise bad_request(f"{where}: nested more than {MAX_SCHEMA_DEPTH} levels deep", "tools")


def _depth(value: Any) -> int:
    """How deep objects and arrays nest; a body nests 200 levels at most."""
    if isinstance(value, dict):
        return 1 + max(map(_depth, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(_depth, value), default=0)
    return 0
