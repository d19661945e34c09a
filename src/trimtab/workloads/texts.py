"""Real text for the pieces of planned prompts: speculation and prefix caches behave on random
tokens as they never do on text."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

from trimtab import builtin
from trimtab.workloads.requests import Piece

CHARACTERS_PER_TOKEN = 4  # assumed where there is no tokenizer
_LEAST_TITLED = 16  # tokens; a shorter piece has no room for a title
_CACHED_PIECES = 4096
_ENDINGS = (" the", ".", " 1", ",", " x", ")", "\n1")  # a token more, of most vocabularies
# What could be a special token of some model would become one, and end a prompt or a turn.
_SPECIAL = re.compile(r"<\||\|>|</?s>|\[/?INST\]|<\w*(?:start|end|bos|eos|pad|unk)\w*>|<<SYS>>")


class Encoder(Protocol):
    """`trimtab.tokenization.Tokenizer` is one."""

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]: ...
    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str: ...


@dataclass(frozen=True)
class SizedText:
    text: str
    num_tokens: int  # of the text by itself; without a tokenizer, what was asked
    is_exact: bool  # counted by a tokenizer, and what was asked


@dataclass(frozen=True)
class Corpus:
    text: str
    starts: tuple[int, ...]  # of lines with something in them
    words: tuple[str, ...]  # distinct, lower case, sorted


@lru_cache(maxsize=1)
def builtin_corpus() -> Corpus:
    """The built-in held-out and calibration text, ASCII without special tokens: 0.8 million
    characters of Python, documentation and short dialogues."""
    parts = [builtin.heldout_path().read_text(encoding="utf-8")]
    for line in builtin.calibration_path().read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        parts += (
            [entry["text"]] if "text" in entry else [one["content"] for one in entry["messages"]]
        )
    return corpus_of("\n".join(parts))


def corpus_of(text: str) -> Corpus:
    lines = [line for line in text.splitlines() if line.isascii() and not _SPECIAL.search(line)]
    text = "\n".join(lines) + "\n"
    ends = itertools.accumulate(len(line) + 1 for line in lines)
    starts = [end - len(line) - 1 for line, end in zip(lines, ends, strict=True) if line.strip()]
    words = {word.lower() for word in re.findall(r"\b[A-Za-z]{3,9}\b", text)}
    return Corpus(text, tuple(starts), tuple(sorted(words)))


class PieceTexts:
    """The text of each piece: the same for the same key and length, token-exact where `tokenizer`
    is given (about four characters a token where not).

    A piece starts with a title line of four words that its key chooses, so that pieces of different
    keys share no prefix, and goes on with a passage that begins at a line its key chooses. Pieces
    under 16 tokens have no title: two of them may be the same.
    """

    def __init__(self, tokenizer: Encoder | None = None, corpus: Corpus | None = None) -> None:
        self.tokenizer = tokenizer
        self.corpus = corpus or builtin_corpus()
        self._ratio = self._characters_per_token()
        self.sized = lru_cache(maxsize=_CACHED_PIECES)(self._sized)

    def text(self, piece: Piece) -> str:
        return self.prompt([piece]).text

    def prompt(self, pieces: Sequence[Piece]) -> SizedText:
        """The pieces one after the other, each on a new line. With a tokenizer, what the whole has
        is counted: it may be off by one for each piece, where no cut gives the number that was
        asked, or where tokens meet."""
        parts = [self.sized(piece, bool(place)) for place, piece in enumerate(pieces)]
        text = "".join(part.text for part in parts)
        wanted = sum(piece.length for piece in pieces)
        if len(parts) == 1:
            return parts[0]
        if self.tokenizer is None:
            return SizedText(text, wanted, False)
        count = len(self.tokenizer.encode(text, add_special_tokens=False))
        return SizedText(text, count, count == wanted)

    def _characters_per_token(self) -> float:
        if self.tokenizer is None:
            return CHARACTERS_PER_TOKEN
        sample = self.corpus.text[:20_000]
        return len(sample) / max(1, len(self.tokenizer.encode(sample, add_special_tokens=False)))

    def _sized(self, piece: Piece, on_new_line: bool) -> SizedText:
        """sized(piece, on_new_line): with the line feed before it, if it does not come first."""
        source = _Passage(self.corpus, piece, "\n" if on_new_line else "")
        if self.tokenizer is None:
            return SizedText(source.cut(CHARACTERS_PER_TOKEN * piece.length), piece.length, False)
        return _of_length(source, piece.length, self.tokenizer, self._ratio)


class _Passage:
    """The endless text of a piece, of which it is a beginning."""

    def __init__(self, corpus: Corpus, piece: Piece, before: str) -> None:
        digest = hashlib.blake2b(piece.key.encode("utf-8", "surrogatepass"), digest_size=24)
        numbers = [int.from_bytes(digest.digest()[i : i + 4], "little") for i in range(0, 24, 4)]
        self.corpus = corpus
        self.start = corpus.starts[numbers[0] % len(corpus.starts)]
        self.head = before
        if piece.length >= _LEAST_TITLED:
            words = [corpus.words[number % len(corpus.words)] for number in numbers[1:5]]
            self.head += f"# {' '.join(words)}\n"

    def cut(self, length: int) -> str:
        """Its first `length` characters, at least one, without white space at their end."""
        text = self.head + self.corpus.text[self.start : self.start + length]
        while len(text) < length:
            text += self.corpus.text[: length - len(text)]
        return text[:length].rstrip() or text[:1]


def _of_length(source: _Passage, wanted: int, tokenizer: Encoder, ratio: float) -> SizedText:
    """The beginning of so many tokens, or if there is none the closest that was found."""
    ids = tokenizer.encode(source.cut(round(1.3 * wanted * ratio) + 16), add_special_tokens=False)
    # Where the first tokens of more text end is nearly always the place.
    length = len(tokenizer.decode(ids[:wanted], False)) if len(ids) > wanted else 0
    best = _search(source, wanted, tokenizer, length or round(wanted * ratio), ratio)
    if best.num_tokens == wanted - 1:
        for ending in _ENDINGS:
            text = best.text + ending
            if len(tokenizer.encode(text, add_special_tokens=False)) == wanted:
                return SizedText(text, wanted, True)
    return best


def _search(
    source: _Passage, wanted: int, tokenizer: Encoder, length: int, ratio: float
) -> SizedText:
    """By false position on the number of characters, which tokens follow nearly in proportion;
    stops one below as well, since a word more mends that."""
    best: SizedText | None = None
    low, high = (0, 0), (0, 0)  # characters, tokens; (0, 0) of high: not known yet
    length = max(1, length)
    for attempt in range(60):
        text = source.cut(length)
        count = len(tokenizer.encode(text, add_special_tokens=False))
        if best is None or abs(count - wanted) < abs(best.num_tokens - wanted):
            best = SizedText(text, count, count == wanted)
        if wanted - 1 <= count <= wanted:
            return SizedText(text, count, count == wanted)
        if count < wanted:
            low = (length, count)
        else:
            high = (length, count)
        if not high[0]:
            length += max(1, round(1.05 * (wanted - count) * ratio))
            continue
        span = high[0] - low[0]
        if span <= 1:
            break
        # Every third time the middle, so that an uneven text cannot make it crawl.
        share = (wanted - low[1]) / (high[1] - low[1]) if attempt % 3 else 0.5
        length = low[0] + min(span - 1, max(1, round(share * span)))
    assert best is not None
    return best
