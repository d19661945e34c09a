"""Text that is streamed equals text that is not, however the tokens are dealt out."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from model_directories import CORPUS, KINDS

from trimtab.errors import RequestError
from trimtab.tokenization import TextStream, Tokenizer
from trimtab.tokenization.stop_strings import StopMatcher

fixtures_are_shared = settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
texts = st.one_of(
    st.text(max_size=40),
    st.lists(
        st.sampled_from(["👩‍👩‍👧", "e\u0301", "日本", " ", "  ", "a", "\n", "🇩🇪", "สวัสดี"])
    ).map("".join),
    st.sampled_from(CORPUS),
)


def deal(ids: list[int], cuts: list[int]) -> list[list[int]]:
    """The ids in consecutive hands of the given sizes, the rest in one."""
    hands, start = [], 0
    for size in cuts:
        hands.append(ids[start : start + size])
        start += size
    return [*hands, ids[start:]]


def stream_of(stream: TextStream, hands: list[list[int]]) -> list[str]:
    pieces = [stream.push(hand) for hand in hands]
    return [*pieces, stream.finish()]


@fixtures_are_shared
@given(text=texts, cuts=st.lists(st.integers(0, 4), max_size=40))
@pytest.mark.parametrize("kind", KINDS)
def test_pieces_of_a_text_add_up(tokenizers_by_kind, kind, text, cuts) -> None:
    tokenizer = tokenizers_by_kind[kind]
    ids = tokenizer.encode(text)
    pieces = stream_of(TextStream(tokenizer), deal(ids, cuts))
    assert "".join(pieces) == tokenizer.decode(ids)
    if kind in ("byte-level", "gemma") and "<" not in text:
        assert "".join(pieces) == text
    if "\ufffd" not in tokenizer.decode(ids):
        assert not any("\ufffd" in piece for piece in pieces)  # never half a character


@fixtures_are_shared
@given(data=st.data(), skip=st.booleans(), repeats=st.integers(1, 3))
@pytest.mark.parametrize("kind", KINDS)
def test_text_without_offsets_is_the_same(tokenizers_by_kind, kind, data, skip, repeats) -> None:
    """Tokens that came before are known by their text, also behind half a character."""
    tokenizer = tokenizers_by_kind[kind]
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size + 3), max_size=12)) * repeats
    ids += tokenizer.encode(data.draw(texts))
    stream = TextStream(tokenizer, skip_special_tokens=skip)
    cuts = data.draw(st.lists(st.integers(0, 2), max_size=40))
    pieces = [stream.push_text(hand) for hand in deal(ids, cuts)]
    assert "".join([*pieces, stream.finish()]) == tokenizer.decode(ids, skip)


@fixtures_are_shared
@given(data=st.data(), skip=st.booleans())
@pytest.mark.parametrize("kind", KINDS)
def test_pieces_of_random_tokens_add_up(tokenizers_by_kind, kind, data, skip) -> None:
    """Any tokens at all: broken characters, special tokens, ids without a token."""
    tokenizer = tokenizers_by_kind[kind]
    size = tokenizer.vocab_size
    some = st.integers(0, size + 3)
    if kind in ("llama-2", "gemma"):  # mostly byte-fallback tokens
        first = tokenizer.token_to_id("<0x00>")
        some = st.one_of(some, st.integers(first, first + 255))
    ids = data.draw(st.lists(some, max_size=30))
    cuts = data.draw(st.lists(st.integers(0, 3), max_size=30))
    stream = TextStream(tokenizer, skip_special_tokens=skip)
    assert "".join(stream_of(stream, deal(ids, cuts))) == tokenizer.decode(ids, skip)
    assert stream.num_tokens == len(ids) == len(stream.token_offsets)


@pytest.mark.parametrize("kind", ["byte-level", "llama-2", "gemma"])
def test_text_comes_out_as_soon_as_it_is_settled(tokenizers_by_kind, kind) -> None:
    tokenizer = tokenizers_by_kind[kind]
    stream = TextStream(tokenizer)
    lengths = []
    text = ""
    for token_id in tokenizer.encode("the quick 日本語 fox"):
        text += stream.push([token_id])
        lengths.append(len(text))
    assert text.startswith("the quick")
    held = [b - a for a, b in itertools.pairwise(lengths)]
    assert max(held) <= 12  # nothing is saved up for the end
    assert len(text) + len(stream.finish()) == len("the quick 日本語 fox")


def test_an_incomplete_character_waits_and_is_flushed(tokenizers_by_kind) -> None:
    for kind in ("byte-level", "llama-2"):
        tokenizer = tokenizers_by_kind[kind]
        ids = [i for i in tokenizer.encode("\U0001f9ff", False) if tokenizer.token_bytes(i) != b" "]
        assert b"".join(map(tokenizer.token_bytes, ids)) == "\U0001f9ff".encode()
        stream = TextStream(tokenizer)
        assert [stream.push([i]) for i in ids[:-1]] == [""] * (len(ids) - 1)
        assert stream.finish() == tokenizer.decode(ids[:-1])
        assert "\ufffd" in tokenizer.decode(ids[:-1])


def test_invalid_bytes_do_not_hold_up_what_follows(tokenizers_by_kind) -> None:
    tokenizer = tokenizers_by_kind["byte-level"]
    lone = tokenizer.token_to_id("ÿ")  # byte 0xFF, never valid
    stream = TextStream(tokenizer)
    assert stream.push([lone]) == "\ufffd"
    assert stream.push([lone] * 50) == "\ufffd" * 50
    assert stream.push(tokenizer.encode("a", False)) == "a"


def test_a_genuine_replacement_character_passes(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a \ufffd b", False)
    assert "".join(stream_of(TextStream(tokenizer), [[i] for i in ids])) == tokenizer.decode(ids)


# --- stop strings ---


def reference_cut(text: str, stops: list[str], include: bool) -> tuple[str, str | None]:
    """Grow the text one character at a time until it ends in a stop string."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            longest = max(found, key=len)
            return text[: end if include else end - len(longest)], longest
    return text, None


few_letters = st.text("ab", min_size=1, max_size=6)


@settings(deadline=None, max_examples=150)
@given(
    text=st.text("ab", max_size=30),
    stops=st.lists(few_letters, min_size=1, max_size=3),
    cuts=st.lists(st.integers(0, 5), max_size=20),
)
def test_matcher_finds_the_first_completed_stop(text, stops, cuts) -> None:
    matcher = StopMatcher(stops)
    expected, stop = reference_cut(text, stops, include=True)
    seen, match = "", None
    for part in deal(list(text), cuts):
        match = matcher.scan("".join(part))
        seen += "".join(part[: match.end] if match else part)
        if match:
            break
        held = seen[len(seen) - matcher.num_held :]
        candidates = [seen[i:] for i in range(len(seen))]
        assert held == next((c for c in candidates if any(s.startswith(c) for s in stops)), "")
    assert seen == expected
    assert (match.stop if match else None) == stop


@fixtures_are_shared
@given(
    text=st.lists(
        st.sampled_from(
            ["the quick", " brown", "日本語", "👩‍👩‍👧", "END", "EN", "D", "\n", "\n\n", "quick"]
        )
    ).map("".join),
    stops=st.lists(
        st.sampled_from(["END", "END\n", "\n\n", "本", "‍👧", "quick brown", "ND", "D"]), max_size=3
    ),
    include=st.booleans(),
    cuts=st.lists(st.integers(0, 4), max_size=30),
)
@pytest.mark.parametrize("kind", KINDS)
def test_stop_strings_are_cut_exactly(tokenizers_by_kind, kind, text, stops, include, cuts) -> None:
    tokenizer = tokenizers_by_kind[kind]
    ids = tokenizer.encode(text)
    expected, stop = reference_cut(tokenizer.decode(ids), stops, include)
    stream = TextStream(tokenizer, stops, include)
    out = ""
    for piece in stream_of(stream, deal(ids, cuts)):
        out += piece
        assert expected.startswith(out)  # nothing leaks, not even for a moment
    assert out == expected
    assert stream.stop == stop
    assert stream.stopped == (stop is not None)
    check_token_accounting(tokenizer, stream, ids, out)


def check_token_accounting(
    tokenizer: Tokenizer, stream: TextStream, ids: list[int], out: str
) -> None:
    """Offsets ascend and lie in the text; the counted tokens are those that made it."""
    offsets, count = stream.token_offsets, stream.num_tokens
    assert offsets == sorted(offsets)
    assert count <= len(offsets) <= len(ids)
    if not stream.stopped:
        assert count == len(ids)
    assert all(offset <= len(out) for offset in offsets[:count])
    # The counted tokens say at least the text; without the last one, they do not.
    assert tokenizer.decode(ids[:count]).startswith(out)
    if offsets[count:]:
        assert offsets[count] >= len(out)
    for i in range(count):
        before = tokenizer.decode(ids[:i])
        assert offsets[i] <= len(before)
        in_run = i > 0 and tokenizer.vocabulary.fallback_byte(ids[i - 1]) is not None
        if "\ufffd" not in before and not in_run:  # else with its character, or its run of bytes
            assert offsets[i] == len(before)


def test_offsets_and_counts_step_by_step(tokenizers_by_kind) -> None:
    tokenizer = tokenizers_by_kind["byte-level"]
    parts = ["the", " quick", "日", "E", "N", "x", "E", "N", "D", "y"]
    hands = [tokenizer.encode(part, False) for part in parts]
    stream = TextStream(tokenizer, ["END"])
    seen = []
    for hand in hands:
        text = stream.push(hand)
        seen.append((text, stream.num_tokens, stream.stopped))
    n = [sum(map(len, hands[: i + 1])) for i in range(len(hands))]
    assert seen == [
        ("the", n[0], False),
        (" quick", n[1], False),
        ("日", n[2], False),
        ("", n[2], False),
        ("", n[2], False),
        ("ENx", n[5], False),
        ("", n[5], False),
        ("", n[5], False),
        ("", n[5], True),
        ("", n[5], True),
    ]
    assert stream.finish() == ""
    starts = {n[0]: 3, n[1]: 9, n[2]: 10, n[3]: 11, n[5]: 13}
    assert {i: stream.token_offsets[i] for i in starts} == starts


def test_a_stop_string_that_never_completes_is_not_lost(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("the quick EN")
    whole = tokenizer.decode(ids)
    stop = whole[-2:] + "D"
    stream = TextStream(tokenizer, [stop])
    early = stream.push(ids)
    assert len(early) <= len(whole) - 2
    assert early + stream.finish() == whole
    assert stream.finish() == ""
    assert not stream.stopped


def test_a_stop_string_in_what_is_flushed(tokenizers_by_kind) -> None:
    """A run of byte tokens is only known at its end; the stop string may be in it."""
    tokenizer = tokenizers_by_kind["llama-2"]
    ids = tokenizer.encode("x\U0001f9ff!", False)
    ids = ids[: ids.index(tokenizer.token_to_id("<0xBF>")) + 1]
    stream = TextStream(tokenizer, ["\U0001f9ff"])
    out = stream.push(ids)
    assert out + stream.finish() == tokenizer.decode(ids)[:-1]
    assert stream.stopped


def test_misuse_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="empty"):
        TextStream(tokenizer, [""])
    stream = TextStream(tokenizer)
    stream.finish()
    with pytest.raises(ValueError, match="finished"):
        stream.push([1])
    with pytest.raises(RequestError, match="token id -1"):
        TextStream(tokenizer).push([-1])
