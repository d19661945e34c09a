"""A server that guesses gives the answers of one that does not: stops, choices, logprobs, usage."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from live import HERE, Live, end, serve_command, start, wait_until

from trimtab.builtin import heldout_path

PROMPT_CHARACTERS = 500


@pytest.fixture(scope="module")
def plain() -> Iterator[Live]:
    options = ("--json", "--threads", "1", "--weights", "int8", "--speculative", "off")
    live = start(serve_command("builtin", *options))
    yield live
    end(live)


@pytest.fixture(scope="module", params=["lookup", "draft", "heads", "lookup+heads+draft"])
def guessing(request: pytest.FixtureRequest) -> Iterator[Live]:
    live = start([sys.executable, str(HERE / "serve_guessing.py"), request.param])
    yield live
    wait_until(lambda: _has_drafted(live))
    end(live)


def _prompts(count: int) -> list[str]:
    text = heldout_path().read_text(encoding="utf-8")
    starts = range(0, count * 5000, 5000)
    return [text[start : start + PROMPT_CHARACTERS] for start in starts]


def _answer(live: Live, route: str, body: dict[str, Any]) -> tuple[Any, Any]:
    """Choices and usage; a prompt's cached tokens are a matter of what came before."""
    response = live.post(route, json=body)
    assert response.status_code == 200, response.text
    found = response.json()
    found["usage"].pop("prompt_tokens_details", None)
    return found["choices"], found["usage"]


def _streamed(live: Live, route: str, body: dict[str, Any]) -> dict[int, tuple[str, Any]]:
    """Text and finish reason of each choice, from its events."""
    texts: dict[int, str] = {}
    reasons: dict[int, Any] = {}
    response = live.post(route, json=body | {"stream": True})
    for line in response.text.splitlines():
        if not line.startswith("data: ") or line == "data: [DONE]":
            continue
        for choice in json.loads(line[len("data: ") :])["choices"]:
            index = choice["index"]
            piece = choice["text"] if "text" in choice else choice["delta"].get("content")
            texts[index] = texts.get(index, "") + (piece or "")
            reasons[index] = choice["finish_reason"] or reasons.get(index)
    return {index: (text, reasons[index]) for index, text in texts.items()}


def _has_drafted(live: Live) -> bool:
    """Guesses were verified: counts come with a heartbeat."""
    return sum(live.get("/stats").json()["speculation"]["drafted_by_position"]) > 0


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_stop_strings(plain: Live, guessing: Live, temperature: float) -> None:
    reasons = set()
    for number, prompt in enumerate(_prompts(6)):
        body: dict[str, Any] = {
            "prompt": prompt,
            "max_tokens": 64,
            "temperature": temperature,
            "seed": number,
            "stop": [["\n\n"], ["self.", "if "], ["e", "\n    "], [":\n"]][number % 4],
            "include_stop_str_in_output": number % 2 == 0,
            "logprobs": 2,
        }
        choices, usage = _answer(plain, "/v1/completions", body)
        assert _answer(guessing, "/v1/completions", body) == (choices, usage)
        expected = {c["index"]: (c["text"], c["finish_reason"]) for c in choices}
        assert _streamed(guessing, "/v1/completions", body) == expected
        reasons |= {choice["finish_reason"] for choice in choices}
    assert "stop" in reasons


def test_three_choices(plain: Live, guessing: Live) -> None:
    for number, prompt in enumerate(_prompts(5)):
        body: dict[str, Any] = {
            "prompt": prompt,
            "n": 3,
            "max_tokens": 48,
            "temperature": 0.7,
            "seed": number,
            "logprobs": 3,
            "ignore_eos": True,
        }
        if number % 2:
            body["stop"] = ["\n\n", "def "]
        choices, usage = _answer(plain, "/v1/completions", body)
        assert len({choice["text"] for choice in choices}) == 3
        assert _answer(guessing, "/v1/completions", body) == (choices, usage)
        expected = {c["index"]: (c["text"], c["finish_reason"]) for c in choices}
        assert _streamed(guessing, "/v1/completions", body) == expected


def test_chat_with_choices_and_stop_strings(plain: Live, guessing: Live) -> None:
    for number, question in enumerate(("What does os.path.join do?", "Write a function: sort.")):
        body: dict[str, Any] = {
            "messages": [{"role": "user", "content": question}],
            "n": 3,
            "max_completion_tokens": 64,
            "temperature": 0.8,
            "seed": number,
            "stop": ["the", "return"],
            "logprobs": True,
            "top_logprobs": 2,
        }
        choices, usage = _answer(plain, "/v1/chat/completions", body)
        assert _answer(guessing, "/v1/chat/completions", body) == (choices, usage)
        expected = {c["index"]: (c["message"]["content"], c["finish_reason"]) for c in choices}
        assert _streamed(guessing, "/v1/chat/completions", body) == expected
