"""A text as windows of tokens, each token scored exactly once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trimtab.errors import RequestError
from trimtab.tokenization import Tokenizer


@dataclass(frozen=True)
class Window:
    """All tokens but the first are scored, given those before them in the window."""

    token_ids: list[int]
    num_bytes: int  # of the text of the scored tokens

    @property
    def num_scored(self) -> int:
        return len(self.token_ids) - 1


def text_windows(
    tokenizer: Tokenizer, texts: Sequence[str], length: int, limit: int = 0
) -> list[Window]:
    """Windows of up to `length` tokens of each text, which is a document of its own.

    Where the tokenizer begins a text with a special token (BOS), every window does, and every token
    of the text is scored. Elsewhere the last token of a window is the first of the next, and only
    the first of a text goes unscored. With a `limit`, so many windows, evenly spread over all.

    Raises RequestError if no text has a token to score, or for one that is not valid Unicode.
    """
    opening = tokenizer.encode("")[:1]
    windows = []
    for text in texts:
        ids = tokenizer.encode(text, add_special_tokens=False)
        step = length - 1
        first = 0 if opening else 1
        for start in range(first, len(ids), step):
            scored = ids[start : start + step]
            context = opening or [ids[start - 1]]
            size = sum(len(tokenizer.token_bytes(token)) for token in scored)
            windows.append(Window(context + scored, size))
    if not windows:
        raise RequestError("the text has no token to score: use a longer one")
    if 0 < limit < len(windows):
        windows = [windows[index * len(windows) // limit] for index in range(limit)]
    return windows
