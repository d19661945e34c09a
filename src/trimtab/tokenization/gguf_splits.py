"""How the byte-level vocabularies of GGUF files cut a text before merging, by the name that
`tokenizer.ggml.pre` gives.

Names: llama.cpp's. The expressions are those of the models' own tokenizer.json, where the
name stands for a known model; `default` is llama.cpp's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_ENDS = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"


def _by_digits(digits: str) -> str:
    """Of cl100k and its heirs: `digits` is how numbers are cut."""
    return (
        rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}"
        rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_ENDS}"
    )


def _by_case(digits: str, contractions: str = "") -> str:
    """Of o200k and Tekken: words are cut where small letters are followed by a capital."""
    return (
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{contractions}"
        rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{contractions}"
        rf"|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_ENDS}"
    )


@dataclass(frozen=True)
class Split:
    """`patterns` one after the other; none: the expression of GPT-2."""

    patterns: tuple[str, ...] = ()
    single_digits: bool = False  # before all else
    composed: bool = False  # the text is brought to NFC
    whole_words: bool = False  # a piece that is a token is taken without merging
    adds_bos: bool = False  # unless the file says otherwise


_LLAMA_3 = Split((_by_digits(r"\p{N}{1,3}"),), whole_words=True, adds_bos=True)
_CL100K = Split((_by_digits(r"\p{N}{1,3}"),))
_QWEN_2 = Split((_by_digits(r"\p{N}"),), composed=True)
_O200K = Split((_by_case(r"\p{N}{1,3}", f"{_CONTRACTIONS}?"),))
_TEKKEN = Split((_by_case(r"\p{N}"),), whole_words=True, adds_bos=True)
_DIGITS = Split(single_digits=True)
_DEFAULT = Split(
    (
        r"[\p{P}\$\+<=>\^~\|]+",
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
        r"\p{N}+",
        r"[0-9][0-9][0-9]",
    )
)

SPLITS = {
    "default": _DEFAULT,
    "gpt-2": Split(),
    "phi-2": Split(),
    "llama-bpe": _LLAMA_3,
    "llama3": _LLAMA_3,
    "llama-v3": _LLAMA_3,
    "falcon3": _LLAMA_3,
    "pixtral": _LLAMA_3,
    "dbrx": _CL100K,
    "smaug-bpe": _CL100K,
    "qwen2": _QWEN_2,
    "deepseek-r1-qwen": Split(_QWEN_2.patterns),
    "gpt-4o": _O200K,
    "tekken": _TEKKEN,
    "smollm": _DIGITS,
    "starcoder": _DIGITS,
}


def pre_tokenizer(split: Split) -> Any:
    """A `tokenizers` pre-tokenizer that cuts so and writes bytes in the byte-level alphabet."""
    from tokenizers import Regex, pre_tokenizers

    steps: list[Any] = []
    if split.single_digits:
        steps.append(pre_tokenizers.Digits(individual_digits=True))
    steps += [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in split.patterns]
    own = not split.patterns
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=own))
    return pre_tokenizers.Sequence(steps)
