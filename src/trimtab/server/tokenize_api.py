"""`/tokenize`, `/detokenize` and `/version`, in vLLM's shapes."""

from __future__ import annotations

from functools import partial
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from trimtab.server.api_errors import JSONResponse, bad_request
from trimtab.server.api_types import Message
from trimtab.server.desk import Desk
from trimtab.server.prompts import check_text
from trimtab.server.validation import check_size, check_token_ids, context_limit, refuse_all_but
from trimtab.tokenization import Tokenizer
from trimtab.version import VERSION

MAX_DETOKENIZED = 1 << 20

# What would change the ids and is not obeyed, and the values that ask for nothing.
INERT: dict[str, tuple[Any, ...]] = {
    "continue_final_message": (None, False),
    "chat_template": (None, ""),
    "chat_template_kwargs": (None, {}),
    "mm_processor_kwargs": (None, {}),
}


class TokenizeRequest(msgspec.Struct):
    """Either `prompt` or `messages`."""

    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = None
    add_special_tokens: bool | None = None  # by default true for a prompt, false for messages
    return_token_strs: bool | None = None
    add_generation_prompt: bool | None = None  # of messages; true by default
    tools: list[dict[str, Any]] | None = None  # of messages


class TokenizeAnswer(msgspec.Struct):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeRequest(msgspec.Struct):
    tokens: list[int]
    model: str | None = None


class DetokenizeAnswer(msgspec.Struct):
    prompt: str


class Version(msgspec.Struct):
    version: str


def routes(desk: Desk) -> list[Route]:
    async def tokenize(request: Request) -> Response:
        asked = await desk.parse(request, TokenizeRequest, partial(refuse_all_but, inert=INERT))
        token_ids = await _token_ids(desk, asked)
        tokenizer = desk.model.tokenizer
        pieces = None
        if asked.return_token_strs:
            name = partial(_pieces, tokenizer, token_ids)
            pieces = await desk.workers.run(len(token_ids), name)
        limit = context_limit(desk.engine.info)
        return JSONResponse(TokenizeAnswer(len(token_ids), limit, token_ids, pieces))

    async def detokenize(request: Request) -> Response:
        asked = await desk.parse(request, DetokenizeRequest)
        info = desk.engine.info
        check_size(len(asked.tokens), "tokens", MAX_DETOKENIZED, info, "tokens")
        check_token_ids(asked.tokens, info, "tokens")
        decode = partial(desk.model.tokenizer.decode, asked.tokens, skip_special_tokens=False)
        return JSONResponse(DetokenizeAnswer(await desk.workers.run(len(asked.tokens), decode)))

    async def version(request: Request) -> Response:
        return JSONResponse(Version(VERSION))

    return [
        Route("/tokenize", tokenize, methods=["POST"]),
        Route("/detokenize", detokenize, methods=["POST"]),
        Route("/version", version, methods=["GET"]),
    ]


def _pieces(tokenizer: Tokenizer, token_ids: list[int]) -> list[str]:
    return [tokenizer.id_to_token(token_id) or "" for token_id in token_ids]


async def _token_ids(desk: Desk, asked: TokenizeRequest) -> list[int]:
    if (asked.prompt is None) == (asked.messages is None):
        raise bad_request("one of prompt and messages is required", "prompt")
    if asked.messages is not None:
        if asked.add_special_tokens:
            raise bad_request(
                "add_special_tokens: the chat template writes its own special tokens",
                "add_special_tokens",
            )
        return await desk.prompts.encode_messages(
            asked.messages,
            desk.engine.info,
            tools=asked.tools,
            add_generation_prompt=asked.add_generation_prompt is not False,
        )
    prompt = asked.prompt or ""
    check_text(len(prompt), desk.engine.info, "prompt")
    add_special_tokens = asked.add_special_tokens is not False
    encode = partial(desk.model.tokenizer.encode, prompt, add_special_tokens)
    return await desk.workers.run(len(prompt), encode)
