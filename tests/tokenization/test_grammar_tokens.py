"""Grammars over every kind of vocabulary: what is chosen under the masks, decoded, matches."""

from __future__ import annotations

import json
import re
from pathlib import Path
from random import Random

import numpy as np
import pytest
from gguf_vocabularies import write
from model_directories import make_backend

from trimtab.engine.client import Grammar
from trimtab.engine.grammar import GrammarError
from trimtab.engine.llguidance_grammars import LlguidanceGrammars
from trimtab.tokenization import TextStream, Tokenizer, load_tokenizer

PADDING = 37  # a model's vocabulary may be larger than its tokenizer's
KINDS = ["byte-level", "llama-2", "gemma"]  # every character has a token, or bytes
CASES = [
    (Grammar("regex", r"[a-z]{2,4} [0-9]{2}"), r"[a-z]{2,4} [0-9]{2}"),
    (Grammar("regex", r"(é|日本|🙂)+x"), r"(é|日本|🙂)+x"),
    (Grammar("choice", '["Hello, world! quick brown fox", "Hello, 日本語"]'),
     r"Hello, (world! quick brown fox|日本語)"),
    (Grammar("lark", 'start: "{\\"the quick\\": [" /[0-9]/ "]}"'), r'\{"the quick": \[[0-9]\]\}'),
    (Grammar("lark", 'start: "</s> is text here: " /[ab]/'), r"</s> is text here: [ab]"),
]  # fmt: skip


def walk(grammars: LlguidanceGrammars, grammar: Grammar, vocab: int, seed: int) -> list[int]:
    """Tokens chosen at random under the masks, and those that were forced between them."""
    random, matcher, tokens = Random(seed), grammars.compile(grammar), []
    mask = np.zeros(-(-vocab // 32), np.uint32)
    while not matcher.is_over and len(tokens) < 500:
        if forced := matcher.forced():
            matcher.consume(forced)
            tokens += forced
            continue
        matcher.fill(mask)
        bits = np.unpackbits(mask.view(np.uint8), bitorder="little")
        assert not bits[vocab:].any()
        allowed = np.flatnonzero(bits).tolist()
        if matcher.is_complete and (not allowed or random.random() < 0.3):
            break
        tokens.append(random.choice(allowed))
        matcher.consume(tokens[-1:])
    return tokens


def check(tokenizer: Tokenizer) -> None:
    vocab = tokenizer.vocab_size + PADDING
    grammars = LlguidanceGrammars(lambda: tokenizer, vocab)
    try:
        for grammar, pattern in CASES:
            for seed in range(5):
                tokens = walk(grammars, grammar, vocab, seed)
                assert tokenizer.special_ids.isdisjoint(tokens)
                text = b"".join(tokenizer.token_bytes(token) for token in tokens).decode()
                assert re.fullmatch(pattern, text), text
                stream = TextStream(tokenizer)
                assert re.fullmatch(pattern, stream.push(tokens) + stream.finish())
    finally:
        grammars.close()


@pytest.mark.parametrize("kind", KINDS)
def test_masks_and_forced_text_over_every_vocabulary(
    kind: str, tokenizers_by_kind: dict[str, Tokenizer]
) -> None:
    check(tokenizers_by_kind[kind])


def test_masks_and_forced_text_over_a_vocabulary_of_gguf(tmp_path: Path) -> None:
    check(load_tokenizer(write(tmp_path / "llama.gguf", make_backend("llama-2"))))


@pytest.mark.parametrize("kind", KINDS)
def test_forced_text_is_cut_as_the_tokenizer_cuts_it(
    kind: str, tokenizers_by_kind: dict[str, Tokenizer]
) -> None:
    tokenizer = tokenizers_by_kind[kind]
    grammars = LlguidanceGrammars(lambda: tokenizer, tokenizer.vocab_size)
    text = "(the quick brown fox, sorted and indented: def quicksort(items)"
    forced = grammars.compile(Grammar("choice", json.dumps([text]))).forced()
    grammars.close()
    own = tokenizer.encode("(" + text, add_special_tokens=False)
    assert len(forced) > 3
    assert forced[1:-1] == own[-len(forced) :][1:-1]


def test_a_text_that_the_vocabulary_cannot_write_is_an_error(
    tokenizers_by_kind: dict[str, Tokenizer],
) -> None:
    tokenizer = tokenizers_by_kind["metaspace"]
    grammars = LlguidanceGrammars(lambda: tokenizer, tokenizer.vocab_size)
    with pytest.raises(GrammarError, match="no token of this model"):
        walk(grammars, Grammar("regex", "[☃☄]"), tokenizer.vocab_size, 0)
    grammars.close()


def test_special_tokens_stand_in_lark_by_name(tokenizers_by_kind: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers_by_kind["byte-level"]
    grammars = LlguidanceGrammars(lambda: tokenizer, tokenizer.vocab_size)
    tokens = walk(
        grammars, Grammar("lark", 'start: <|im_start|> "x" <|im_end|>'), tokenizer.vocab_size, 0
    )
    grammars.close()
    names = [tokenizer.id_to_token(token) for token in tokens]
    assert names == ["<|im_start|>", "x", "<|im_end|>"]
