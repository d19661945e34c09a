"""Structured outputs of a real server with the built-in model, through the official client."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, Literal

import jsonschema
import pytest
from live import Live, end, serve_command, start
from pydantic import BaseModel, Field
from tiny_model import write_tiny_model
from tokenizers import Tokenizer

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
MESSAGES: list[Any] = [{"role": "user", "content": "Who is it?"}]


class Address(BaseModel, extra="forbid"):
    street: Annotated[str, Field(max_length=12)]
    number: Annotated[int, Field(ge=1, le=999)]


class Person(BaseModel, extra="forbid"):
    name: Annotated[str, Field(max_length=10)]
    kind: Literal["friend", "foe"]
    addresses: Annotated[list[Address], Field(max_length=2)]


SCHEMA = Person.model_json_schema()


@pytest.fixture(scope="module")
def builtin() -> Iterator[Live]:
    live = start([sys.executable, "-m", "trimtab", "serve", "builtin", "--port", "0", "--json"])
    yield live
    end(live)


def ask(live: Live, path: str = CHAT, **fields: Any) -> str:
    body = {"max_tokens": 300, "seed": 1} | fields
    body |= {"messages": MESSAGES} if path == CHAT else {"prompt": "x ="}
    response = live.post(path, json=body)
    assert response.status_code == 200, response.text
    choice = response.json()["choices"][0]
    assert choice["finish_reason"] == "stop"
    return str(choice["message"]["content"] if path == CHAT else choice["text"])


def test_the_official_client_parses_a_pydantic_model(builtin: Live) -> None:
    client = builtin.openai()
    for seed in range(4):
        answer = client.chat.completions.parse(
            model="builtin", messages=MESSAGES, response_format=Person, seed=seed, max_tokens=400
        )
        assert isinstance(answer.choices[0].message.parsed, Person)
    parsed = client.responses.parse(
        model="builtin", input="Who is it?", text_format=Person, max_output_tokens=400
    )
    assert isinstance(parsed.output_parsed, Person)


def test_the_official_client_streams_a_pydantic_model(builtin: Live) -> None:
    with builtin.openai().chat.completions.stream(
        model="builtin", messages=MESSAGES, response_format=Person, seed=7, max_tokens=400
    ) as stream:
        deltas = [event.delta for event in stream if event.type == "content.delta"]
        final = stream.get_final_completion().choices[0].message
    assert isinstance(final.parsed, Person)
    assert "".join(deltas) == final.content


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_every_field_for_the_form_of_an_answer(builtin: Live, path: str) -> None:
    json_schema = {"name": "person", "strict": True, "schema": SCHEMA}
    for fields in (
        {"response_format": {"type": "json_schema", "json_schema": json_schema}},
        {"structured_outputs": {"json": SCHEMA}},
        {"structured_outputs": {"json": json.dumps(SCHEMA), "disable_any_whitespace": True}},
        {"guided_json": SCHEMA},
        {"guided_json": json.dumps(SCHEMA)},
        {"json_schema": SCHEMA},
    ):
        text = ask(builtin, path, **fields)
        jsonschema.validate(json.loads(text), SCHEMA)
        if "disable_any_whitespace" in str(fields):
            assert text == json.dumps(json.loads(text), separators=(",", ":"), ensure_ascii=False)
    pattern, choices = "[a-f]{3}-[0-9]", ["up", "down"]
    for fields in ({"structured_outputs": {"regex": pattern}}, {"guided_regex": pattern}):
        assert re.fullmatch(pattern, ask(builtin, path, **fields))
    for fields in ({"structured_outputs": {"choice": choices}}, {"guided_choice": choices}):
        assert ask(builtin, path, **fields) in choices
    lark, gbnf = 'start: "<" /[a-z]{2}/ ">"', 'root ::= "<" [a-z] [a-z] ">"'
    for source in (lark, gbnf):
        for name in ("guided_grammar", "grammar"):
            assert re.fullmatch("<[a-z]{2}>", ask(builtin, path, **{name: source}))
        assert re.fullmatch("<..>", ask(builtin, path, structured_outputs={"grammar": source}))
    assert ask(builtin, path, response_format={"type": "text"}, guided_choice=["a"]) == "a"


def test_json_objects(builtin: Live) -> None:
    fields: list[dict[str, Any]] = [
        {"response_format": {"type": "json_object"}},
        {"structured_outputs": {"json_object": True}},
    ]
    for form in fields:
        body = {"messages": MESSAGES, "seed": 3, "max_tokens": 100} | form
        choice = builtin.post(CHAT, json=body).json()["choices"][0]
        text = choice["message"]["content"]
        assert text.startswith("{")
        if choice["finish_reason"] == "stop":
            assert isinstance(json.loads(text), dict)


@pytest.mark.parametrize(
    ("fields", "param", "reason"),
    [
        ({"guided_regex": "("}, "guided_regex", "unclosed group"),
        ({"guided_regex": "a{100000}"}, "guided_regex", "repeat count"),
        ({"guided_json": {"type": "frobnicate"}}, "guided_json", "frobnicate"),
        ({"guided_json": {"$ref": "#"}}, "guided_json", "no text matches"),
        ({"guided_json": "{"}, "guided_json", "not valid JSON"),
        ({"guided_grammar": "start: nothing"}, "guided_grammar", "nothing"),
        ({"guided_choice": []}, "guided_choice", "at least one"),
        ({"structured_outputs": {"regex": "["}}, "structured_outputs", "regex"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs", "only one"),
        ({"guided_regex": "a", "guided_choice": ["b"]}, "guided_regex", "at most one"),
        ({"guided_regex": "a", "allowed_token_ids": [5]}, "allowed_token_ids", "combined"),
        ({"response_format": {"type": "json_schema"}}, "response_format", "json_schema.schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"items": 3}}}},
            "response_format",
            "cannot be used",
        ),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_refusals_come_before_the_stream_starts(
    builtin: Live, fields: dict[str, Any], param: str, reason: str, stream: bool
) -> None:
    body = {"messages": MESSAGES, "max_tokens": 5, "stream": stream} | fields
    response = builtin.post(CHAT, json=body)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == param
    assert reason in error["message"]


def test_a_crash_of_the_checker_is_a_400_and_nothing_stops(builtin: Live) -> None:
    rules = "\n".join(f'r{i}: "a" r{i + 1} | "b" r{i + 1}' for i in range(5000))
    bomb = f'start: r0\n{rules}\nr5000: "z"'
    with ThreadPoolExecutor(3) as pool:
        running = [pool.submit(ask, builtin, guided_json=SCHEMA) for _ in range(2)]
        response = builtin.post(CHAT, json={"messages": MESSAGES, "guided_grammar": bomb})
        assert response.status_code == 400
        assert "too deeply" in response.json()["error"]["message"]
        for one in running:
            jsonschema.validate(json.loads(one.result()), SCHEMA)
    assert ask(builtin, guided_choice=["still here"]) == "still here"


def test_together_and_alone(builtin: Live) -> None:
    forms: list[dict[str, Any]] = [
        {"guided_json": SCHEMA},
        {"guided_regex": "[0-9]{1,20}"},
        {"guided_choice": ["some text or other", "some other text", "none"]},
        {"max_tokens": 12},
    ]

    async def ask_all() -> tuple[list[Any], list[Any]]:
        async with builtin.async_openai() as client:

            async def one(i: int) -> Any:
                extra = dict(forms[i % len(forms)])
                answer = await client.chat.completions.create(
                    model="builtin",
                    messages=MESSAGES,
                    seed=i,
                    max_tokens=extra.pop("max_tokens", 200),
                    logprobs=i % 3 == 0,
                    extra_body=extra,
                )
                return answer.choices[0].model_dump()

            together = await asyncio.gather(*[one(i) for i in range(32)])
            return together, [await one(i) for i in range(32)]

    together, alone = asyncio.run(ask_all())
    assert together == alone


def test_several_choices_have_their_own_place(builtin: Live) -> None:
    body = {"messages": MESSAGES, "n": 6, "seed": 1, "guided_json": SCHEMA, "max_tokens": 300}
    choices = builtin.post(CHAT, json=body).json()["choices"]
    texts = [choice["message"]["content"] for choice in choices]
    for text in texts:
        jsonschema.validate(json.loads(text), SCHEMA)
    assert len(set(texts)) > 1


def test_logprobs_of_forced_tokens_are_the_models_own(builtin: Live) -> None:
    """Of each token, the same as when the text is scored as a prompt."""
    body = {"prompt": "x = 1", "logprobs": 1, "max_tokens": 60, "seed": 1, "return_token_ids": True}
    text = '{"a name": "some value", "b": '
    form = {"guided_grammar": f"start: {json.dumps(text)} /[0-9]{{2}}/"}
    answer = builtin.post(TEXT, json=body | form).json()["choices"][0]
    assert answer["finish_reason"] == "stop"
    assert answer["text"].startswith(text)
    prompt = builtin.post("/tokenize", json={"prompt": "x = 1"}).json()["tokens"]
    whole = {"prompt": prompt + answer["token_ids"], "echo": True, "logprobs": 1, "max_tokens": 0}
    scored = builtin.post(TEXT, json=whole).json()["choices"][0]["logprobs"]
    own = answer["logprobs"]["token_logprobs"][: len(answer["token_ids"])]
    assert own == scored["token_logprobs"][len(prompt) :]


@pytest.fixture
def reasoner(tmp_path: Path) -> Iterator[Live]:
    """A model whose template opens its reasoning; token 257 ends it."""
    path = write_tiny_model(tmp_path / "reasoner", "{# </think> #}{{ messages[0].content }}<think>")
    backend = Tokenizer.from_file(str(path / "tokenizer.json"))
    backend.add_tokens(["</think>"])
    backend.save(str(path / "tokenizer.json"))
    live = start(serve_command(path, "--json", "--weights", "f32", "--threads", "1"))
    yield live
    end(live)


def test_a_grammar_begins_behind_the_reasoning(reasoner: Live) -> None:
    body = {"messages": MESSAGES, "max_tokens": 100, "guided_regex": "[0-9]{6}"}
    body["return_token_ids"] = True
    num_reasoned = 0
    for seed in range(4):
        fields = {"seed": seed, "logit_bias": {"257": 2}, "ignore_eos": True}
        choice = reasoner.post(CHAT, json=body | fields).json()["choices"][0]
        assert choice["finish_reason"] == "stop"
        assert re.fullmatch("[0-9]{6}", choice["message"]["content"])
        reasoning, answer = choice["token_ids"][:-7], choice["token_ids"][-7:]
        assert 257 not in reasoning
        assert bytes(answer[1:]).decode() == choice["message"]["content"]
        num_reasoned += len(reasoning)
    assert num_reasoned  # freely, before
