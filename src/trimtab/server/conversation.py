"""The messages of a request, and how it wants them rendered, as a chat template takes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from trimtab.server.api_errors import bad_request
from trimtab.server.api_types import ChatRequest, Message
from trimtab.server.tools import ToolUse, read_tools
from trimtab.tokenization import ChatTemplate

ROLES = ("system", "developer", "user", "assistant", "tool")
# Variables of templates that a request may set, and of which type they are.
TEMPLATE_VARIABLES: dict[str, type] = {
    "enable_thinking": bool,
    "thinking": bool,
    "preserve_thinking": bool,
    "clear_thinking": bool,
    "thinking_budget": int,
    "reasoning_effort": str,
    "date_string": str,
    "tools_in_user_message": bool,
}
MAX_VARIABLE_CHARACTERS = 256
REASONING_EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh")
THINKING_SWITCHES = ("enable_thinking", "thinking")


@dataclass(frozen=True)
class Conversation:
    messages: Sequence[dict[str, Any]]
    tool_use: ToolUse = field(default_factory=ToolUse)
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    variables: dict[str, Any] = field(default_factory=dict)

    @property
    def continued_text(self) -> str:
        """The end of the message that is to be continued."""
        content = self.messages[-1]["content"] if self.continue_final_message else None
        if isinstance(content, list):
            content = content[-1]["text"] if content else ""
        return content or ""

    @property
    def num_characters(self) -> int:
        """At least about so many are rendered."""
        return self.tool_use.num_bytes + sum(_size(message) for message in self.messages)


def read_conversation(asked: ChatRequest, template: ChatTemplate | None) -> Conversation:
    """Raises ApiError 400, naming the field, for what cannot be served."""
    messages = read_messages(asked.messages)
    tool_use = read_tools(asked.tools, asked.tool_choice, asked.parallel_tool_calls)
    if tool_use.tools and template is not None and not template.takes_tools:
        raise bad_request("this model's chat template takes no tools", "tools")
    variables = _variables(asked.chat_template_kwargs)
    if asked.reasoning_effort is not None:
        variables = _effort(asked.reasoning_effort, template) | variables
    continues = bool(asked.continue_final_message)
    # As in vLLM: to continue the last message, the prompt for the next one must be declined.
    generates = asked.add_generation_prompt is not False
    if continues and generates:
        raise bad_request(
            "continue_final_message needs add_generation_prompt to be false",
            "continue_final_message",
        )
    if continues and messages[-1]["role"] != "assistant":
        raise bad_request(
            "continue_final_message: the last message must be the assistant's",
            "continue_final_message",
        )
    return Conversation(messages, tool_use, generates, continues, variables)


def read_messages(asked: Sequence[Message]) -> list[dict[str, Any]]:
    """Raises ApiError 400 for no messages, and for roles and contents that cannot be served."""
    if not asked:
        raise bad_request("messages: must not be empty", "messages")
    called: dict[str, str] = {}  # the name of each call in the history, by its id
    messages = []
    for index, message in enumerate(asked):
        where = f"messages[{index}]"
        if message.role not in ROLES or message.function_call is not None:
            raise bad_request(
                f"{where}: only messages of the roles {', '.join(ROLES)} are supported, and no"
                " function_call",
                "messages",
            )
        rendered = _message(where, message)
        if message.role == "tool":
            rendered |= _answered(where, message, called)
        for call in message.tool_calls or []:
            called[call.id] = call.function.name
        messages.append(rendered)
    return messages


def _message(where: str, message: Message) -> dict[str, Any]:
    is_assistant = message.role == "assistant"
    if message.tool_calls and not is_assistant:
        raise bad_request(f"{where}.tool_calls: only the assistant's can have them", "messages")
    if message.content is None and not (is_assistant and message.tool_calls):
        raise bad_request(f"{where}.content: is required", "messages")
    role = "system" if message.role == "developer" else message.role
    rendered: dict[str, Any] = {"role": role, "content": _content(where, message)}
    if is_assistant:
        reasoning = message.reasoning_content or message.reasoning
        if reasoning:
            rendered["reasoning_content"] = reasoning
        if message.tool_calls:
            rendered["tool_calls"] = [_call(where, call) for call in message.tool_calls]
    return rendered


def _content(where: str, message: Message) -> str | list[dict[str, str]] | None:
    if message.content is None or isinstance(message.content, str):
        return message.content
    parts = []
    for part in message.content:
        if part.type != "text" or part.text is None:
            raise bad_request(
                f"{where}.content: parts of type {part.type[:32]!r} are not supported;"
                " this model takes text only",
                "messages",
            )
        parts.append({"type": "text", "text": part.text})
    return parts


def _call(where: str, call: Any) -> dict[str, Any]:
    if call.type != "function":
        raise bad_request(
            f"{where}.tool_calls: calls of type {call.type[:32]!r} are not supported", "messages"
        )
    function = {"name": call.function.name, "arguments": call.function.arguments}
    return {"id": call.id, "type": "function", "function": function}


def _answered(where: str, message: Message, called: dict[str, str]) -> dict[str, str]:
    """What a tool's answer says of its call."""
    name = called.get(message.tool_call_id or "")
    if name is None or message.tool_call_id is None:
        raise bad_request(
            f"{where}.tool_call_id: must be the id of a tool call in an earlier message", "messages"
        )
    return {"tool_call_id": message.tool_call_id, "name": message.name or name}


def _variables(asked: dict[str, Any] | None) -> dict[str, Any]:
    param = "chat_template_kwargs"
    for name, value in (asked or {}).items():
        kind = TEMPLATE_VARIABLES.get(name)
        if kind is None:
            allowed = ", ".join(TEMPLATE_VARIABLES)
            raise bad_request(f"{param}: {name[:64]!r} is not allowed, only {allowed}", param)
        too_long = isinstance(value, str) and len(value) > MAX_VARIABLE_CHARACTERS
        if type(value) is not kind or too_long:
            raise bad_request(f"{param}.{name}: must be of type {kind.__name__}, and short", param)
    return dict(asked or {})


def _effort(effort: str, template: ChatTemplate | None) -> dict[str, Any]:
    """In the words of the template: as it is, or as a switch of thinking. A model that cannot think
    does so with no effort."""
    if effort not in REASONING_EFFORTS:
        choices = ", ".join(REASONING_EFFORTS)
        raise bad_request(f"reasoning_effort: must be one of {choices}", "reasoning_effort")
    known = frozenset() if template is None else template.variables
    mapped: dict[str, Any] = {name: effort != "none" for name in THINKING_SWITCHES if name in known}
    if "reasoning_effort" in known and effort != "none":
        mapped["reasoning_effort"] = effort
    if not mapped and effort != "none":
        raise bad_request(
            "reasoning_effort: this model's chat template knows none", "reasoning_effort"
        )
    return mapped


def _size(message: dict[str, Any]) -> int:
    content = message["content"] or ""
    size = len(content) if isinstance(content, str) else sum(len(part["text"]) for part in content)
    size += len(message.get("reasoning_content", ""))
    for call in message.get("tool_calls", []):
        size += len(call["function"]["name"]) + len(call["function"]["arguments"])
    return size
