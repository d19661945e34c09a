"""Streams of events, without a server: what is written, and what happens when it cannot be made."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from fake_engine import byte_tokenizer
from hypothesis import given
from hypothesis import strategies as st

from trimtab.server.api_errors import ApiError
from trimtab.server.chat_format import ChatFormat
from trimtab.server.choice import ChoiceEvent
from trimtab.server.completion_format import CompletionFormat
from trimtab.server.formats import Header, OpenAIFormat
from trimtab.server.http import DIRECT_BODY, EventStream

HEADER = Header("answer-1", 1700000000, 'text: "\0text\0"')
TOKENIZER = byte_tokenizer()


class Client:
    """Takes what is sent, when `open` is set; and directly, as long as it keeps up."""

    def __init__(self) -> None:
        self.body = b""
        self.ended = False
        self.writable = True
        self.open = asyncio.Event()
        self.open.set()

    async def send(self, message: Any) -> None:
        await self.open.wait()
        self.body += message.get("body", b"")
        self.ended = message["type"] == "http.response.body" and not message["more_body"]

    def write(self, data: bytes) -> None:
        assert self.writable
        self.body += data

    def try_write(self, data: bytes) -> bool:
        if self.writable:
            self.write(data)
        return self.writable

    def stream(self) -> EventStream:
        templates = {0: (b"data: ", b"\n\n")}
        scope: Any = {DIRECT_BODY: self}
        return EventStream(scope, self.send, text_template=templates.get)

    @property
    def documents(self) -> list[Any]:
        events = self.body.decode().split("\n\n")
        assert events.pop() == ""
        assert events.pop() == "data: [DONE]"
        return [json.loads(event.removeprefix("data: ")) for event in events]


def documents(*numbers: int) -> Callable[[], list[Any]]:
    return lambda: [ApiError(500, str(number)).document for number in numbers]


def fail() -> list[Any]:
    raise ZeroDivisionError("cannot be made")


def formats() -> list[OpenAIFormat]:
    return [
        ChatFormat(HEADER, TOKENIZER, False, include_usage=False),
        CompletionFormat(HEADER, TOKENIZER, None, ["", "echo"], include_usage=True),
    ]


@given(st.lists(st.text(min_size=1), min_size=1, max_size=4), st.integers(0, 1))
def test_text_is_written_as_the_documents_are(texts: list[str], index: int) -> None:
    for answer_format in formats():
        assert answer_format.text_template(index) is None  # the first event says more
        answer_format.chunks(ChoiceEvent(index, "first"))
        template = answer_format.text_template(index)
        assert template is not None
        for text in texts:
            (document,) = answer_format.chunks(ChoiceEvent(index, text))
            written = template[0] + msgspec.json.encode(text) + template[1]
            assert written == b"data: " + msgspec.json.encode(document) + b"\n\n"


async def test_text_waits_behind_what_waits() -> None:
    client = Client()
    stream = client.stream()
    assert not stream.put_text(0, "0")  # there is no status yet
    stream.put(documents(1))
    assert not stream.put_text(0, "2")
    await asyncio.sleep(0.01)
    assert stream.put_text(0, "3")
    client.writable = False
    assert not stream.put_text(0, "4")
    client.writable = True
    assert not stream.put_text(1, "of a choice without a template")
    assert stream.put_text(0, "5")
    await stream.end()
    assert client.documents[0]["error"]["message"] == "1"
    assert client.documents[1:] == ["3", "5"]


async def test_an_event_that_fails_while_the_client_lags() -> None:
    """Who puts the next event, or ends, is told of it, and can say so in the stream."""
    client = Client()
    client.open.clear()
    stream = client.stream()
    for make in (documents(1), documents(2, 3), fail, documents(4)):
        stream.put(make)
    client.open.set()
    await asyncio.sleep(0.01)
    with pytest.raises(ZeroDivisionError):
        stream.put(documents(5))
    stream.put(documents(6))
    await stream.end()
    assert client.ended
    assert [one["error"]["message"] for one in client.documents] == ["1", "2", "3", "6"]


async def test_an_event_that_fails_at_the_end() -> None:
    client = Client()
    stream = client.stream()
    stream.put(documents(1))
    stream.put(fail)
    with pytest.raises(ZeroDivisionError):
        await stream.end()
    assert not client.ended
    stream.put(documents(2))
    await stream.end()
    assert [one["error"]["message"] for one in client.documents] == ["1", "2"]
