"""The fields that OpenAI's and vLLM's clients send beyond the common ones."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fake_engine import EOS, MAX_CONTEXT, VOCAB_SIZE
from live import Live

from trimtab import LLM

TEXT, CHAT = "/v1/completions", "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "hi"}]


def ask(server: Live, path: str = TEXT, **fields: Any) -> Any:
    """The answer; from `prompt` or, for a chat, from one user message."""
    body = {"prompt": "hi"} if path == TEXT else {"messages": MESSAGES}
    response = server.post(path, json=body | fields)
    assert response.status_code == 200, response.text
    return response.json()


def mean_logprob(choice: dict[str, Any]) -> float:
    logprobs = choice["logprobs"]["token_logprobs"]
    return math.fsum(logprobs) / len(logprobs)


def test_best_of_are_the_likeliest_of_n(real: Live) -> None:
    fields = {"prompt": ["one", "two"], "max_tokens": 8, "seed": 4, "logprobs": 1}
    all_choices = ask(real, n=6, **fields)["choices"]
    best = ask(real, n=2, best_of=6, **fields)
    assert [choice["index"] for choice in best["choices"]] == [0, 1, 2, 3]
    for prompt in (0, 1):
        group = all_choices[6 * prompt : 6 * prompt + 6]
        expected = sorted(group, key=mean_logprob, reverse=True)[:2]
        found = best["choices"][2 * prompt : 2 * prompt + 2]
        assert [c["text"] for c in found] == [c["text"] for c in expected]
        assert [c["logprobs"] for c in found] == [c["logprobs"] for c in expected]
    assert best["usage"]["completion_tokens"] == sum(
        len(choice["logprobs"]["tokens"]) - (choice["finish_reason"] == "stop")
        for choice in all_choices
    )
    del fields["logprobs"]
    silent = ask(real, n=2, best_of=6, **fields)["choices"]
    assert [c["text"] for c in silent] == [c["text"] for c in best["choices"]]
    assert all(c["logprobs"] is None for c in silent)
    echoed = ask(real, n=2, best_of=6, echo=True, logprobs=1, **fields)["choices"]
    assert [c["text"][3:] for c in echoed] == [c["text"] for c in best["choices"]]


def test_best_of_n_is_n_in_its_order(server: Live) -> None:
    assert ask(server, n=3, best_of=3, seed=1)["choices"] == ask(server, n=3, seed=1)["choices"]


@pytest.mark.parametrize("path", [TEXT, CHAT])
def test_prompt_logprobs(real: Live, model: Path, path: str) -> None:
    answer = ask(real, path, prompt_logprobs=3, return_token_ids=True, max_tokens=2, n=2)
    if path == TEXT:
        ids = answer["choices"][0]["prompt_token_ids"]
        found = answer["choices"][0]["prompt_logprobs"]
        assert answer["choices"][1]["prompt_logprobs"] == found
    else:
        ids, found = answer["prompt_token_ids"], answer["prompt_logprobs"]
    with LLM(str(model), weights="f32", threads=1) as llm:
        (expected,) = llm.score([ids])
    assert found[0] is None
    assert len(found) == len(ids) == len(expected) + 1
    for token_id, logprob, place in zip(ids[1:], expected, found[1:], strict=True):
        assert place[str(token_id)]["logprob"] == logprob
        assert place[str(token_id)]["decoded_token"] == (
            "<eos>" if token_id == EOS else bytes([token_id]).decode(errors="replace")
        )
        ranked = {one["rank"]: one["logprob"] for one in place.values() if one["rank"]}
        assert list(ranked) == [1, 2, 3]
        assert list(ranked.values()) == sorted(ranked.values(), reverse=True)
        assert len(place) == (3 if place[str(token_id)]["rank"] else 4)


def test_many_prompt_logprobs(server: Live) -> None:
    """So many are formatted in a thread of their own."""
    answer = ask(server, prompt="x" * 1900, prompt_logprobs=20, max_tokens=1)
    places = answer["choices"][0]["prompt_logprobs"]
    assert [len(place or ()) for place in places] == [0] + [20] * 1899


def test_prompt_logprobs_beside_an_echo_with_logprobs(real: Live) -> None:
    fields = {"echo": True, "max_tokens": 3, "seed": 1}
    plain = ask(real, logprobs=1, **fields)["choices"][0]
    both = ask(real, logprobs=1, prompt_logprobs=5, **fields)["choices"][0]
    assert both["logprobs"] == plain["logprobs"]
    assert [len(place or ()) >= 5 for place in both["prompt_logprobs"]] == [False, True]
    nothing = ask(real, prompt_logprobs=0, echo=True, max_tokens=0)["choices"][0]
    assert nothing["prompt_logprobs"][1].keys() == {str(ord("i"))}


def test_token_ids_that_are_allowed(real: Live) -> None:
    """Whoever else is in the batch."""
    allowed = [*b"abc", EOS]
    fields = {"allowed_token_ids": allowed, "max_tokens": 30, "seed": 3}

    def text(fields: dict[str, Any]) -> str:
        return ask(real, **fields)["choices"][0]["text"]  # type: ignore[no-any-return]

    alone = text(fields)
    assert alone
    assert set(alone) <= set("abc")
    with ThreadPoolExecutor(8) as pool:
        others = [fields, {"seed": 5}, {"allowed_token_ids": [*b"xyz"], "seed": 3}] * 4
        texts = list(pool.map(text, others))
    assert set(texts[::3]) == {alone}
    assert set("".join(texts[2::3])) <= set("xyz")
    ended = ask(real, CHAT, allowed_token_ids=[EOS], max_tokens=5)["choices"][0]
    assert (ended["message"]["content"], ended["finish_reason"]) == ("", "stop")


def test_bad_words_do_not_come(real: Live) -> None:
    fields = {"max_tokens": 60, "seed": 3, "ignore_eos": True, "allowed_token_ids": [*b"ab "]}
    free = ask(real, **fields)["choices"][0]["text"]
    words = ["aa", "bab", "b b"]
    assert any(word in free for word in words)
    for path in (TEXT, CHAT):
        choice = ask(real, path, bad_words=words, **fields)["choices"][0]
        text = choice["text"] if path == TEXT else choice["message"]["content"]
        assert len(text) == 60
        assert not any(word in text for word in words)


def test_a_long_prompt_is_cut_from_its_start(server: Live) -> None:
    def content(**fields: Any) -> tuple[str, int]:
        answer = ask(server, temperature=0, **fields)
        return answer["choices"][0]["text"], answer["usage"]["prompt_tokens"]

    short = content(prompt="tail")
    for prompt in ("a long prompt and its tail", list(b"a long tail")):
        assert content(prompt=prompt, truncate_prompt_tokens=4) == short
    assert content(prompt="tail", truncate_prompt_tokens=400) == short
    _, size = content(prompt="x" * 5000, truncate_prompt_tokens=-1, max_tokens=10)
    assert size == MAX_CONTEXT - 10
    _, size = content(prompt=[65] * 5000, truncate_prompt_tokens=-1, max_tokens=10)
    assert size == MAX_CONTEXT - 10
    echoed = ask(server, prompt="the tail", truncate_prompt_tokens=4, echo=True, logprobs=1)
    choice = echoed["choices"][0]
    assert choice["text"].startswith("tail")
    assert choice["logprobs"]["text_offset"][:5] == [0, 1, 2, 3, 4]
    chat = ask(server, CHAT, truncate_prompt_tokens=5, max_tokens=1)
    assert chat["usage"]["prompt_tokens"] == 5


def test_special_tokens_of_a_prompt_and_of_an_answer(builtin_server: Live) -> None:
    live = builtin_server
    for special in (True, False):
        ids = live.post("/tokenize", json={"prompt": "x", "add_special_tokens": special})
        answer = ask(live, prompt="x", add_special_tokens=special, return_token_ids=True)
        assert answer["choices"][0]["prompt_token_ids"] == ids.json()["tokens"]
    model_ids = live.post("/tokenize", json={"prompt": ""}).json()["tokens"]
    shown = {}
    for skip in (True, False):
        fields = {"allowed_token_ids": model_ids[:1], "max_tokens": 2, "ignore_eos": True}
        answer = ask(live, skip_special_tokens=skip, **fields)
        shown[skip] = answer["choices"][0]["text"]
    name = live.post("/detokenize", json={"tokens": model_ids[:1]}).json()["prompt"]
    assert shown == {True: "", False: name * 2}


def test_stop_reason(server: Live) -> None:
    full = ask(server, temperature=0, max_tokens=40)["choices"][0]
    assert (full["finish_reason"], full["stop_reason"]) == ("length", None)
    stop = full["text"][10:13]
    for path in (TEXT, CHAT):
        text = ask(server, path, temperature=0, max_tokens=40)["choices"][0]
        stop = (text["text"] if path == TEXT else text["message"]["content"])[10:13]
        fields = {"temperature": 0, "max_tokens": 40, "stop": ["never", stop]}
        choice = ask(server, path, **fields)["choices"][0]
        assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", stop)
    choice = ask(server, prompt="EOS")["choices"][0]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", None)


def test_stop_reason_is_the_stop_token(real: Live) -> None:
    fields = {"temperature": 0, "max_tokens": 20, "ignore_eos": True, "return_token_ids": True}
    ids = ask(real, **fields)["choices"][0]["token_ids"]
    stop = next(token_id for token_id in ids[3:] if token_id not in ids[:3])
    choice = ask(real, stop_token_ids=[stop], **fields)["choices"][0]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", stop)
    assert choice["token_ids"] == ids[: ids.index(stop) + 1]
    both = ask(real, stop_token_ids=[EOS], logit_bias={str(EOS): 100})["choices"][0]
    assert (both["finish_reason"], both["stop_reason"]) == ("stop", None)


@pytest.mark.parametrize("path", [TEXT, CHAT])
def test_token_ids_streamed_and_whole(server: Live, path: str) -> None:
    body = {"prompt": "UTF8 x"} if path == TEXT else {"messages": MESSAGES}
    fields = body | {"return_token_ids": True, "max_tokens": 13, "seed": 2, "n": 2}
    whole = ask(server, path, **fields)
    client = server.openai()
    make: Any = client.completions if path == TEXT else client.chat.completions
    prompt_ids: list[Any] = []
    token_ids: list[list[int]] = [[], []]
    for chunk in make.create(model="fake-model", stream=True, **_for_sdk(fields)):
        prompt_ids.append(getattr(chunk, "prompt_token_ids", None))
        for choice in chunk.choices:
            prompt_ids.append(getattr(choice, "prompt_token_ids", None))
            token_ids[choice.index] += getattr(choice, "token_ids", None) or []
    assert token_ids == [choice["token_ids"] for choice in whole["choices"]]
    expected = whole["choices"][0]["prompt_token_ids"] if path == TEXT else None
    expected = expected or whole["prompt_token_ids"]
    found = [ids for ids in prompt_ids if ids is not None]
    assert found == [expected] * (2 if path == TEXT else 1)
    assert len(expected) == whole["usage"]["prompt_tokens"]


def _for_sdk(fields: dict[str, Any]) -> dict[str, Any]:
    known = {k: v for k, v in fields.items() if k != "return_token_ids"}
    return known | {"extra_body": {"return_token_ids": True}}


def test_tokens_as_token_ids(server: Live) -> None:
    fields = {"return_tokens_as_token_ids": True, "max_tokens": 3, "temperature": 0}
    text = ask(server, logprobs=1, **fields)["choices"][0]
    expected = [f"token_id:{ord(c)}" for c in text["text"]]
    assert text["logprobs"]["tokens"] == expected
    assert text["logprobs"]["top_logprobs"][0].keys() == {expected[0], "token_id:97"}
    chat = ask(server, CHAT, logprobs=True, top_logprobs=1, **fields)["choices"][0]
    assert [one["token"] for one in chat["logprobs"]["content"]] == [
        f"token_id:{ord(c)}" for c in chat["message"]["content"]
    ]


def test_an_echo_of_a_chat_is_its_last_words(server: Live) -> None:
    begun = [*MESSAGES, {"role": "assistant", "content": "Well, "}]
    fields = {"messages": begun, "temperature": 0, "max_tokens": 4}
    plain = ask(server, CHAT, **fields)["choices"][0]["message"]["content"]
    assert ask(server, CHAT, echo=True, **fields)["choices"][0]["message"]["content"] == (
        "Well, " + plain
    )
    with server.openai().chat.completions.create(
        model="fake-model", stream=True, extra_body={"echo": True}, **fields
    ) as stream:
        text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert text == "Well, " + plain
    alone = ask(server, CHAT, temperature=0, max_tokens=4)["choices"][0]["message"]["content"]
    echoed = ask(server, CHAT, echo=True, temperature=0, max_tokens=4)["choices"][0]
    assert echoed["message"]["content"] == alone


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    (TEXT, {"best_of": 0}, "best_of"),
    (TEXT, {"best_of": 129}, "best_of"),
    (TEXT, {"n": 3, "best_of": 2}, "best_of"),
    (TEXT, {"best_of": 2, "stream": True}, "best_of"),
    (TEXT, {"prompt": ["a"] * 100, "best_of": 3}, "n"),
    (TEXT, {"add_special_tokens": "no"}, "add_special_tokens"),
    (CHAT, {"add_special_tokens": True}, "add_special_tokens"),
]
for route in (TEXT, CHAT):
    REFUSED += [
        (route, {"prompt_logprobs": -1}, "prompt_logprobs"),
        (route, {"prompt_logprobs": 21}, "prompt_logprobs"),
        (route, {"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
        (route, {"allowed_token_ids": []}, "allowed_token_ids"),
        (route, {"allowed_token_ids": [VOCAB_SIZE]}, "allowed_token_ids"),
        (route, {"allowed_token_ids": [1] * (VOCAB_SIZE + 1)}, "allowed_token_ids"),
        (route, {"bad_words": [""]}, "bad_words"),
        (route, {"bad_words": ["x"] * 65}, "bad_words"),
        (route, {"bad_words": ["x" * 129]}, "bad_words"),
        (route, {"bad_words": "x"}, "bad_words"),
        (route, {"bad_words": ["a"], "allowed_token_ids": [97]}, "bad_words"),
        (route, {"truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
        (route, {"truncate_prompt_tokens": -2}, "truncate_prompt_tokens"),
        (route, {"spaces_between_special_tokens": False}, "spaces_between_special_tokens"),
        (route, {"skip_special_tokens": 1}, "skip_special_tokens"),
    ]


@pytest.mark.parametrize(("path", "fields", "param"), REFUSED)
def test_refusals(server: Live, path: str, fields: dict[str, Any], param: str) -> None:
    body = {"prompt": "hi"} if path == TEXT else {"messages": MESSAGES}
    response = server.post(path, json=body | fields)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param


def test_what_leaves_no_token_to_choose_is_refused(real: Live) -> None:
    body = {"prompt": "hi", "allowed_token_ids": [EOS], "min_tokens": 2, "max_tokens": 4}
    response = real.post(TEXT, json=body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "allowed_token_ids"
