"""What is sent for a planned request: its own text, or a conversation that goes on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

from trimtab.bench.load_target import Endpoint, Route
from trimtab.workloads.requests import Piece, PlannedRequest, Workload

# The text of a prompt that is made of pieces.
MakeText = Callable[[Sequence[Piece]], str]
History = str | list[dict[str, Any]]
WARM_UP_KEY = "warm-up/"


def route_of(workload: Workload, asked: Route) -> Literal["chat", "completions"]:
    """`auto`: chat for messages and for texts with several turns, else completions."""
    if asked != "auto":
        return asked
    requests = workload.requests
    chats = any(one.messages is not None for one in requests)
    talks = any(one.text is not None and one.follows is not None for one in requests)
    return "chat" if chats or talks else "completions"


class Prompts:
    """Prompts for one route."""

    def __init__(self, endpoint: Endpoint, make_text: MakeText) -> None:
        self._endpoint = endpoint
        self._make_text = make_text

    def prompt(self, request: PlannedRequest, before: History | None = None) -> History:
        """`before`: the prompt and answer of the turn that it follows (see `after`)."""
        text = request.text
        if text is None and request.pieces:
            text = self._make_text(request.pieces)
        if self._endpoint.route == "completions":
            if request.messages is not None:
                text = "\n".join(str(one.get("content", "")) for one in request.messages)
            return (str(before) if before is not None else "") + (text or "")
        messages = list(before) if isinstance(before, list) else []
        messages += request.messages or ()
        if text is not None:
            messages.append({"role": "user", "content": text})
        return messages

    def after(self, prompt: History, answer: str) -> History:
        """The history that the next turn stands on."""
        if isinstance(prompt, str):
            return prompt + answer
        return [*prompt, {"role": "assistant", "content": answer}]

    def request_bytes(self, request: PlannedRequest, prompt: History) -> bytes:
        exactly = request.text is None and request.messages is None
        return self._endpoint.request(
            prompt, request.num_output_tokens, exactly=exactly, **request.options
        )


def warm_up_workload(workload: Workload, count: int, concurrency: int) -> Workload:
    """Prompts as long as those of the workload's first requests, which share nothing with them: a
    warm-up that filled the prefix cache with what is measured next would flatter it."""
    firsts = [one for one in workload.requests if one.follows is None][:count]
    requests = []
    for index, one in enumerate(firsts):
        length = sum(piece.length for piece in one.pieces) or one.num_prompt_tokens
        if not length:
            length = max(1, len(one.text or str(one.messages or "")) // 4)
        requests.append(
            replace(
                one,
                index=index,
                at=0.0,
                pieces=(Piece(f"{WARM_UP_KEY}{workload.seed}/{index}", length),),
                session=index,
                text=None,
                messages=None,
            )
        )
    return Workload("warm-up", tuple(requests), None, concurrency, workload.seed)
