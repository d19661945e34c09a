"""Users' own requests: JSON lines of prompts or messages."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from trimtab.workloads.file_lines import (
    BadLine,
    at_line,
    date_seconds,
    json_object,
    lines_of,
    seconds,
    shown,
    whole_number,
)
from trimtab.workloads.sessions import Turn
from trimtab.workloads.texts import CHARACTERS_PER_TOKEN

DEFAULT_MAX_TOKENS = 256
EXAMPLE = '{"prompt": "..."} or {"messages": [{"role": "user", "content": "..."}]}'
# Fields of the API that are passed on as they stand.
OPTIONS = frozenset(
    (
        *("temperature", "top_p", "top_k", "min_p", "seed", "stop", "stop_token_ids", "bad_words"),
        *("presence_penalty", "frequency_penalty", "repetition_penalty", "logit_bias"),
        *("min_tokens", "ignore_eos", "allowed_token_ids", "logprobs", "top_logprobs"),
        *("response_format", "structured_outputs", "guided_json", "guided_regex"),
        *("guided_choice", "guided_grammar", "tools", "tool_choice", "parallel_tool_calls"),
        *("chat_template_kwargs", "reasoning_effort", "priority", "cache_salt"),
    )
)
_LIMITS = ("max_tokens", "max_completion_tokens")
_TIMES = ("at", "timestamp")
_OWN = frozenset((*_LIMITS, *_TIMES, "prompt", "messages", "session", "pause"))
_IGNORED = frozenset(("id", "custom_id", "method", "url", "model", "stream"))  # not the load's


def read_user_requests(path: Path) -> list[tuple[float | None, list[Turn]]]:
    """(seconds or None, session) in the order of the sessions' first lines. A session's later lines
    are its later turns: they hold only what is new. Raises UserError with the line's number."""
    sessions: dict[Any, tuple[float | None, list[Turn]]] = {}
    for number, line in lines_of(path):
        try:
            fields = json_object(line)
            body = fields.get("body")
            if isinstance(body, dict):  # a line of OpenAI's batch format
                fields = {**body, **{key: fields[key] for key in fields if key != "body"}}
            name = _session_name(fields, number)
            time = _time(fields)
            if name in sessions and time is not None:
                raise BadLine(
                    f"a later turn of session {shown(name[1])} takes a pause (seconds after the "
                    "answer before it), not a time"
                )
            if name not in sessions and "pause" in fields:
                raise BadLine("a pause is of a session's later turns")
            sessions.setdefault(name, (time, []))[1].append(_turn(fields))
        except BadLine as problem:
            raise at_line(path, number, problem) from None
    timed = [time is not None for time, _ in sessions.values()]
    if any(timed) and not all(timed):
        raise at_line(path, 1, "some requests have a time and others not: give all or none")
    return list(sessions.values())


def _session_name(fields: dict[str, Any], number: int) -> tuple[str, Any]:
    name = fields.get("session")
    if name is None:
        return ("line", number)
    if isinstance(name, bool) or not isinstance(name, str | int):
        raise BadLine(f"session must be a text or a whole number, not {shown(name)}")
    return ("session", name)


def _time(fields: dict[str, Any]) -> float | None:
    given = [name for name in _TIMES if fields.get(name) is not None]
    if len(given) > 1:
        raise BadLine("give at or timestamp, not both")
    if not given:
        return None
    value = fields[given[0]]
    return date_seconds(value, given[0]) if isinstance(value, str) else seconds(value, given[0])


def _turn(fields: dict[str, Any]) -> Turn:
    for name in fields:
        if name not in _OWN and name not in OPTIONS and name not in _IGNORED:
            raise BadLine(f"unknown field {shown(name)}; use {EXAMPLE}, max_tokens, at, session")
    prompt, messages = fields.get("prompt"), fields.get("messages")
    if (prompt is None) == (messages is None):
        raise BadLine(f"a request has a prompt or messages; use {EXAMPLE}")
    if prompt is not None and (not isinstance(prompt, str) or not prompt):
        raise BadLine(f"prompt must be a text with something in it, not {shown(prompt)}")
    if messages is not None:
        _check_messages(messages)
    limits = [fields[name] for name in _LIMITS if fields.get(name) is not None]
    if len(limits) > 1:
        raise BadLine("give max_tokens or max_completion_tokens, not both")
    size = len(prompt) if prompt is not None else sum(map(_characters, messages or ()))
    return Turn(
        pieces=(),
        num_output_tokens=whole_number(limits[0], "max_tokens", 1)
        if limits
        else DEFAULT_MAX_TOKENS,
        pause=seconds(fields["pause"], "pause") if fields.get("pause") is not None else 0.0,
        text=prompt,
        messages=messages,
        options={name: fields[name] for name in fields if name in OPTIONS},
        own_length=max(1, math.ceil(size / CHARACTERS_PER_TOKEN)),
    )


def _check_messages(messages: Any) -> None:
    if not isinstance(messages, list) or not messages:
        raise BadLine(f"messages must be a list with something in it, not {shown(messages)}")
    for place, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise BadLine(f"messages[{place}] needs a role; use {EXAMPLE}")
        if not isinstance(message.get("content"), str | list | None):
            raise BadLine(f"messages[{place}].content must be a text or a list of parts")


def _characters(message: dict[str, Any]) -> int:
    content = message.get("content")
    if isinstance(content, list):
        return sum(len(str(part.get("text", ""))) for part in content if isinstance(part, dict))
    return len(content or "")
