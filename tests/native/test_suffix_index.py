"""The suffix index against a search through the text."""

from __future__ import annotations

from array import array

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab._native import (
    SUFFIX_MAX_HOPS,
    TEXT_SEPARATOR,
    SuffixCursor,
    SuffixIndex,
    TextLookup,
    look_up,
)

LIMIT = 12

texts = st.integers(1, 4).flatmap(
    lambda letters: st.lists(st.integers(0, letters - 1), max_size=60)
)


def index_of(tokens: list[int]) -> SuffixIndex:
    index = SuffixIndex()
    index.extend(array("i", tokens))
    return index


def ends(text: list[int], string: list[int]) -> list[int]:
    """Where occurrences of `string` end, ascending."""
    size = len(string)
    return [end for end in range(size, len(text) + 1) if text[end - size : end] == string]


def longest(text: list[int], suffix_of: list[int], before: int) -> tuple[int, list[int]]:
    """Length of the longest suffix with occurrences in text that end at `before` or earlier."""
    for length in range(len(suffix_of), 0, -1):
        found = [end for end in ends(text, suffix_of[-length:]) if end <= before]
        if found:
            return length, found
    return 0, []


def evidence_for(text: list[int], string: list[int], token: int) -> tuple[int, int, bool, bool]:
    """What the occurrences of `string` that have something after them say about `token` there."""
    following = [text[end] for end in ends(text, string) if end < len(text)]
    alike = [end for end in ends(text, [*string, token]) if end < len(text)]
    return (
        len(following),
        len(alike),
        len(set(following)) > 1,
        len(following) > 1 and following[-2] == token,
    )


@given(texts)
def test_it_finds_the_longest_suffix_that_occurred_before(text: list[int]) -> None:
    length, end, tokens, evidence = index_of(text).match(LIMIT)
    expected, found = longest(text, text, len(text) - 1)
    assert length == expected
    if not length:
        assert (tokens, evidence) == ([], [])
        return
    assert end in found
    if len(text) <= SUFFIX_MAX_HOPS:
        assert end == max(found)
    # Token by token as if the text had gone on with the draft: a period for ever.
    guessed = list(text)
    for _ in range(LIMIT):
        guessed.append(guessed[end - len(text) + len(guessed)])
    assert tokens == guessed[len(text) :]


@given(texts)
def test_evidence_is_that_of_all_earlier_occurrences(text: list[int]) -> None:
    length, end, tokens, evidence = index_of(text).match(LIMIT)
    string = text[len(text) - length :]
    for place in range(min(len(tokens), len(text) - end)):
        if len(text) <= SUFFIX_MAX_HOPS:
            assert evidence[place] == evidence_for(text, string, tokens[place])
        string = [*string, tokens[place]]


@given(texts, st.lists(st.integers(0, 7), max_size=20))
def test_pieces_make_the_same_index_as_the_whole(text: list[int], sizes: list[int]) -> None:
    pieces = SuffixIndex()
    begin = 0
    for size in sizes:
        pieces.extend(np.array(text[begin : begin + size], np.int32))
        begin += size
    pieces.extend(array("i", text[begin:]))
    whole = index_of(text)
    assert pieces.num_tokens == len(text)
    assert pieces.match(LIMIT) == whole.match(LIMIT)


@given(st.lists(texts, max_size=4), texts, st.integers(0, 60))
def test_a_cursor_follows_another_text(
    documents: list[list[int]], text: list[int], pause: int
) -> None:
    """Also when the index grows while the text is read."""
    flat = [token for document in documents for token in (*document, TEXT_SEPARATOR)]
    half = len(flat) // 2
    index, cursor = index_of(flat[:half]), SuffixCursor()
    index.follow(cursor, array("i", text[:pause]))
    index.extend(array("i", flat[half:]))
    length, end, tokens, _ = index.follow(cursor, array("i", text[pause:]), LIMIT)
    found = ends(flat, text[len(text) - length :])
    assert not length or end in found
    assert not length or len(flat) > SUFFIX_MAX_HOPS or end == max(found)
    stretch = flat[end : end + LIMIT] if length else []
    if TEXT_SEPARATOR in stretch:
        stretch = stretch[: stretch.index(TEXT_SEPARATOR)]
    assert tokens == stretch
    if half == len(flat) or not pause:  # else only what was read before was matched with less
        assert length == longest(flat, text, len(flat) - 1)[0]


@pytest.mark.parametrize("num_ids", [2, 3, 6, 40, 5_000])
def test_every_step_of_a_random_text(num_ids: int) -> None:
    """Texts long enough for states that are split with many transitions, and a table that grows."""
    rng = np.random.default_rng(num_ids)
    tokens = np.floor(num_ids * rng.random(3_000) ** 2).astype(np.int32)
    text = "".join(map(chr, tokens))  # whose search is the oracle
    index, length = SuffixIndex(), 0
    for size in range(1, len(text) + 1):
        index.extend(tokens[size - 1 : size])
        length += 1
        while length and text.rfind(text[size - length : size], 0, size - 1) < 0:
            length -= 1
        start = text.rfind(text[size - length : size], 0, size - 1)
        found, end, drafted, _ = index.match(1)
        assert found == length
        if length:
            assert end == start + length
            assert drafted == [tokens[end]]


@pytest.mark.parametrize("period", [1, 2, 7])
def test_a_repetitive_text_is_drafted_on(period: int) -> None:
    num_tokens = 200_000 // period * period
    index = index_of(list(range(period)) * (num_tokens // period))
    length, end, tokens, _ = index.match(20)
    assert (length, end) == (num_tokens - period, num_tokens - period)
    assert tokens == [place % period for place in range(20)]
    assert index.num_bytes < 400 * num_tokens


def test_a_lookup_takes_the_longer_match() -> None:
    own = array("i", [1, 2, 3, 9, 9, 1, 2, 3])
    others = index_of([7, 1, 2, 3, 4, 5, 6, TEXT_SEPARATOR])
    longer = index_of([9, 1, 2, 3, 4, 5, 6, TEXT_SEPARATOR])
    at_the_end = index_of([9, 1, 2, 3, TEXT_SEPARATOR])
    drafts = look_up(
        [TextLookup() for _ in range(4)], [own] * 4, [6] * 4, [None, others, longer, at_the_end]
    )
    first = [9, 9, 1, 2, 3, 9]
    assert [draft and draft[0] for draft in drafts] == [first, first, [4, 5, 6], first]


def test_a_lookup_takes_in_no_more_than_its_budget() -> None:
    text = array("i", [1, 2, 3] * 10)
    lookups = [TextLookup(), TextLookup(), TextLookup()]
    found = look_up(lookups, [text] * 3, [2] * 3, budget=40)
    assert [lookup.num_indexed for lookup in lookups] == [30, 10, 0]
    assert [draft is not None for draft in found] == [True, False, False]
    text.append(1)  # nothing holds it any more
    found = look_up(lookups, [text] * 3, [2] * 3)
    assert [draft and draft[0] for draft in found] == [[2, 3]] * 3


def test_what_is_no_text_is_refused() -> None:
    index, lookup, text = SuffixIndex(), TextLookup(), array("i", [1, 2])
    for wrong in (array("q", [1]), array("f", [1]), np.zeros((2, 2), np.int32)):
        with pytest.raises(TypeError, match="int32"):
            index.extend(wrong)  # type: ignore[arg-type]
    with pytest.raises((TypeError, BufferError)):
        index.extend([1, 2])  # type: ignore[arg-type]
    look_up([lookup], [text], [1])
    with pytest.raises(ValueError, match="shorter"):
        look_up([lookup], [text[:1]], [1])
    with pytest.raises(ValueError, match="one limit"):
        look_up([lookup], [text], [])
    with pytest.raises(ValueError, match="negative"):
        look_up([lookup], [text], [-1])
