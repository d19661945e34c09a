"""`/v1/responses`: OpenAI's newer API, stateless, over the very same generation as a chat."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from trimtab.errors import RequestError
from trimtab.server import api_types as api
from trimtab.server import validation
from trimtab.server.api_errors import ApiError, as_api_error
from trimtab.server.desk import Desk
from trimtab.server.generation import Generation
from trimtab.server.json_body import convert
from trimtab.server.responses_format import ResponsesFormat
from trimtab.server.responses_input import chat_document, refuse_unsupported, renamed
from trimtab.server.responses_types import ResponsesRequest


def routes(desk: Desk) -> list[Route]:
    async def responses(request: Request) -> Response:
        asked = await desk.parse(request, ResponsesRequest, refuse_unsupported)
        try:
            return await _respond(desk, asked)
        except (ApiError, RequestError) as error:
            known = as_api_error(error)
            assert known is not None
            raise renamed(known) from None

    return [Route("/v1/responses", responses, methods=["POST"])]


async def _respond(desk: Desk, asked: ResponsesRequest) -> Response:
    document = chat_document(asked)
    validation.refuse_unsupported_chat(document)
    chat = convert(document, api.ChatRequest)
    info, tokenizer = desk.engine.info, desk.model.tokenizer
    params = validation.chat_params(chat, info)
    prompt = await desk.prompts.chat(chat, params, info)
    placement = desk.placement("resp_", asked.priority, asked.cache_salt, asked.timeout)
    generation = Generation(desk.engine, [prompt], placement, tokenizer)
    logprobs = params.logprobs is not None
    answer_format = ResponsesFormat(desk.header(placement), tokenizer, asked, logprobs)
    return desk.respond(generation, answer_format, stream=bool(asked.stream), reword=renamed)
