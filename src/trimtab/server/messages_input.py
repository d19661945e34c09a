"""A request to `/v1/messages` as the same request to a chat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from trimtab.server.api_errors import bad_request
from trimtab.server.messages_types import (
    BlockParam,
    CountRequest,
    MessageParam,
    MessagesRequest,
    ThinkingParam,
    ToolChoiceParam,
    ToolParam,
)
from trimtab.server.validation import refuse_all_but

MAX_TEMPERATURE = 1.0
ROLES = ("user", "assistant")
CHOICES = {"auto": "auto", "any": "required", "none": "none"}
THINKING = ("enabled", "adaptive", "disabled")
# What would change the answer and is not obeyed, and the values that ask for nothing.
INERT: dict[str, tuple[Any, ...]] = {
    "container": (None,),
    "context_management": (None,),
    "mcp_servers": (None, []),
    "output_config": (None, {}),
    "output_format": (None,),
}
# What the chat calls a field, where it has another name here.
NAMES = {
    "stop": "stop_sequences",
    "chat_template_kwargs": "thinking",
    "reasoning_effort": "thinking",
    "parallel_tool_calls": "tool_choice",
    "continue_final_message": "messages",
}


def refuse_unsupported(document: dict[str, Any]) -> None:
    """Raises ApiError 400 for a field that we would have to ignore although it matters."""
    refuse_all_but(document, INERT)


def chat_document(asked: CountRequest, known: frozenset[str]) -> dict[str, Any]:
    """The body of the chat request; `known` are the variables of the chat template. Raises ApiError
    400 for what has no counterpart."""
    messages = [{"role": "system", "content": _system(asked.system)}] if asked.system else []
    for role, blocks in _merged(asked.messages):
        messages += _assistant(blocks) if role == "assistant" else _user(blocks)
    document: dict[str, Any] = {"messages": messages}
    if asked.messages and asked.messages[-1].role == "assistant":
        if messages[-1].get("tool_calls") or not messages[-1]["content"]:
            raise bad_request(
                "messages: the last one can only be continued if it ends with text", "messages"
            )
        document |= {"add_generation_prompt": False, "continue_final_message": True}
    if asked.tools:
        document["tools"] = [_tool(i, tool) for i, tool in enumerate(asked.tools)]
    if asked.tool_choice is not None:
        document["tool_choice"] = _tool_choice(asked.tool_choice)
        document["parallel_tool_calls"] = not asked.tool_choice.disable_parallel_tool_use
    document |= _thinking(asked.thinking, known)
    if isinstance(asked, MessagesRequest):
        document |= _sampling(asked)
    return document


def thinks(asked: CountRequest) -> bool:
    """Whether the reasoning is to be shown."""
    return asked.thinking is not None and asked.thinking.type != "disabled"


def _sampling(asked: MessagesRequest) -> dict[str, Any]:
    if asked.temperature is not None and not 0 <= asked.temperature <= MAX_TEMPERATURE:
        raise bad_request(
            f"temperature={asked.temperature!r}: must be in [0, {MAX_TEMPERATURE:g}]", "temperature"
        )
    return {
        "max_tokens": asked.max_tokens,
        "stop": asked.stop_sequences,
        "temperature": asked.temperature,
        "top_p": asked.top_p,
        "top_k": asked.top_k,
    }


def _thinking(asked: ThinkingParam | None, known: frozenset[str]) -> dict[str, Any]:
    """No thinking unless it is asked for, if the template can switch it off."""
    if asked is not None and asked.type not in THINKING:
        raise bad_request(
            f"thinking: type {asked.type[:32]!r} is not supported, only {', '.join(THINKING)}",
            "thinking",
        )
    if asked is None or asked.type == "disabled":
        return {"reasoning_effort": "none"}
    switches: dict[str, Any] = {
        name: True for name in ("enable_thinking", "thinking") if name in known
    }
    if asked.budget_tokens is not None and "thinking_budget" in known:
        switches["thinking_budget"] = asked.budget_tokens
    return {"chat_template_kwargs": switches}


def _merged(messages: Sequence[MessageParam]) -> list[tuple[str, list[BlockParam]]]:
    """Blocks by turn: messages of one role that follow each other are one turn."""
    turns: list[tuple[str, list[BlockParam]]] = []
    for index, message in enumerate(messages):
        if message.role not in ROLES:
            raise bad_request(
                f"messages[{index}].role: must be user or assistant; system is a field of its own",
                "messages",
            )
        content = message.content
        blocks = [BlockParam("text", content)] if isinstance(content, str) else content
        if turns and turns[-1][0] == message.role:
            turns[-1][1].extend(blocks)
        else:
            turns.append((message.role, list(blocks)))
    return turns


def _system(system: str | list[BlockParam] | None) -> str:
    if system is None or isinstance(system, str):
        return system or ""
    return "\n\n".join(_text(block, "system") for block in system)


def _text(block: BlockParam, where: str) -> str:
    if block.type != "text" or block.text is None:
        raise bad_request(
            f"{where}: blocks of type {block.type[:32]!r} are not supported here", where
        )
    return block.text


def _user(blocks: Sequence[BlockParam]) -> list[dict[str, Any]]:
    """Results of tools as messages of their own, texts between them as the user's."""
    messages: list[dict[str, Any]] = []
    for block in blocks:
        if block.type == "tool_result":
            content = _result(block)
            messages.append(
                {"role": "tool", "tool_call_id": block.tool_use_id or "", "content": content}
            )
            continue
        text = _text(block, "messages")
        if messages and messages[-1]["role"] == "user":
            messages[-1]["content"] += "\n\n" + text
        else:
            messages.append({"role": "user", "content": text})
    return messages


def _result(block: BlockParam) -> str:
    if block.content is None or isinstance(block.content, str):
        return block.content or ""
    try:
        parts = msgspec.convert(block.content, list[BlockParam])
    except msgspec.ValidationError:
        raise bad_request("messages: a tool_result holds text blocks", "messages") from None
    return "\n\n".join(_text(part, "messages") for part in parts)


def _assistant(blocks: Sequence[BlockParam]) -> list[dict[str, Any]]:
    texts: list[str] = []
    reasoning: list[str] = []
    calls: list[dict[str, Any]] = []
    for block in blocks:
        if block.type == "thinking":
            reasoning.append(block.thinking or "")
        elif block.type == "tool_use":
            arguments = msgspec.json.encode(block.input or {}).decode()
            function = {"name": block.name or "", "arguments": arguments}
            calls.append({"id": block.id or "", "type": "function", "function": function})
        elif block.type != "redacted_thinking":
            texts.append(_text(block, "messages"))
    message: dict[str, Any] = {"role": "assistant", "content": "".join(texts)}
    if calls:
        message |= {"tool_calls": calls, "content": message["content"] or None}
    if reasoning:
        message["reasoning_content"] = "".join(reasoning)
    return [message]


def _tool(index: int, tool: ToolParam) -> dict[str, Any]:
    if tool.type not in (None, "custom"):
        raise bad_request(
            f"tools[{index}]: type {tool.type[:64]!r} is not supported; tools run at the client",
            "tools",
        )
    function: dict[str, Any] = {"name": tool.name, "parameters": tool.input_schema}
    if tool.description is not None:
        function["description"] = tool.description
    return {"type": "function", "function": function}


def _tool_choice(choice: ToolChoiceParam) -> Any:
    if choice.type == "tool":
        return {"type": "function", "function": {"name": choice.name or ""}}
    if choice.type not in CHOICES:
        raise bad_request(f"tool_choice: type {choice.type[:32]!r} is not supported", "tool_choice")
    return CHOICES[choice.type]
