"""/v1/embeddings: against transformers, through the openai client, in every shape."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from live import Live, end, serve_command, start, wait_until

from trimtab import builtin

TEXTS = ["def f(x):\n    return x", "what does sorted do?", "é🙂", "a" * 300]


@pytest.fixture(scope="module")
def real() -> Iterator[Live]:
    options = ("--json", "--threads", "1", "--weights", "f32", "--kv-cache", "f32")
    live = start(serve_command("builtin", *options))
    yield live
    end(live)


@pytest.fixture(scope="module")
def expected() -> list[Any]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(builtin.target_path())
    model = transformers.AutoModelForCausalLM.from_pretrained(
        builtin.target_path(), dtype=torch.float32
    )
    with torch.inference_mode():
        states = [
            model.model(torch.tensor([tokenizer.encode(text)])).last_hidden_state[0, -1].double()
            for text in TEXTS
        ]
    return [(state / state.norm()).numpy() for state in states]


def test_the_last_hidden_state_of_transformers_at_length_one(
    real: Live, expected: list[Any]
) -> None:
    client = real.openai()
    # the client asks for base64 by itself, and decodes it
    answer = client.embeddings.create(model="builtin", input=TEXTS)
    assert [one.index for one in answer.data] == [0, 1, 2, 3]
    for one, vector in zip(answer.data, expected, strict=True):
        assert np.array(one.embedding) == pytest.approx(vector, abs=1e-5)
        assert np.linalg.norm(one.embedding) == pytest.approx(1, abs=1e-6)
    counts = [real.post("/tokenize", json={"prompt": text}).json()["count"] for text in TEXTS]
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == sum(counts)


def test_the_same_bits_in_every_shape_and_company(real: Live) -> None:
    ids = [real.post("/tokenize", json={"prompt": text}).json()["tokens"] for text in TEXTS]

    def ask(given: Any, encoding: str = "float") -> list[Any]:
        body = {"input": given, "encoding_format": encoding}
        return [one["embedding"] for one in real.post("/v1/embeddings", json=body).json()["data"]]

    together = ask(TEXTS * 20)
    assert together == ask(TEXTS) * 20
    assert [ask(text)[0] for text in TEXTS] == together[:4]
    assert ask(ids) == together[:4]
    assert ask(ids[0]) == together[:1]
    packed = np.frombuffer(base64.b64decode(ask(TEXTS[1], "base64")[0]), "<f4")
    assert packed.tolist() == np.float32(together[1]).tolist()


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "input"),
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a", ""]}, "input"),
        ({"input": ["a", 3]}, "input"),
        ({"input": [[-1]]}, "input"),
        ({"input": [1 << 40]}, "input"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format"),
        ({"input": "a", "dimensions": 5}, "dimensions"),
        ({"input": ["a"] * 2049}, "input"),
    ],
)
def test_what_cannot_be_embedded(real: Live, body: dict[str, Any], param: str) -> None:
    answer = real.post("/v1/embeddings", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


def test_an_input_beyond_the_context(real: Live) -> None:
    answer = real.post("/v1/embeddings", json={"input": ["fine", "a b " * 4000]})
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "context_length_exceeded"
    assert real.post("/v1/embeddings", json={"input": "fine"}).status_code == 200


def test_a_timeout_ends_it_and_frees_the_engine(real: Live) -> None:
    """Thousands of tokens, and no time for them."""
    body = {"input": [f"{number} def value(self):" * 60 for number in range(64)], "timeout": 0.05}
    answer = real.post("/v1/embeddings", json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (408, "timeout")
    wait_until(lambda: real.get("/stats").json()["num_running"] == 0, seconds=3)
    stats = real.get("/stats").json()
    assert stats["num_waiting"] == 0
    assert stats["num_free_blocks"] == stats["num_blocks"]
    assert real.post("/v1/embeddings", json={"input": "fine", "timeout": 20}).status_code == 200
    for wrong in (0, -1, "soon"):
        answer = real.post("/v1/embeddings", json={"input": "fine", "timeout": wrong})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "timeout")
