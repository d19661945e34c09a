"""Log-probabilities of prompts, as the legacy completions API gives them and as evaluation
harnesses read them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fake_engine import EOS, MODEL_NAME, byte_tokenizer
from live import Live

from trimtab import LLM, SamplingParams
from trimtab.server.prompts import token_offsets
from trimtab.tokenization import Tokenizer, load_tokenizer

TEXT = "/v1/completions"


def harness_score(choice: dict[str, Any], context: int) -> tuple[float, bool]:
    """What lm-eval's local-completions client makes of a choice: of the tokens behind the context,
    but for the one generated token at the end, the sum of the logprobs and whether each of them is
    the most likely."""
    logprobs = choice["logprobs"]
    tokens = logprobs["token_logprobs"][context:-1]
    tops = logprobs["top_logprobs"][context:-1]
    return sum(tokens), all(own == max(top.values()) for own, top in zip(tokens, tops, strict=True))


def test_the_shape_of_an_echo(server: Live) -> None:
    answer = server.openai().completions.create(
        model=MODEL_NAME, prompt="héy", echo=True, logprobs=2, max_tokens=2, temperature=0
    )
    (choice,) = answer.choices
    found = choice.logprobs
    assert found is not None
    assert choice.text[:3] == "héy"
    assert found.tokens == ["h", "bytes:\\xc3", "bytes:\\xa9", "y", *choice.text[3:]]
    assert found.text_offset == [0, 1, 1, 2, 3, 4]
    assert found.token_logprobs == [None, -1, -2, -3, -0.5, -0.5]
    assert found.top_logprobs is not None
    assert found.top_logprobs[:3] == [
        None,
        {"x": -0.5, "y": -1.5, "bytes:\\xc3": -1},
        {"x": -0.5, "y": -1.5, "bytes:\\xa9": -2},
    ]
    assert found.top_logprobs[3] == {"x": -0.5, "y": -1.5}  # the token is among the most likely
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (4, 2)


def test_nothing_but_the_prompt(server: Live) -> None:
    for fields in ({"logprobs": 0}, {"logprobs": 1}, {}):
        body = {"prompt": [list(b"ab"), list(b"xyz")], "echo": True, "max_tokens": 0} | fields
        answer = server.post(TEXT, json=body).json()
        assert [choice["text"] for choice in answer["choices"]] == ["ab", "xyz"]
        assert [choice["finish_reason"] for choice in answer["choices"]] == ["length"] * 2
        assert answer["usage"]["completion_tokens"] == 0
        for choice, size in zip(answer["choices"], (2, 3), strict=True):
            if not fields:
                assert choice["logprobs"] is None
                continue
            assert choice["logprobs"]["token_logprobs"] == [None, -1.0, -2.0][:size]
            assert choice["logprobs"]["text_offset"] == [0, 1, 2][:size]
            tops = choice["logprobs"]["top_logprobs"]
            assert tops is None if not fields["logprobs"] else tops[0] is None


def test_an_end_token_is_among_the_tokens_and_no_text(server: Live) -> None:
    fields = {"model": MODEL_NAME, "prompt": "EOS", "max_tokens": 9, "logprobs": 1, "echo": True}
    choice = server.openai().completions.create(**fields).choices[0]  # type: ignore[call-overload]
    assert choice.logprobs.tokens[-1] == "<eos>"
    assert "".join(choice.logprobs.tokens[:-1]) == choice.text
    assert choice.logprobs.token_logprobs[-1] == -0.125
    assert choice.logprobs.text_offset[-1] == len(choice.text) == 6


def test_a_stream_is_the_whole_in_pieces(server: Live) -> None:
    body = {
        "model": MODEL_NAME,
        "prompt": ["one", "EOS"],
        "n": 2,
        "seed": 3,
        "echo": True,
        "logprobs": 2,
        "max_tokens": 5,
    }
    client = server.openai()
    whole = client.completions.create(**body).choices  # type: ignore[call-overload]
    texts, tokens, offsets = ([[] for _ in whole] for _ in range(3))
    for chunk in client.completions.create(**body, stream=True):  # type: ignore[call-overload]
        (choice,) = chunk.choices
        texts[choice.index].append(choice.text)
        tokens[choice.index] += choice.logprobs.token_logprobs
        offsets[choice.index] += choice.logprobs.text_offset
    for index, choice in enumerate(whole):
        assert "".join(texts[index]) == choice.text
        assert tokens[index] == choice.logprobs.token_logprobs
        assert offsets[index] == choice.logprobs.text_offset


def test_scores_are_those_in_process(real: Live, model: Path) -> None:
    """As text and as token ids, alone and together, whatever was cached before."""
    prompts = [f"the prompt with the number {i}: " * 3 for i in range(6)]
    with LLM(str(model), weights="f32", threads=2) as llm:
        expected = llm.score(prompts)
    body = {"max_tokens": 1, "temperature": 0, "logprobs": 1, "echo": True, "seed": 1234}
    real.post(TEXT, json={"prompt": prompts, "max_tokens": 1})
    together = real.post(TEXT, json=body | {"prompt": [list(p.encode()) for p in prompts]}).json()
    for index, choice in enumerate(together["choices"]):
        (alone,) = real.post(TEXT, json=body | {"prompt": prompts[index]}).json()["choices"]
        assert choice == alone | {"index": index}
        found = choice["logprobs"]["token_logprobs"]
        assert found[0] is None
        assert found[1 : len(prompts[index])] == expected[index]
        assert harness_score(choice, 5) == (sum(expected[index][4:]), False)


def test_a_greedy_continuation_is_seen_as_greedy(real: Live, model: Path) -> None:
    """Also where the one token generated behind it is an end token."""
    with LLM(str(model), weights="f32", threads=2) as llm:
        params = SamplingParams(max_tokens=12, temperature=0, ignore_eos=True)
        (result,) = llm.generate("begin", params)
    for bias in ({}, {str(EOS): 100}):
        body = {"max_tokens": 1, "temperature": 0, "logprobs": 1, "echo": True, "logit_bias": bias}
        ids = list(b"begin") + result.outputs[0].token_ids
        (choice,) = real.post(TEXT, json=body | {"prompt": ids}).json()["choices"]
        assert len(choice["logprobs"]["tokens"]) == len(ids) + 1
        score, is_greedy = harness_score(choice, len(b"begin"))
        assert is_greedy
        assert score < 0
        ids[-1] ^= 1
        (choice,) = real.post(TEXT, json=body | {"prompt": ids}).json()["choices"]
        assert not harness_score(choice, len(b"begin"))[1]


def test_the_longest_prompt_that_can_be_scored(real: Live) -> None:
    body = {"prompt": "x" * 512, "max_tokens": 0, "echo": True, "logprobs": 0}
    answer = real.post(TEXT, json=body).json()
    assert len(answer["choices"][0]["logprobs"]["tokens"]) == 512
    for longer in (body | {"prompt": "x" * 513}, body | {"max_tokens": 1}):
        error = real.post(TEXT, json=longer).json()["error"]
        assert error["code"] == "context_length_exceeded"


@pytest.mark.parametrize("text", ["a b", "é🙂", "<eos>x", "x<eos>y"])
def test_offsets_of_texts(text: str) -> None:
    tokenizer = byte_tokenizer()
    check_offsets(tokenizer, text)


@pytest.mark.parametrize("text", ["def f(x):\n    return x", "  é", "<|user|>hi<|end|>"])
def test_offsets_behind_a_token_that_the_tokenizer_puts_first(text: str) -> None:
    from trimtab import builtin

    tokenizer = load_tokenizer(builtin.target_path())
    assert tokenizer.encode(text)[0] == tokenizer.bos_token_id
    check_offsets(tokenizer, text)


def check_offsets(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    offsets = [len(text) + offset for offset in token_offsets(tokenizer, ids, text, True)]
    assert offsets == sorted(offsets)
    raw = text.encode()
    for token_id, offset in zip(ids, offsets, strict=True):
        token = tokenizer.token_bytes(token_id)
        place = len(text[:offset].encode())
        if token_id != tokenizer.bos_token_id:
            assert raw[place : place + len(token)] == token or token[0] >= 0x80
    plain = tokenizer.decode(ids)
    offsets = token_offsets(tokenizer, ids, plain, False)
    for token_id, offset, after in zip(ids, offsets, [*offsets[1:], 0], strict=True):
        assert (token_id in tokenizer.special_ids) <= (offset == after)
