"""Request text to token ids: prompts of every shape, and messages through the chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from trimtab.engine.client import EngineInfo
from trimtab.engine.sampling_params import SamplingParams
from trimtab.server.api_errors import bad_request
from trimtab.server.api_types import ChatRequest, CompletionRequest, Message
from trimtab.server.generation import Prompt
from trimtab.server.text import TextWorkers
from trimtab.server.validation import (
    MAX_SEQUENCES,
    check_num_choices,
    check_size,
    check_token_ids,
    completes,
    fit_context,
)
from trimtab.tokenization import TextStream, Tokenizer

MAX_TOKEN_CHARACTERS = 128  # no text has longer tokens on average
ROLES = ("system", "developer", "user", "assistant")


class PromptMaker:
    def __init__(self, tokenizer: Tokenizer, workers: TextWorkers) -> None:
        self._tokenizer = tokenizer
        self._workers = workers

    async def completion(
        self, asked: CompletionRequest, params: SamplingParams, info: EngineInfo
    ) -> list[Prompt]:
        """Raises ApiError 400 for a prompt that is empty, too long or not of a known shape."""
        prompts = _prompts(asked.prompt, info)
        check_num_choices(asked, len(prompts))
        scored = bool(asked.echo) and asked.logprobs is not None
        result = []
        for prompt in prompts:
            if isinstance(prompt, str):
                check_text(len(prompt), info, "prompt")
                token_ids = await self._workers.run(len(prompt), partial(self._encode, prompt))
                text = prompt
            else:
                check_token_ids(prompt, info, "prompt")
                token_ids = prompt
                text = self._tokenizer.decode(prompt) if asked.echo else ""
            if not token_ids:
                raise bad_request("prompt: must not be empty", "prompt")
            fitted = fit_context(
                params,
                len(token_ids),
                info,
                named=asked.max_tokens is not None,
                completes=completes(asked),
            )
            offsets = None
            if scored:
                is_text = isinstance(prompt, str)
                find = partial(token_offsets, self._tokenizer, token_ids, text, is_text)
                offsets = await self._workers.run(len(text), find)
            result.append(Prompt(token_ids, fitted, text, offsets, completes(asked)))
        return result

    async def chat(self, asked: ChatRequest, params: SamplingParams, info: EngineInfo) -> Prompt:
        """Raises ApiError or RequestError 400 for messages that cannot be served."""
        token_ids = await self.encode_messages(asked.messages, info)
        if not token_ids:
            raise bad_request("messages: must not be empty", "messages")
        return Prompt(
            token_ids,
            fit_context(params, len(token_ids), info, named=params.max_tokens is not None),
        )

    async def encode_messages(
        self,
        asked: Sequence[Message],
        info: EngineInfo,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
    ) -> list[int]:
        """Token ids of a conversation. Raises ApiError or RequestError 400, as `chat` does."""
        messages = [_message(i, message) for i, message in enumerate(asked)]
        if not messages:
            raise bad_request("messages: must not be empty", "messages")
        size = sum(_size(message["content"]) for message in messages)
        check_text(size, info, "messages")
        encode = partial(self._tokenizer.encode_chat, messages, tools, add_generation_prompt)
        return await self._workers.run(size, encode)

    def _encode(self, prompt: str) -> list[int]:
        return self._tokenizer.encode(prompt)


def token_offsets(
    tokenizer: Tokenizer, token_ids: list[int], text: str, is_text: bool
) -> list[int]:
    """Where each token starts in the text of a prompt, in characters counted from its end.

    Special tokens that a text spells out are part of it; those that the tokenizer put before it,
    and all those of a prompt that was given as ids, take no room.
    """
    stream = TextStream(tokenizer, skip_special_tokens=not is_text)
    decoded = stream.push(token_ids) + stream.finish()
    first = len(decoded) - len(text) if decoded.endswith(text) else 0
    size = len(text)
    return [min(max(offset - first, 0), size) - size for offset in stream.token_offsets]


def check_text(num_characters: int, info: EngineInfo, param: str) -> None:
    check_size(num_characters, "characters", MAX_TOKEN_CHARACTERS * info.max_context, info, param)


def _prompts(prompt: str | list[Any] | None, info: EngineInfo) -> list[str | list[int]]:
    """A string, token ids, or a list of either, as a list of prompts."""
    if prompt is None:
        raise bad_request("prompt: is required", "prompt")
    if isinstance(prompt, str):
        return [prompt]
    if not prompt:
        raise bad_request("prompt: must not be empty", "prompt")
    for ids in [prompt, *(one for one in prompt[:MAX_SEQUENCES] if isinstance(one, list))]:
        check_size(len(ids), "tokens", max(info.max_context, MAX_SEQUENCES), info, "prompt")
    if all(isinstance(one, str) for one in prompt):
        return list(prompt)
    if _is_token_ids(prompt):
        return [prompt]
    if all(isinstance(one, list) and _is_token_ids(one) for one in prompt):
        return list(prompt)
    raise bad_request(
        "prompt: must be a string, a list of strings, a list of token ids, or a list of such lists",
        "prompt",
    )


def _is_token_ids(values: list[Any]) -> bool:
    return all(type(value) is int for value in values)


def _message(index: int, message: Message) -> dict[str, Any]:
    """What a chat template takes. Raises ApiError 400 for roles and contents we cannot serve."""
    where = f"messages[{index}]"
    if message.role not in ROLES or message.tool_calls or message.function_call is not None:
        raise bad_request(
            f"{where}: only text messages of the roles {', '.join(ROLES)} are supported",
            "messages",
        )
    if message.content is None:
        raise bad_request(f"{where}.content: is required", "messages")
    if isinstance(message.content, str):
        content: str | list[dict[str, str]] = message.content
    else:
        content = []
        for part in message.content:
            if part.type != "text" or part.text is None:
                raise bad_request(
                    f"{where}.content: parts of type {part.type[:32]!r} are not supported;"
                    " this model takes text only",
                    "messages",
                )
            content.append({"type": "text", "text": part.text})
    role = "system" if message.role == "developer" else message.role
    return {"role": role, "content": content}


def _size(content: str | list[dict[str, str]]) -> int:
    if isinstance(content, str):
        return len(content)
    return sum(len(part["text"]) for part in content)
