"""Other routes and other clients than chat's own, with structured outputs of the built-in model."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

import pytest
from live import Live
from pydantic import BaseModel, Field


class Person(BaseModel, extra="forbid"):
    name: Annotated[str, Field(max_length=10)]
    kind: Literal["friend", "foe"]
    age: Annotated[int, Field(ge=0, le=99)]


def test_responses_parse_and_stream_a_pydantic_model(builtin_server: Live) -> None:
    client = builtin_server.openai()
    fields: dict[str, Any] = {"model": "builtin", "input": "Who is it?", "temperature": 0}
    answer = client.responses.parse(text_format=Person, **fields)
    assert isinstance(answer.output_parsed, Person)
    assert answer.status == "completed"
    assert answer.text is not None
    assert answer.text.format is not None
    assert answer.text.format.type == "json_schema"
    with client.responses.stream(text_format=Person, **fields) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert final.output_parsed == answer.output_parsed
    assert kinds.count("response.output_text.done") == 1
    json_object = client.responses.create(text={"format": {"type": "json_object"}}, **fields)
    assert isinstance(json.loads(json_object.output_text), dict)


def test_a_schema_that_cannot_be_is_named_by_this_routes_names(builtin_server: Live) -> None:
    for text_format in (
        {"type": "json_schema"},
        {"type": "json_schema", "name": "x", "schema": {"type": "nothing"}},
        {"type": "json_schema", "name": "x", "schema": 5},
    ):
        body = {"input": "x", "text": {"format": text_format}}
        response = builtin_server.post("/v1/responses", json=body)
        assert response.status_code == 400
        assert response.json()["error"]["param"] == "text.format"


@pytest.mark.parametrize("responses", [False, True])
def test_langchain_with_structured_output(builtin_server: Live, responses: bool) -> None:
    langchain_openai = pytest.importorskip("langchain_openai")
    model = langchain_openai.ChatOpenAI(
        model="builtin",
        base_url=f"{builtin_server.url}/v1",
        api_key="unused",
        max_retries=0,
        temperature=0,
        use_responses_api=responses,
    )
    found = model.with_structured_output(Person, method="json_schema").invoke("Who is it?")
    assert isinstance(found, Person)
