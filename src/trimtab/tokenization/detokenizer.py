"""Token ids to text, one at a time, so that the pieces add up to the decoding of the whole.

Two kinds, by what the tokenizer's decoder is. *Byte-level* (GPT-2, Llama 3, Qwen): every token is a
string of bytes and the text is their UTF-8 decoding, so a few bytes at the end are all there is to
hold back. *Everything else* (SentencePiece-like and others): the decoder itself is asked, over a
window of one settled token and those after it.
"""

from __future__ import annotations

import codecs
from typing import Protocol

from trimtab.tokenization.vocabulary import Vocabulary


class Detokenizer(Protocol):
    @property
    def pending(self) -> bool:
        """What comes next may change how tokens before it are read."""
        ...

    def push(self, token_id: int) -> str:
        """The text that this token settled; "" while it may still change."""
        ...

    def flush(self) -> str:
        """What is still held back, as the decoder renders it when nothing follows."""
        ...


class ByteLevelDetokenizer:
    """Incomplete UTF-8 at the end is held back (3 bytes at most). Invalid bytes become U+FFFD, one
    for each maximal subpart (Unicode 15, section 3.9), as in the `tokenizers` library."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.pending = False
        self._vocabulary = vocabulary
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        if not self.pending:
            whole = self._vocabulary.whole_texts.get(token_id)
            if whole is not None:
                return whole
        text = self._utf8.decode(self._vocabulary.byte_level_bytes(token_id))
        self.pending = bool(self._utf8.getstate()[0])
        return text

    def flush(self) -> str:
        self.pending = False
        return self._utf8.decode(b"", final=True)


class WindowDetokenizer:
    """... settled tokens | anchor | pending ... new
                             |--- decoded at once ---|

    The anchor is the last settled token: it stands for everything before it, so that what a
    decoder does at the start of a text (dropping a space) is done to it and not to what follows.
    A run of byte-fallback tokens is pending until the run ends: whether its bytes are characters
    or U+FFFD is only known then. Of other decoders, a text that ends in U+FFFD is pending for
    `MAX_PENDING` tokens at most.
    """

    MAX_PENDING = 8
    pending = True  # a token's text may hang on the one before it

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._anchor: list[int] = []
        self._anchor_text = ""
        self._pending: list[int] = []

    def push(self, token_id: int) -> str:
        vocabulary = self._vocabulary
        if vocabulary.piece(token_id) is None:
            return ""
        self._pending.append(token_id)
        if vocabulary.fallback_byte(token_id) is not None:
            return ""
        text = self._new_text()
        if (
            not vocabulary.has_byte_fallback
            and text.endswith("\ufffd")
            and len(self._pending) < self.MAX_PENDING
        ):
            return ""
        self._anchor = [token_id]
        self._anchor_text = vocabulary.decode(self._anchor)
        self._pending = []
        return text

    def flush(self) -> str:
        text = self._new_text() if self._pending else ""
        self._pending = []
        return text

    def _new_text(self) -> str:
        text = self._vocabulary.decode(self._anchor + self._pending)
        return text[len(self._anchor_text) :]


def make_detokenizer(vocabulary: Vocabulary) -> Detokenizer:
    if vocabulary.is_byte_level:
        return ByteLevelDetokenizer(vocabulary)
    return WindowDetokenizer(vocabulary)
