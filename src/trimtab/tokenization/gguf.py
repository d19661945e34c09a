"""A Tokenizer from the metadata of a GGUF file.

Two kinds of vocabulary (`tokenizer.ggml.model`):

    gpt2    byte-level BPE: tokens, merges, and the name of a split (`gguf_splits`)
    llama   SentencePiece BPE: tokens and scores; the merges follow from them

Meaning of the keys: llama.cpp's, and what its converter writes. Ids are those of the tokenizer.json
from which the file was made, as far as the file tells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.checkpoints.gguf_config import CONTROL, end_token_ids
from trimtab.checkpoints.gguf_file import GgufFile
from trimtab.errors import CheckpointError
from trimtab.models.config_reader import show
from trimtab.tokenization.chat_template import ChatTemplate
from trimtab.tokenization.gguf_splits import SPLITS, Split, pre_tokenizer
from trimtab.tokenization.tokenizer import Tokenizer

NORMAL, UNKNOWN, USER_DEFINED, UNUSED, BYTE = 1, 2, 4, 5, 6  # token types, beside CONTROL
MAX_WORDS = 1 << 20  # tokens, and merges: several times those of the largest vocabularies
MAX_PIECE = 256  # characters: bounds the search for merges
MAX_CHARACTERS = 1 << 23  # of all pieces: likewise; the largest vocabularies have a fifth of it

_ID_NAMES = {
    "bos_token": "bos",
    "eos_token": "eos",
    "unk_token": "unknown",
    "sep_token": "seperator",  # as llama.cpp writes it
    "pad_token": "padding",
    "mask_token": "mask",
}
# Phi-3 strips spaces behind its special tokens, but for these (llama.cpp, by name as well).
_PHI_3_UNSTRIPPED = ("<unk>", "<s>", "<|endoftext|>")


def read_gguf_tokenizer(path: Path) -> Tokenizer | None:
    """Of a file (of several parts, the first). None if it has no vocabulary.

    Raises CheckpointError, one line naming the key, for what is damaged or unknown.
    """
    file = GgufFile(path)
    if file.metadata.get("tokenizer.ggml.model") in (None, "no_vocab", "none"):
        return None
    words = _Words(file.metadata, str(path))
    try:
        backend = _BUILDERS[words.model](words)
    except CheckpointError:
        raise
    except Exception as error:  # the library raises bare Exception for whatever is wrong
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{path}: its vocabulary is no tokenizer: {reason}") from None
    _add_tokens(backend, words)
    _add_ends(backend, words)
    special = {name: words.tokens[i] for name, i in words.ids.items()}
    ends = [i for i in end_token_ids(file.metadata) if 0 <= i < len(words.tokens)]
    return Tokenizer(backend, special, ends, _chat_template(words, special))


@dataclass
class _Words:
    """The vocabulary keys, checked."""

    metadata: Mapping[str, Any]
    where: str

    def __post_init__(self) -> None:
        self.model = self.metadata["tokenizer.ggml.model"]
        if not isinstance(self.model, str) or self.model not in _BUILDERS:
            raise self.error(
                f"tokenizer.ggml.model = {show(self.model)} is not supported "
                f"(supported: {', '.join(sorted(_BUILDERS))})"
            )
        self.tokens = self.texts("tokens")
        self.types = self._types()
        self._drop_filling()
        if len(set(self.tokens)) != len(self.tokens):
            raise self.error("tokenizer.ggml.tokens has a token twice")
        self.ids = {name: i for name in _ID_NAMES if (i := self._id(_ID_NAMES[name])) is not None}

    def error(self, text: str) -> CheckpointError:
        return CheckpointError(f"{self.where}: {text}")

    def texts(self, name: str) -> list[str]:
        value = self.metadata.get(f"tokenizer.ggml.{name}")
        if not isinstance(value, list) or not value:
            raise self.error(f"tokenizer.ggml.{name}: must be a list of strings")
        if len(value) > MAX_WORDS:
            raise self.error(f"tokenizer.ggml.{name}: {len(value)} are too many")
        return list(value)

    def numbers(self, name: str) -> list[Any]:
        """One for each token, finite."""
        value = self.metadata.get(f"tokenizer.ggml.{name}")
        if (
            not isinstance(value, np.ndarray)
            or len(value) < len(self.tokens)
            or not np.isfinite(value).all()
        ):
            raise self.error(f"tokenizer.ggml.{name}: must be a finite number for each token")
        return list(value.tolist())

    def _types(self) -> list[int]:
        if "tokenizer.ggml.token_type" not in self.metadata:
            return [NORMAL] * len(self.tokens)
        return [int(kind) for kind in self.numbers("token_type")[: len(self.tokens)]]

    def _drop_filling(self) -> None:
        """Names that the converter gives to ids at the end which no token has."""
        last = len(self.tokens)
        while self.types[last - 1] == UNUSED and self.tokens[last - 1] == f"[PAD{last - 1}]":
            last -= 1
            if last == 0:
                raise self.error("tokenizer.ggml.tokens has no tokens")
        del self.tokens[last:], self.types[last:]

    def _id(self, name: str) -> int | None:
        key = f"tokenizer.ggml.{name}_token_id"
        value = self.metadata.get(key)
        if value is None:
            return None
        if type(value) is not int or not 0 <= value < len(self.tokens):
            raise self.error(f"{key} = {show(value)}: must be the id of a token")
        return value

    def flag(self, name: str, default: bool) -> bool:
        value = self.metadata.get(f"tokenizer.ggml.{name}", default)
        if not isinstance(value, bool):
            raise self.error(f"tokenizer.ggml.{name} = {show(value)}: must be true or false")
        return value

    @property
    def architecture(self) -> Any:
        return self.metadata.get("general.architecture")

    @property
    def split(self) -> Split:
        name = self.metadata.get("tokenizer.ggml.pre", "default")
        split = SPLITS.get(name) if isinstance(name, str) else None
        if split is None:
            raise self.error(
                f"tokenizer.ggml.pre = {show(name)}: this way to split text is not known "
                f"(known: {', '.join(sorted(SPLITS))})"
            )
        return split


def _byte_level(words: _Words) -> Any:
    import tokenizers

    split = words.split
    vocabulary = {token: i for i, token in enumerate(words.tokens)}
    pairs = []
    for merge in words.texts("merges"):
        left, space, right = merge.partition(" ")
        if not (left and space and right):
            raise words.error(f"tokenizer.ggml.merges: {show(merge)} is not two tokens")
        pairs.append((left, right))
    model = tokenizers.models.BPE(vocabulary, pairs, ignore_merges=split.whole_words)
    backend = tokenizers.Tokenizer(model)
    if split.composed:
        backend.normalizer = tokenizers.normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizer(split)
    backend.decoder = tokenizers.decoders.ByteLevel()
    return backend


def _sentencepiece(words: _Words) -> Any:
    import tokenizers
    from tokenizers import decoders, normalizers

    gemma = str(words.architecture).startswith("gemma")
    if gemma:  # its runs of spaces are stored as spaces; its scores are not its order
        words.tokens = [t if t.strip(" ") else t.replace(" ", "▁") for t in words.tokens]
        scores = [float(-i) for i in range(len(words.tokens))]
    else:
        scores = words.numbers("scores")
    vocabulary = {token: i for i, token in enumerate(words.tokens)}
    unknown = words.ids.get("unk_token")
    if unknown is None:
        unknown = next((i for i, kind in enumerate(words.types) if kind == UNKNOWN), None)
    model = tokenizers.models.BPE(
        vocabulary,
        _merges(words, vocabulary, scores),
        unk_token=None if unknown is None else words.tokens[unknown],
        fuse_unk=True,
        byte_fallback=True,
    )
    backend = tokenizers.Tokenizer(model)
    prefix = words.flag("add_space_prefix", not gemma)
    spaces: list[Any] = [normalizers.Replace(" ", "▁")]
    steps: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if prefix:
        spaces.insert(0, normalizers.Prepend("▁"))
        steps.append(decoders.Strip(" ", 1, 0))
    backend.normalizer = normalizers.Sequence(spaces)
    backend.decoder = decoders.Sequence(steps)
    return backend


_BUILDERS = {"gpt2": _byte_level, "llama": _sentencepiece}


def _merges(
    words: _Words, vocabulary: Mapping[str, int], scores: Sequence[float]
) -> list[tuple[str, str]]:
    """Of every piece, each way to make it of two others; the best pieces first. Among equals, as
    the conversion of SentencePiece models to tokenizer.json has it: longer left parts first."""
    made = (NORMAL, USER_DEFINED, UNUSED)
    pieces = [
        (t, s) for t, s, k in zip(words.tokens, scores, words.types, strict=False) if k in made
    ]
    if sum(len(piece) for piece, _ in pieces) > MAX_CHARACTERS:
        raise words.error("tokenizer.ggml.tokens: too many characters for a vocabulary")
    found: list[tuple[float, int, int, str, str]] = []
    for piece, score in pieces:
        if len(piece) > MAX_PIECE:
            raise words.error(f"tokenizer.ggml.tokens: {show(piece)} is too long for a token")
        ways = []
        for cut in range(1, len(piece)):
            left = piece[:cut]
            if left in vocabulary:
                right = piece[cut:]
                if right in vocabulary:
                    ways.append((left, right))
        ways.sort(key=lambda way: (vocabulary[way[0]], vocabulary[way[1]]))
        found += [(-score, -len(left), -len(right), left, right) for left, right in ways]
    found.sort(key=lambda way: way[:3])
    return [(left, right) for *_, left, right in found]


def _add_tokens(backend: Any, words: _Words) -> None:
    """Tokens that are found in a text before anything is split."""
    from tokenizers import AddedToken

    strips = words.architecture == "phi3" and words.model == "llama"
    added = [
        AddedToken(
            token,
            normalized=False,
            special=kind == CONTROL,
            rstrip=strips and token not in _PHI_3_UNSTRIPPED,
        )
        for token, kind in zip(words.tokens, words.types, strict=True)
        if kind in (CONTROL, USER_DEFINED) and token
    ]
    for token in added:  # in the order of ids; they have theirs already
        if token.special:
            backend.add_special_tokens([token])
        else:
            backend.add_tokens([token])


def _add_ends(backend: Any, words: _Words) -> None:
    """BOS before a text and EOS behind it, where the model wants them."""
    from tokenizers.processors import TemplateProcessing

    adds_bos = words.model == "llama" or words.split.adds_bos
    parts, special = ["$A:0"], []
    for name, key, default in (("bos_token", "bos", adds_bos), ("eos_token", "eos", False)):
        if not words.flag(f"add_{key}_token", default):
            continue
        token_id = words.ids.get(name)
        if token_id is None:
            if f"tokenizer.ggml.add_{key}_token" in words.metadata:
                raise words.error(f"tokenizer.ggml.add_{key}_token is true without such a token")
            continue
        special.append({"id": key, "ids": [token_id], "tokens": [words.tokens[token_id]]})
        parts = [f"{key}:0", *parts] if key == "bos" else [*parts, f"{key}:0"]
    if special:
        backend.post_processor = TemplateProcessing(single=parts, special_tokens=special)


def _chat_template(words: _Words, special: Mapping[str, str]) -> ChatTemplate | None:
    template = words.metadata.get("tokenizer.chat_template")
    for_tools = words.metadata.get("tokenizer.chat_template.tool_use")
    for text in (template, for_tools):
        if text is not None and not isinstance(text, str):
            raise words.error("tokenizer.chat_template: must be a string")
    return None if template is None else ChatTemplate(template, special, for_tools)
