"""One answer of an in-process model, printed as it comes, stoppable by Ctrl-C."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING

from trimtab.errors import TrimtabError

if TYPE_CHECKING:
    from trimtab.engine.llm import LLM
    from trimtab.engine.sampling_params import SamplingParams


@dataclass(frozen=True)
class Answer:
    text: str
    num_tokens: int
    finish_reason: str  # "interrupted" after Ctrl-C


def stream_answer(
    llm: LLM, prompt_ids: list[int], params: SamplingParams, show: Callable[[str], None]
) -> Answer:
    """Give each piece of text to `show` as it is final. Raises TrimtabError if the model fails.

    Ctrl-C ends the answer between two steps, never inside of one; a second one raises
    KeyboardInterrupt.
    """
    text = ""
    num_tokens = 0
    reason = "interrupted"
    with _interruptible() as interrupted, closing(llm.stream(prompt_ids, params)) as deltas:
        for delta in deltas:
            show(delta.text)
            text += delta.text
            num_tokens += len(delta.token_ids)
            if delta.finish_reason is not None:
                reason = delta.finish_reason
            elif interrupted():
                break
    if reason == "error":
        raise TrimtabError("the model could not complete this answer")
    return Answer(text, num_tokens, reason)


@contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    count = 0

    def on_interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal count
        count += 1
        if count > 1:
            raise KeyboardInterrupt

    previous = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield lambda: count > 0
    finally:
        signal.signal(signal.SIGINT, previous)
