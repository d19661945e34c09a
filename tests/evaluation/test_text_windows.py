"""Windows: every token of a text is scored once, and its bytes are counted once."""

from __future__ import annotations

from typing import Any, cast

import pytest

from trimtab import builtin
from trimtab.errors import RequestError
from trimtab.evaluation.windows import text_windows
from trimtab.tokenization import Tokenizer, load_tokenizer


class Letters:
    """A token a letter, without BOS."""

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [ord(letter) for letter in text]

    def token_bytes(self, token_id: int) -> bytes:
        return chr(token_id).encode()


LETTERS = cast(Tokenizer, Letters())


def test_windows_overlap_by_one_token_where_there_is_no_bos() -> None:
    windows = text_windows(LETTERS, ["abcdefgh", "ä", "éx"], 4)
    texts = ["".join(map(chr, window.token_ids)) for window in windows]
    assert texts == ["abcd", "defg", "gh", "éx"]
    assert [window.num_bytes for window in windows] == [3, 3, 1, 1]
    assert [window.num_scored for window in windows] == [3, 3, 1, 1]


def test_every_window_begins_with_bos_where_there_is_one() -> None:
    tokenizer = load_tokenizer(builtin.target_path())
    text = builtin.heldout_path().read_text(encoding="utf-8")[:9000]
    windows = text_windows(tokenizer, [text], 100)
    assert {window.token_ids[0] for window in windows} == {tokenizer.encode("")[0]}
    scored = [token for window in windows for token in window.token_ids[1:]]
    assert scored == tokenizer.encode(text, add_special_tokens=False)
    assert sum(window.num_bytes for window in windows) == len(text.encode())
    assert {window.num_scored for window in windows[:-1]} == {99}


@pytest.mark.parametrize("limit", [1, 3, 7, 50])
def test_a_limit_spreads_windows_over_the_text(limit: int) -> None:
    windows: list[Any] = text_windows(LETTERS, ["abcdefghijklmnopqrstuvwxyz"], 3)
    some = text_windows(LETTERS, ["abcdefghijklmnopqrstuvwxyz"], 3, limit)
    assert len(some) == min(limit, len(windows))
    places = [windows.index(window) for window in some]
    assert places == sorted(set(places))
    assert places[0] == 0
    if limit == 3:
        assert places[-1] >= len(windows) // 2


@pytest.mark.parametrize("texts", [[], [""], ["a"]])
def test_a_text_without_a_token_to_score_is_refused(texts: list[str]) -> None:
    with pytest.raises(RequestError, match="no token to score"):
        text_windows(LETTERS, texts, 8)
