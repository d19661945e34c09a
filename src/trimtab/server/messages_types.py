"""The documents of Anthropic's `/v1/messages`, as typed structs: what is parsed, what is sent."""

from __future__ import annotations

from typing import Any

import msgspec

# -- requests. A null is the same as an absent field.


class BlockParam(msgspec.Struct):
    """Of any type; which fields it needs follows from that."""

    type: str
    text: str | None = None
    thinking: str | None = None
    id: str | None = None
    name: str | None = None
    input: dict[str, Any] | None = None
    tool_use_id: str | None = None
    content: str | list[Any] | None = None
    is_error: bool | None = None


class MessageParam(msgspec.Struct):
    role: str
    content: str | list[BlockParam]


class ToolParam(msgspec.Struct):
    name: str
    type: str | None = None  # custom: one that the client runs
    description: str | None = None
    input_schema: dict[str, Any] | None = None


class ToolChoiceParam(msgspec.Struct):
    type: str
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class ThinkingParam(msgspec.Struct):
    type: str
    budget_tokens: int | None = None


class CountRequest(msgspec.Struct, kw_only=True):
    """What `/v1/messages/count_tokens` takes; a message to be answered has more."""

    messages: list[MessageParam]
    model: str | None = None
    system: str | list[BlockParam] | None = None
    tools: list[ToolParam] | None = None
    tool_choice: ToolChoiceParam | None = None
    thinking: ThinkingParam | None = None


class MessagesRequest(CountRequest, kw_only=True):
    max_tokens: int
    stream: bool | None = None
    stop_sequences: list[str] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None


# -- answers


class TextBlock(msgspec.Struct, tag_field="type", tag="text"):
    text: str


class ThinkingBlock(msgspec.Struct, tag_field="type", tag="thinking"):
    thinking: str
    signature: str = ""


class ToolUseBlock(msgspec.Struct, tag_field="type", tag="tool_use"):
    id: str
    name: str
    input: dict[str, Any]


AnyBlock = TextBlock | ThinkingBlock | ToolUseBlock


class MessagesUsage(msgspec.Struct):
    """`input_tokens` without those that came out of the cache."""

    input_tokens: int
    output_tokens: int
    cache_read_input_tokens: int = 0
    cache_creation_input_tokens: int = 0


class MessagesAnswer(msgspec.Struct, tag_field="type", tag="message"):
    id: str
    model: str
    content: list[AnyBlock]
    usage: MessagesUsage
    stop_reason: str | None = None
    stop_sequence: str | None = None
    role: str = "assistant"


class TokenCountAnswer(msgspec.Struct):
    input_tokens: int


# -- events of a stream


class MessageStart(msgspec.Struct, tag_field="type", tag="message_start"):
    message: MessagesAnswer


class PingEvent(msgspec.Struct, tag_field="type", tag="ping"):
    pass


class BlockStart(msgspec.Struct, tag_field="type", tag="content_block_start"):
    index: int
    content_block: AnyBlock


class TextBlockDelta(msgspec.Struct, tag_field="type", tag="text_delta"):
    text: str


class ThinkingBlockDelta(msgspec.Struct, tag_field="type", tag="thinking_delta"):
    thinking: str


class InputDelta(msgspec.Struct, tag_field="type", tag="input_json_delta"):
    partial_json: str


class BlockDelta(msgspec.Struct, tag_field="type", tag="content_block_delta"):
    index: int
    delta: TextBlockDelta | ThinkingBlockDelta | InputDelta


class BlockStop(msgspec.Struct, tag_field="type", tag="content_block_stop"):
    index: int


class StopDelta(msgspec.Struct):
    stop_reason: str | None
    stop_sequence: str | None = None


class MessageDelta(msgspec.Struct, tag_field="type", tag="message_delta"):
    delta: StopDelta
    usage: MessagesUsage


class MessageStop(msgspec.Struct, tag_field="type", tag="message_stop"):
    pass


AnyEvent = (
    MessageStart | PingEvent | BlockStart | BlockDelta | BlockStop | MessageDelta | MessageStop
)
