"""A request of `/v1/responses` as the chat request that asks for the same."""

from __future__ import annotations

from typing import Any

import msgspec

from trimtab.server.api_errors import ApiError, bad_request
from trimtab.server.responses_types import ResponsesRequest
from trimtab.server.validation import refuse_all_but

# What would change the answer and is not obeyed, and the values that ask for nothing.
INERT: dict[str, tuple[Any, ...]] = {
    "previous_response_id": (None,),
    "conversation": (None,),
    "background": (None, False),
    "prompt": (None,),
    "truncation": (None, "disabled"),
    "max_tool_calls": (None,),
    "context_management": (None, []),
    "moderation": (None,),
    "n": (None, 1),
}
# By its name in a chat request, the field that a client of this route knows.
_RENAMED = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "max_completion_tokens": "max_output_tokens",
    "response_format": "text.format",
    "reasoning_effort": "reasoning",
    "logprobs": "top_logprobs",
}
# Those that both requests have.
_SAME = (
    "model",
    "stream",
    "temperature",
    "top_p",
    "parallel_tool_calls",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "seed",
    "stop",
    "top_k",
    "min_p",
    "repetition_penalty",
    "min_tokens",
    "stop_token_ids",
    "include_stop_str_in_output",
    "ignore_eos",
    "priority",
    "cache_salt",
    "allowed_token_ids",
    "bad_words",
    "truncate_prompt_tokens",
    "skip_special_tokens",
)
_TEXT_PARTS = ("input_text", "output_text", "text")
WITH_LOGPROBS = "message.output_text.logprobs"


def refuse_unsupported(document: dict[str, Any]) -> None:
    """Raises ApiError 400 for a field that we would have to ignore although it matters."""
    if not (document.get("store") is None or document["store"] is False):
        raise bad_request(
            "store: this server keeps no responses; send store=false, and with each request the"
            " items of the turns before it as input",
            "store",
        )
    refuse_all_but(document, INERT)


def renamed(error: ApiError) -> ApiError:
    """The same error of the chat request, by this route's names."""
    body = error.document.error
    if body.param in _RENAMED:
        body.message = body.message.replace(body.param, _RENAMED[body.param])
        body.param = _RENAMED[body.param]
    return error


def chat_document(asked: ResponsesRequest) -> dict[str, Any]:
    """The chat request, not yet validated. Raises ApiError 400 for items that it cannot have."""
    document: dict[str, Any] = {name: getattr(asked, name) for name in _SAME}
    document["messages"] = _messages(asked)
    document["max_completion_tokens"] = asked.max_output_tokens
    if asked.top_logprobs is not None or WITH_LOGPROBS in (asked.include or ()):
        document |= {"logprobs": True, "top_logprobs": asked.top_logprobs or 0}
    if asked.tools:
        document["tools"] = [_tool(i, tool) for i, tool in enumerate(asked.tools)]
    document["tool_choice"] = _tool_choice(asked.tool_choice)
    if asked.text is not None:
        document["response_format"] = _response_format(asked.text.format)
        document["verbosity"] = asked.text.verbosity
    if asked.reasoning is not None:
        document["reasoning_effort"] = asked.reasoning.effort
    return {name: value for name, value in document.items() if value is not None}


def _messages(asked: ResponsesRequest) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    if asked.instructions:
        messages.append({"role": "system", "content": asked.instructions})
    if isinstance(asked.input, str):
        return [*messages, {"role": "user", "content": asked.input}]
    reasoning = ""
    for index, item in enumerate(asked.input):
        where = f"input[{index}]"
        kind = item.get("type", "message" if "role" in item else None)
        if kind == "reasoning":
            reasoning = _reasoning(where, item)
            continue
        if kind == "message":
            message = {"role": item.get("role"), "content": _content(where, item.get("content"))}
        elif kind == "function_call":
            message = _call(where, item)
            if messages and messages[-1].get("tool_calls") is not None:
                messages[-1]["tool_calls"] += message["tool_calls"]
                continue
            if messages and messages[-1]["role"] == "assistant":
                messages[-1]["tool_calls"] = message["tool_calls"]
                continue
        elif kind == "function_call_output":
            output = _content(where, item.get("output"))
            call_id = _string(where, item, "call_id")
            message = {"role": "tool", "tool_call_id": call_id, "content": output}
        else:
            raise bad_request(f"{where}: items of type {_name(kind)} are not supported", "input")
        if reasoning and message["role"] == "assistant":
            message["reasoning_content"] = reasoning
        reasoning = ""
        messages.append(message)
    return messages


def _content(where: str, content: Any) -> str | list[dict[str, Any]]:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise bad_request(f"{where}: content must be a string or a list of parts", "input")
    parts = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "refusal":
            parts.append({"type": "text", "text": _string(where, part, "refusal")})
        elif kind in _TEXT_PARTS:
            parts.append({"type": "text", "text": _string(where, part, "text")})
        else:
            raise bad_request(
                f"{where}: parts of type {_name(kind)} are not supported; this model takes text"
                " only",
                "input",
            )
    if len(parts) == 1:
        return parts[0]["text"]
    return parts


def _reasoning(where: str, item: dict[str, Any]) -> str:
    """The text of an earlier turn's reasoning; a summary tells the model nothing it thought."""
    parts = item.get("content") or []
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        raise bad_request(f"{where}: content must be a list of parts", "input")
    return "".join(_string(where, part, "text") for part in parts)


def _call(where: str, item: dict[str, Any]) -> dict[str, Any]:
    function = {name: _string(where, item, name) for name in ("name", "arguments")}
    call = {"id": _string(where, item, "call_id"), "type": "function", "function": function}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


def _tool(index: int, tool: dict[str, Any]) -> dict[str, Any]:
    if tool.get("type") != "function":
        raise bad_request(
            f"tools[{index}]: tools of type {_name(tool.get('type'))} are not supported", "tools"
        )
    names = ("name", "description", "parameters", "strict")
    function = {name: tool[name] for name in names if tool.get(name) is not None}
    return {"type": "function", "function": function}


def _tool_choice(choice: str | dict[str, Any] | None) -> Any:
    if not isinstance(choice, dict):
        return choice
    if choice.get("type") != "function":
        raise bad_request(
            f"tool_choice: {_name(choice.get('type'))} is not supported", "tool_choice"
        )
    return {"type": "function", "function": {"name": choice.get("name")}}


def _response_format(text_format: dict[str, Any] | None) -> dict[str, Any] | None:
    if text_format is None or text_format.get("type") != "json_schema":
        return text_format
    inner = {name: value for name, value in text_format.items() if name != "type"}
    return {"type": "json_schema", "json_schema": inner}


def _string(where: str, item: dict[str, Any], name: str) -> str:
    value = item.get(name)
    if not isinstance(value, str):
        raise bad_request(f"{where}.{name}: must be a string", "input")
    return value


def _name(kind: Any) -> str:
    return repr(msgspec.json.encode(kind).decode()[:40]) if kind is not None else "none"
