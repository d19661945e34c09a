"""The sampler's vector kernels: the same bits on every ISA path, and the cuts that are rare."""

from __future__ import annotations

import numpy as np
import pytest
import sampler_reference as reference
from sampler_reference import make_batch
from test_sampler import check_against_reference, random_batch, random_logits

from trimtab import _native
from trimtab._native import sample

VOCAB = 20_011


@pytest.mark.parametrize("vocab", [1, 15, 16, 17, 63, 64, 65, 130, 5003])
def test_every_path_gives_the_same_bits(vocab: int) -> None:
    rng = np.random.default_rng(vocab)
    rows = 100
    logits = random_logits(rng, rows, vocab)
    logits[3, vocab // 2] = np.nan
    batch = random_batch(rng, rows, vocab)
    targets = rng.integers(-1, vocab, rows).astype(np.int32)
    results = [sample(logits, batch, targets, isa) for isa in _native.available_isas()]
    for result in results[1:]:
        for expected, values in zip(results[0], result, strict=True):
            assert expected.tobytes() == values.tobytes()


@pytest.mark.parametrize("spread", [0.0, 0.3, 2.0, 8.0])
@pytest.mark.parametrize("top_p", [0.02, 0.3, 0.6, 0.95])
def test_winners_outside_top_p(spread: float, top_p: float) -> None:
    """A small p: most winners of the race among all tokens are cut off, and it is run again."""
    rng = np.random.default_rng(int(spread * 10))
    rows = 12
    logits = (rng.standard_normal((rows, VOCAB)) * spread).astype(np.float32)
    logits[::3] = np.round(logits[::3] * 2) / 2  # ties, cut inside of them by id
    batch = make_batch(
        rows, VOCAB, top_p=top_p, temperature=rng.choice([0.3, 1.0, 3.0], rows), seeds=range(rows)
    )
    check_against_reference(logits, batch, np.full(rows, -1, np.int32))


def test_small_top_k_and_top_p_together() -> None:
    rng = np.random.default_rng(1)
    rows = 40
    logits = np.round(rng.standard_normal((rows, VOCAB)) * 4).astype(np.float32)
    batch = make_batch(
        rows,
        VOCAB,
        top_k=rng.choice([2, 3, 64, 1000], rows),
        top_p=rng.choice([0.1, 0.5, 0.99, 1.0], rows),
        min_p=rng.choice([0.0, 0.2], rows),
        seeds=range(rows),
    )
    tokens = sample(logits, batch)[0]
    assert tokens.tolist() == [reference.choose(x, batch, row) for row, x in enumerate(logits)]


def test_an_unknown_path_is_refused() -> None:
    with pytest.raises(ValueError, match="mmx"):
        sample(np.zeros((1, 4), np.float32), make_batch(1, 4), None, "mmx")
