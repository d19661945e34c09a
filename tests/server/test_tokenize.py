"""/tokenize, /detokenize, /version and /v1/models, against the tokenizer itself."""

from __future__ import annotations

from typing import Any

import pytest
import transformers
from fake_engine import EOS, MAX_CONTEXT, MODEL_NAME, VOCAB_SIZE
from live import Live

import trimtab
from trimtab import builtin

CHAT = [{"role": "user", "content": "what does sorted do?"}]


def test_texts_are_tokenized_as_transformers_does(builtin_server: Live) -> None:
    oracle = transformers.AutoTokenizer.from_pretrained(builtin.target_path())
    for text in ("def f(x):\n    return x", "é🙂", "<|user|>hi", " ", ""):
        for special in (True, False, None):
            body: dict[str, Any] = {"prompt": text, "return_token_strs": True}
            if special is not None:
                body["add_special_tokens"] = special
            answer = builtin_server.post("/tokenize", json=body).json()
            assert answer["tokens"] == oracle.encode(text, add_special_tokens=special is not False)
            assert answer["count"] == len(answer["tokens"])
            assert answer["token_strs"] == oracle.convert_ids_to_tokens(answer["tokens"])
            back = builtin_server.post("/detokenize", json={"tokens": answer["tokens"]}).json()
            assert back == {"prompt": oracle.decode(answer["tokens"])}
    card = builtin_server.get("/v1/models").json()["data"][0]
    assert card["max_model_len"] == answer["max_model_len"]


def test_messages_are_tokenized_as_they_are_answered(builtin_server: Live) -> None:
    oracle = transformers.AutoTokenizer.from_pretrained(builtin.target_path())
    for generation_prompt in (True, False):
        body = {"messages": CHAT, "add_generation_prompt": generation_prompt}
        answer = builtin_server.post("/tokenize", json=body).json()
        text = oracle.apply_chat_template(
            CHAT, add_generation_prompt=generation_prompt, tokenize=False
        )
        assert answer["tokens"] == oracle.encode(text, add_special_tokens=False)
        assert answer["token_strs"] is None
    ids = builtin_server.post("/tokenize", json={"messages": CHAT}).json()["tokens"]
    fields = {"temperature": 0, "max_tokens": 12}
    chat = builtin_server.post("/v1/chat/completions", json={"messages": CHAT} | fields).json()
    plain = builtin_server.post("/v1/completions", json={"prompt": ids} | fields).json()
    assert plain["choices"][0]["text"] == chat["choices"][0]["message"]["content"]
    assert plain["usage"]["prompt_tokens"] == chat["usage"]["prompt_tokens"] == len(ids)


def test_token_ids_that_a_text_cannot_make(server: Live) -> None:
    answer = server.post("/detokenize", json={"tokens": [104, EOS, 105, 0xC3], "model": MODEL_NAME})
    assert answer.json() == {"prompt": "h<eos>i�"}
    assert server.post("/detokenize", json={"tokens": []}).json() == {"prompt": ""}
    assert server.post("/detokenize", json={"tokens": [VOCAB_SIZE - 1]}).json() == {"prompt": ""}


REFUSED: list[tuple[str, dict[str, Any], str | None]] = [
    ("/tokenize", {}, "prompt"),
    ("/tokenize", {"prompt": "a", "messages": CHAT}, "prompt"),
    ("/tokenize", {"prompt": ["a"]}, "prompt"),
    ("/tokenize", {"prompt": "x" * (MAX_CONTEXT * 128 + 1)}, "prompt"),
    ("/tokenize", {"messages": []}, "messages"),
    ("/tokenize", {"messages": [{"role": "wizard", "content": "x"}]}, "messages"),
    ("/tokenize", {"messages": CHAT, "add_special_tokens": True}, "add_special_tokens"),
    ("/tokenize", {"messages": CHAT, "chat_template": "{{ 1 }}"}, "chat_template"),
    ("/tokenize", {"messages": CHAT, "tools": "f"}, "tools"),
    ("/detokenize", {}, "tokens"),
    ("/detokenize", {"tokens": [-1]}, "tokens"),
    ("/detokenize", {"tokens": [VOCAB_SIZE]}, "tokens"),
    ("/detokenize", {"tokens": ["a"]}, "tokens"),
    ("/detokenize", {"tokens": [0] * ((1 << 20) + 1)}, "tokens"),
]


@pytest.mark.parametrize(("path", "body", "param"), REFUSED)
def test_refusals(server: Live, path: str, body: dict[str, Any], param: str | None) -> None:
    response = server.post(path, json=body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


def test_another_model(server: Live) -> None:
    for path in ("/tokenize", "/detokenize"):
        response = server.post(path, json={"model": "other", "prompt": "a", "tokens": [1]})
        assert response.status_code == 404
        assert response.json()["error"]["code"] == "model_not_found"


def test_version_and_models(server: Live) -> None:
    assert server.get("/version").json() == {"version": trimtab.__version__}
    (card,) = server.get("/v1/models").json()["data"]
    assert card == server.get(f"/v1/models/{MODEL_NAME}").json()
    assert (
        card.items()
        >= {
            "id": MODEL_NAME,
            "object": "model",
            "owned_by": "trimtab",
            "root": MODEL_NAME,
            "parent": None,
            "max_model_len": MAX_CONTEXT,
        }.items()
    )
