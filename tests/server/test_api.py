"""What the official client sees of a healthy server."""

from __future__ import annotations

import asyncio
import json

import pytest
from fake_engine import MODEL_NAME
from live import Live

pytestmark = pytest.mark.usefixtures("server")


def chat_stream(server: Live, **fields):
    messages = [{"role": "user", "content": fields.pop("content", "hello")}]
    with server.openai().chat.completions.create(
        model=MODEL_NAME, messages=messages, stream=True, **fields
    ) as stream:
        return list(stream)


def test_models(server: Live) -> None:
    client = server.openai()
    models = client.models.list().data
    assert [model.id for model in models] == [MODEL_NAME]
    assert client.models.retrieve(MODEL_NAME).object == "model"


def test_health_and_ready(server: Live) -> None:
    for path in ("/health", "/ready"):
        response = server.get(path)
        assert (response.status_code, response.json()) == (200, {"status": "ok"})


def test_completion(server: Live) -> None:
    answer = server.openai().completions.create(model=MODEL_NAME, prompt="hello", temperature=0)
    assert answer.object == "text_completion"
    assert answer.id.startswith("cmpl-")
    assert answer.model == MODEL_NAME
    (choice,) = answer.choices
    assert len(choice.text) == 16  # the API's own default of max_tokens
    assert (choice.index, choice.finish_reason, choice.logprobs) == (0, "length", None)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 5
    assert answer.usage.completion_tokens == 16
    assert answer.usage.total_tokens == 21
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 3


def test_streamed_completion_is_the_same_text(server: Live) -> None:
    client = server.openai()
    fields = {"model": MODEL_NAME, "prompt": "hello", "temperature": 0, "max_tokens": 30}
    whole = client.completions.create(**fields).choices[0]
    chunks = list(client.completions.create(**fields, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.text
    reasons = [chunk.choices[0].finish_reason for chunk in chunks]
    assert reasons == [None] * (len(chunks) - 1) + ["length"]
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}) == 1
    assert all(chunk.usage is None for chunk in chunks)


@pytest.mark.parametrize(
    "prompt", ["hello", [104, 101, 108, 108, 111], ["hello"], [[104, 101, 108, 108, 111]]]
)
def test_prompt_shapes(server: Live, prompt: object) -> None:
    answer = server.openai().completions.create(model=MODEL_NAME, prompt=prompt, temperature=0)
    reference = server.openai().completions.create(model=MODEL_NAME, prompt="hello", temperature=0)
    assert [c.text for c in answer.choices] == [c.text for c in reference.choices]


def test_several_prompts_and_choices_are_ordered_and_echoed(server: Live) -> None:
    client = server.openai()
    answer = client.completions.create(
        model=MODEL_NAME, prompt=["one", "two"], n=2, temperature=1, seed=5, echo=True, max_tokens=8
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    starts = [choice.text[:3] for choice in answer.choices]
    assert starts == ["one", "one", "two", "two"]
    texts = [choice.text for choice in answer.choices]
    assert len(set(texts)) == 4
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (6, 32)
    alone = client.completions.create(
        model=MODEL_NAME, prompt="two", n=2, temperature=1, seed=5, echo=True, max_tokens=8
    )
    assert [choice.text for choice in alone.choices] == texts[2:]


def test_chat(server: Live) -> None:
    answer = server.openai().chat.completions.create(
        model=MODEL_NAME,
        messages=[
            {"role": "developer", "content": "be brief"},
            {
                "role": "user",
                "content": [{"type": "text", "text": "he"}, {"type": "text", "text": "y"}],
            },
        ],
        temperature=0,
        max_completion_tokens=7,
    )
    assert answer.object == "chat.completion"
    assert answer.id.startswith("chatcmpl-")
    (choice,) = answer.choices
    assert choice.message.role == "assistant"
    assert len(choice.message.content or "") == 7
    assert choice.finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len("<system>be brief\n<user>he\ny\n<assistant>")


def test_chat_stream_framing(server: Live) -> None:
    chunks = chat_stream(server, temperature=0, max_tokens=9)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert all(chunk.choices[0].delta.role is None for chunk in chunks[1:])
    reasons = [chunk.choices[0].finish_reason for chunk in chunks]
    assert reasons == [None] * (len(chunks) - 1) + ["length"]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert len(text) == 9
    assert all(chunk.usage is None for chunk in chunks)


def test_stream_usage_is_one_last_chunk_without_choices(server: Live) -> None:
    chunks = chat_stream(server, max_tokens=4, stream_options={"include_usage": True})
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 4
    assert all(chunk.choices and chunk.usage is None for chunk in chunks[:-1])


def test_raw_stream(server: Live) -> None:
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2, "stream": True}
    response = server.post("/v1/chat/completions", json=body)
    assert response.headers["content-type"].startswith("text/event-stream")
    events = response.text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    for event in events[:-2]:
        document = json.loads(event.removeprefix("data: "))
        assert "usage" not in document


def test_n_choices_stream_one_finish_each(server: Live) -> None:
    chunks = chat_stream(server, n=3, seed=1, max_tokens=5)
    texts: dict[int, str] = {}
    finished: list[int] = []
    for chunk in chunks:
        (choice,) = chunk.choices
        assert choice.index not in finished
        if choice.index not in texts:
            assert choice.delta.role == "assistant"
        texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
        if choice.finish_reason:
            finished.append(choice.index)
    assert sorted(finished) == [0, 1, 2]
    assert len(set(texts.values())) == 3
    whole = server.openai().chat.completions.create(
        model=MODEL_NAME,
        messages=[{"role": "user", "content": "hello"}],
        n=3,
        seed=1,
        max_tokens=5,
    )
    assert [choice.message.content for choice in whole.choices] == [texts[i] for i in range(3)]


def test_seed_decides_and_no_seed_is_random(server: Live) -> None:
    client = server.openai()

    def text(**fields: object) -> str:
        return client.completions.create(model=MODEL_NAME, prompt="x", **fields).choices[0].text  # type: ignore[call-overload,no-any-return]

    assert text(seed=7) == text(seed=7)
    assert text(seed=7) != text(seed=8)
    assert text() != text()


def test_stop_string_is_cut_and_not_leaked(server: Live) -> None:
    client = server.openai()
    fields = {"model": MODEL_NAME, "prompt": "hello", "temperature": 0, "max_tokens": 40}
    full = client.completions.create(**fields).choices[0].text
    stop = full[10:13]
    expected = full[: full.index(stop)]
    whole = client.completions.create(**fields, stop=[stop, "never"]).choices[0]
    assert (whole.text, whole.finish_reason) == (expected, "stop")
    chunks = list(client.completions.create(**fields, stop=stop, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == expected
    assert chunks[-1].choices[0].finish_reason == "stop"
    kept = client.completions.create(
        **fields, stop=stop, extra_body={"include_stop_str_in_output": True}
    ).choices[0]
    assert kept.text == expected + stop


def test_end_of_sequence(server: Live) -> None:
    client = server.openai()
    choice = client.completions.create(model=MODEL_NAME, prompt="EOS", max_tokens=9).choices[0]
    assert (len(choice.text), choice.finish_reason) == (3, "stop")
    choice = client.completions.create(
        model=MODEL_NAME, prompt="EOS", max_tokens=9, extra_body={"ignore_eos": True}
    ).choices[0]
    assert (len(choice.text), choice.finish_reason) == (9, "length")


def test_no_half_characters(server: Live) -> None:
    chunks = chat_stream(server, content="UTF8", max_tokens=13)
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks]
    assert "".join(pieces) == "é🙂é🙂�"
    assert all("�" not in piece for piece in pieces[:-2])


def test_chat_logprobs(server: Live) -> None:
    messages = [{"role": "user", "content": "hello"}]
    answer = server.openai().chat.completions.create(
        model=MODEL_NAME, messages=messages, max_tokens=4, logprobs=True, top_logprobs=2
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert "".join(entry.token for entry in logprobs.content) == answer.choices[0].message.content
    for entry in logprobs.content:
        assert bytes(entry.bytes or []).decode() == entry.token
        assert entry.logprob == -0.5
        assert [top.logprob for top in entry.top_logprobs] == [-1.0, -9999.0]
    none = server.openai().chat.completions.create(
        model=MODEL_NAME, messages=messages, max_tokens=4, logprobs=True, top_logprobs=0
    )
    assert none.choices[0].logprobs is not None
    assert all(not entry.top_logprobs for entry in none.choices[0].logprobs.content or [])


def test_streamed_logprobs_cover_every_character(server: Live) -> None:
    chunks = chat_stream(server, max_tokens=8, logprobs=True, content="UTF8")
    entries = [
        entry
        for chunk in chunks
        if chunk.choices[0].logprobs
        for entry in chunk.choices[0].logprobs.content or []
    ]
    assert b"".join(bytes(entry.bytes or []) for entry in entries) == "é🙂é".encode()
    assert entries[0].token == "bytes:\\xc3"


def test_completion_logprobs(server: Live) -> None:
    choice = (
        server.openai()
        .completions.create(
            model=MODEL_NAME, prompt="hello", max_tokens=5, logprobs=2, temperature=0
        )
        .choices[0]
    )
    assert choice.logprobs is not None
    assert "".join(choice.logprobs.tokens or []) == choice.text
    assert choice.logprobs.text_offset == [0, 1, 2, 3, 4]
    assert choice.logprobs.token_logprobs == [-0.5] * 5
    for token, top in zip(choice.text, choice.logprobs.top_logprobs or [], strict=True):
        assert top == {token: -0.5} | {"a": -1.0, "b": -9999.0}


def test_logprobs_of_a_stopped_text_end_with_it(server: Live) -> None:
    client = server.openai()
    fields = {"model": MODEL_NAME, "prompt": "hello", "temperature": 0, "max_tokens": 40}
    full = client.completions.create(**fields).choices[0].text
    choice = client.completions.create(**fields, stop=full[6:9], logprobs=0).choices[0]
    assert choice.logprobs is not None
    assert "".join(choice.logprobs.tokens or []) == choice.text
    assert choice.logprobs.top_logprobs is None


def test_harmless_fields_are_ignored(server: Live) -> None:
    answer = server.openai().chat.completions.create(
        model=MODEL_NAME,
        messages=[{"role": "user", "content": "hello", "name": "ada"}],
        max_tokens=2,
        user="u",
        metadata={"a": "b"},
        store=False,
        response_format={"type": "text"},
        tool_choice="none",
        service_tier="auto",
        extra_body={"top_k": 3, "min_p": 0.1, "priority": 2, "cache_salt": "x", "unknown": 1},
    )
    assert answer.choices[0].finish_reason == "length"


def test_without_a_limit_chat_runs_to_the_end_of_the_context(server: Live) -> None:
    answer = server.openai().chat.completions.create(
        model=MODEL_NAME, messages=[{"role": "user", "content": "x" * 2000}]
    )
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.total_tokens == 2048


async def test_32_requests_at_once_equal_one_after_another(server: Live) -> None:
    async with server.async_openai() as client:

        async def text(i: int) -> str:
            answer = await client.completions.create(
                model=MODEL_NAME, prompt=f"prompt {i}", seed=i, max_tokens=20
            )
            return answer.choices[0].text

        together = await asyncio.gather(*[text(i) for i in range(32)])
        alone = [await text(i) for i in range(32)]
    assert together == alone
    assert len(set(alone)) == 32
