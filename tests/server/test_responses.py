"""/v1/responses as the official client sees it: whole, streamed, and put together by its helper."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from fake_engine import MODEL_NAME
from live import Live
from openai.types.responses import Response

PATH = "/v1/responses"


def create(server: Live, **fields: Any) -> Response:
    fields = {"input": "hello", "temperature": 0, "max_output_tokens": 7} | fields
    return server.openai().responses.create(model=MODEL_NAME, **fields)


def events_of(server: Live, **fields: Any) -> list[Any]:
    fields = {"input": "hello", "temperature": 0, "max_output_tokens": 7} | fields
    with server.openai().responses.create(model=MODEL_NAME, stream=True, **fields) as stream:
        return list(stream)


def chat_text(server: Live, messages: list[dict[str, Any]], **fields: Any) -> str:
    fields = {"temperature": 0, "max_tokens": 7} | fields
    answer = server.post("/v1/chat/completions", json={"messages": messages} | fields).json()
    return answer["choices"][0]["message"]["content"]  # type: ignore[no-any-return]


def test_a_text(server: Live) -> None:
    answer = create(server, instructions="be brief", metadata={"a": "b"})
    assert answer.object == "response"
    assert answer.id.startswith("resp_")
    assert (answer.model, answer.status) == (MODEL_NAME, "incomplete")
    assert answer.incomplete_details is not None
    assert answer.incomplete_details.reason == "max_output_tokens"
    (item,) = answer.output
    assert (item.type, item.role, item.status) == ("message", "assistant", "incomplete")
    system = {"role": "system", "content": "be brief"}
    user = {"role": "user", "content": "hello"}
    assert answer.output_text == chat_text(server, [system, user])
    assert answer.usage is not None
    assert answer.usage.input_tokens == len("<system>be brief\n<user>hello\n<assistant>")
    assert answer.usage.output_tokens == 7
    assert answer.usage.total_tokens == answer.usage.input_tokens + 7
    assert answer.usage.input_tokens_details.cached_tokens == 3
    assert answer.metadata == {"a": "b"}
    assert answer.instructions == "be brief"
    assert answer.max_output_tokens == 7
    assert answer.temperature == 0


def test_it_ends_by_itself(server: Live) -> None:
    answer = create(server, input="EOS", max_output_tokens=None)
    assert (answer.status, answer.incomplete_details) == ("completed", None)
    assert answer.output[0].status == "completed"
    assert len(answer.output_text) == 3


def test_items_are_the_messages_of_a_chat(server: Live) -> None:
    first = create(server, input="EOS one")
    items: list[Any] = [
        {"role": "developer", "content": "d"},
        {"role": "user", "content": [{"type": "input_text", "text": "u"}]},
        *[item.model_dump() for item in first.output],
        {"type": "reasoning", "id": "rs_1", "summary": []},
        {"type": "message", "role": "user", "content": "again"},
    ]
    messages = [
        {"role": "developer", "content": "d"},
        {"role": "user", "content": "u"},
        {"role": "assistant", "content": first.output_text},
        {"role": "user", "content": "again"},
    ]
    assert create(server, input=items).output_text == chat_text(server, messages)


def test_a_stream_has_every_event_in_order(server: Live) -> None:
    events = events_of(server, input="EOS", max_output_tokens=None)
    kinds = [event.type.removeprefix("response.") for event in events]
    assert kinds[:4] == ["created", "in_progress", "output_item.added", "content_part.added"]
    assert set(kinds[4:-4]) == {"output_text.delta"}
    assert kinds[-4:] == [
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    whole = create(server, input="EOS", max_output_tokens=None)
    assert text == whole.output_text == events[-4].text
    assert events[-3].part.text == text
    assert len({event.item_id for event in events[3:-2]}) == 1
    assert events[-2].item.id == events[3].item_id
    assert events[0].response.output == []
    assert events[0].response.usage is None

    def bare(response: Response) -> dict[str, Any]:
        document = response.model_dump()
        document["output"][0].pop("id")
        return {k: v for k, v in document.items() if k not in ("id", "created_at")}

    assert bare(events[-1].response) == bare(whole)


def test_a_stream_that_is_cut_is_incomplete(server: Live) -> None:
    events = events_of(server)
    assert events[-1].type == "response.incomplete"
    assert events[-1].response.incomplete_details.reason == "max_output_tokens"


def test_the_stream_helper(server: Live) -> None:
    fields: dict[str, Any] = {"input": "EOS please", "temperature": 0}
    with server.openai().responses.stream(model=MODEL_NAME, **fields) as stream:
        snapshots = [e.snapshot for e in stream if e.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert final.output_text == snapshots[-1] == create(server, **fields).output_text


def test_raw_events_are_named_and_end_without_done(server: Live) -> None:
    body = {"input": "hi", "max_output_tokens": 2, "stream": True}
    response = server.post(PATH, json=body)
    assert response.headers["content-type"].startswith("text/event-stream")
    *events, rest = response.text.split("\n\n")
    assert rest == ""
    for event in events:
        name, data = event.split("\n")
        assert name == f"event: {json.loads(data.removeprefix('data: '))['type']}"


def test_logprobs(server: Live) -> None:
    answer = create(server, top_logprobs=2, include=["message.output_text.logprobs"])
    part: Any = answer.output[0].content[0]  # type: ignore[union-attr]
    assert "".join(one.token for one in part.logprobs) == answer.output_text
    assert [len(one.top_logprobs) for one in part.logprobs] == [2] * 7
    events = events_of(server, top_logprobs=2)
    deltas = [e for e in events if e.type == "response.output_text.delta"]
    found = [one.logprob for delta in deltas for one in delta.logprobs]
    assert found == [one.logprob for one in part.logprobs]
    silent: Any = create(server).output[0].content[0]  # type: ignore[union-attr]
    assert silent.logprobs == []


def test_what_breaks_late_is_a_failed_response(server: Live) -> None:
    events = events_of(server, input="BROKEN")
    assert events[-1].type == "response.failed"
    assert events[-1].response.status == "failed"
    assert events[-1].response.error.code == "generation_failed"
    with pytest.raises(openai.InternalServerError):
        create(server, input="BROKEN")


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"input": None}, "input"),
    ({"input": []}, "input"),
    ({"input": [5]}, "input"),
    ({"input": [{"type": "item_reference", "id": "x"}]}, "input"),
    ({"input": [{"role": "wizard", "content": "x"}]}, "input"),
    ({"input": [{"role": "user", "content": 5}]}, "input"),
    ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input"),
    ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "input"),
    ({"input": [{"type": "reasoning", "content": "x"}]}, "input"),
    ({"input": [{"type": "function_call", "name": "f"}]}, "input"),
    ({"input": [{"type": "function_call_output", "output": "x"}]}, "input"),
    ({"store": True}, "store"),
    ({"previous_response_id": "resp_1"}, "previous_response_id"),
    ({"conversation": "c"}, "conversation"),
    ({"background": True}, "background"),
    ({"truncation": "auto"}, "truncation"),
    ({"max_tool_calls": 3}, "max_tool_calls"),
    ({"n": 2}, "n"),
    ({"prompt": {"id": "p"}}, "prompt"),
    ({"max_output_tokens": 0}, "max_output_tokens"),
    ({"max_output_tokens": 100_000}, "max_output_tokens"),
    ({"temperature": 3}, "temperature"),
    ({"top_logprobs": 21}, "top_logprobs"),
    ({"tools": [{"type": "web_search"}]}, "tools"),
    ({"tool_choice": {"type": "file_search"}}, "tool_choice"),
    ({"text": {"format": {"type": "xml"}}}, "text.format"),
    ({"seed": "x"}, "seed"),
]


@pytest.mark.parametrize(("fields", "param"), REFUSED)
def test_refusals(server: Live, fields: dict[str, Any], param: str) -> None:
    response = server.post(PATH, json={"input": "hi"} | fields)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["param"] == param, error
    assert "messages" not in error["message"]


def test_another_model(server: Live) -> None:
    response = server.post(PATH, json={"input": "hi", "model": "other"})
    assert response.status_code == 404
