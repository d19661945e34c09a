"""`/v1/messages` and `count_tokens` as Anthropic has them, over the same generation as a chat."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from trimtab.errors import RequestError
from trimtab.server import api_types as api
from trimtab.server import validation
from trimtab.server.api_errors import ApiError, JSONResponse, as_api_error
from trimtab.server.conversation import read_conversation
from trimtab.server.desk import Desk
from trimtab.server.generation import Generation
from trimtab.server.json_body import convert
from trimtab.server.messages_format import MessagesFormat
from trimtab.server.messages_input import NAMES, chat_document, refuse_unsupported, thinks
from trimtab.server.messages_types import CountRequest, MessagesRequest, TokenCountAnswer


def routes(desk: Desk) -> list[Route]:
    async def messages(request: Request) -> Response:
        asked = await desk.parse(request, MessagesRequest, refuse_unsupported)
        try:
            return await _respond(desk, asked)
        except (ApiError, RequestError) as error:
            raise _renamed(error) from None

    async def count_tokens(request: Request) -> Response:
        asked = await desk.parse(request, CountRequest, refuse_unsupported)
        try:
            chat = _chat(desk, asked)
            conversation = read_conversation(chat, desk.model.tokenizer.chat_template)
            _, token_ids = await desk.prompts.render(conversation, desk.engine.info)
        except (ApiError, RequestError) as error:
            raise _renamed(error) from None
        return JSONResponse(TokenCountAnswer(len(token_ids)))

    return [
        Route("/v1/messages", messages, methods=["POST"]),
        Route("/v1/messages/count_tokens", count_tokens, methods=["POST"]),
    ]


def _chat(desk: Desk, asked: CountRequest) -> api.ChatRequest:
    template = desk.model.tokenizer.chat_template
    document = chat_document(asked, frozenset() if template is None else template.variables)
    return convert(document, api.ChatRequest)


async def _respond(desk: Desk, asked: MessagesRequest) -> Response:
    chat = _chat(desk, asked)
    params = validation.chat_params(chat, desk.engine.info)
    prompt = await desk.prompts.chat(chat, params, desk.engine.info)
    placement = desk.placement("msg_")
    generation = Generation(desk.engine, [prompt], placement, desk.model.tokenizer)
    answer_format = MessagesFormat(desk.header(placement), generation.usage, thinks(asked))
    return desk.respond(generation, answer_format, stream=bool(asked.stream))


def _renamed(error: ApiError | RequestError) -> ApiError:
    """The error in the names that the client used."""
    known = as_api_error(error)
    assert known is not None
    body = known.document.error
    name = NAMES.get(body.param or "")
    if name is not None and not body.message.startswith(name):
        body.message = f"{name}: {body.message}"
    return known
