"""What single tokens stand for, read off a `tokenizers.Tokenizer`."""

from __future__ import annotations

import contextlib
import functools
import json
import re
from collections.abc import Sequence
from typing import Any

from trimtab.errors import RequestError

_FALLBACK_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@functools.cache
def byte_level_alphabet() -> dict[str, int]:
    """The character that byte-level BPE writes for each byte (GPT-2): printable Latin-1 stands for
    itself, the other 68 bytes for the characters from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if byte not in printable)
    alphabet.update({chr(0x100 + i): byte for i, byte in enumerate(others)})
    return alphabet


def _decoder_types(backend: Any) -> list[str]:
    """The kinds of the decoder's steps, in order; empty without a decoder."""
    if backend.decoder is None:
        return []
    state = json.loads(backend.decoder.__getstate__())
    steps = state["decoders"] if state["type"] == "Sequence" else [state]
    return [step["type"] for step in steps]


class Vocabulary:
    """Read-only view of a backend whose added tokens are final. Safe to share between threads."""

    def __init__(self, backend: Any) -> None:
        decoders = _decoder_types(backend)
        added = backend.get_added_tokens_decoder()
        self._backend = backend
        self._bytes: dict[int, bytes] = {}
        # The texts of ordinary tokens of whole characters, as far as `byte_level_bytes` was asked.
        self.whole_texts: dict[int, str] = {}
        self.is_byte_level = decoders == ["ByteLevel"]
        self.has_byte_fallback = "ByteFallback" in decoders
        self.special_ids = frozenset(i for i, token in added.items() if token.special)
        num_tokens: int = backend.get_vocab_size(with_added_tokens=True)
        self.size: int = max([num_tokens, *(i + 1 for i in added)])

    def piece(self, token_id: int) -> str | None:
        """The token as the tokenizer writes it; None for an id that no token has."""
        if not 0 <= token_id < self.size:
            return None
        piece: str | None = self._backend.id_to_token(token_id)
        return piece

    def decode(self, token_ids: Sequence[int]) -> str:
        """Special tokens are written out; ids that no token has add nothing."""
        text: str = self._backend.decode(token_ids, skip_special_tokens=False)
        return text

    def visible(self, token_ids: Sequence[int], skip_special_tokens: bool) -> list[int]:
        """The ids that a text is made of. Raises RequestError for one that no model could emit."""
        return [one for one in token_ids if self.is_visible(one, skip_special_tokens)]

    def is_visible(self, token_id: int, skip_special_tokens: bool) -> bool:
        """The same of one id."""
        if not 0 <= token_id < 1 << 31:
            raise RequestError(f"token id {token_id}: must be in [0, 2^31)")
        return not (skip_special_tokens and token_id in self.special_ids)

    def fallback_byte(self, token_id: int) -> int | None:
        """The byte of a byte-fallback token such as <0x0A>; None for any other token."""
        if not self.has_byte_fallback:
            return None
        match = _FALLBACK_PIECE.fullmatch(self.piece(token_id) or "")
        return int(match[1], 16) if match else None

    def byte_level_bytes(self, token_id: int) -> bytes:
        """The bytes that a token of a byte-level vocabulary adds to a text."""
        known = self._bytes.get(token_id)
        if known is None:
            piece = self.piece(token_id) or ""
            try:
                known = bytes(map(byte_level_alphabet().__getitem__, piece))
            except KeyError:  # an added token: its text as it is
                known = piece.encode()
            self._bytes[token_id] = known
            if token_id not in self.special_ids:
                with contextlib.suppress(UnicodeDecodeError):
                    self.whole_texts[token_id] = known.decode()
        return known

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that the token adds in the middle of a text; a byte of a longer character is
        given as it is. Empty for an id that no token has."""
        if self.is_byte_level:
            return self.byte_level_bytes(token_id)
        byte = self.fallback_byte(token_id)
        if byte is not None:
            return bytes([byte])
        if self.piece(token_id) is None:
            return b""
        # In the middle: after itself, since at the start of a text decoders drop a space.
        once = self.decode([token_id])
        return self.decode([token_id, token_id])[len(once) :].encode()
