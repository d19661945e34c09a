"""Frequencies of drawn tokens against the exact distributions, with fixed seeds."""

from __future__ import annotations

from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
from sampler_reference import adjusted_logits, make_batch, survivors

from trimtab._native import sample

ALPHA = 1e-4
DRAWS = 20_000


def chi_square_limit(freedom: int) -> float:
    """The (1 - ALPHA) quantile, by Wilson and Hilferty."""
    z = NormalDist().inv_cdf(1 - ALPHA)
    return freedom * (1 - 2 / (9 * freedom) + z * np.sqrt(2 / (9 * freedom))) ** 3


def check_frequencies(counts: np.ndarray, probabilities: np.ndarray) -> None:
    """Cells with an expectation below 8 are pooled; impossible ones must be empty."""
    assert np.all(counts[probabilities == 0] == 0)
    expected = probabilities * counts.sum()
    rare = expected < 8
    observed = np.append(counts[~rare], counts[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    observed, expected = observed[expected > 0], expected[expected > 0]
    if len(expected) > 1:
        statistic = np.sum((observed - expected) ** 2 / expected)
        assert statistic < chi_square_limit(len(expected) - 1)


def draw(logits: np.ndarray, fields: dict[str, Any], **keys: Any) -> np.ndarray:
    rows = len(keys["positions"]) if "positions" in keys else len(keys["seeds"])
    per_row = {
        name: [value] * rows if name in ("bias", "banned", "prompt", "output", "allowed") else value
        for name, value in fields.items()
    }
    batch = make_batch(rows, len(logits), **per_row, **keys)
    return sample(np.tile(logits, (rows, 1)), batch)[0]


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "cold": {"temperature": 0.4},
    "hot": {"temperature": 3.0},
    "top-k": {"top_k": 5},
    "top-p": {"top_p": 0.8},
    "min-p": {"min_p": 0.1},
    "all filters": {"temperature": 1.3, "top_k": 12, "top_p": 0.9, "min_p": 0.02},
    "penalties": {
        "repetition_penalty": 1.3,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.3,
        "prompt": [0, 1, 2, 2],
        "output": [2, 3, 3, 3, 7],
    },
    "bias": {"bias": {4: 2.0, 9: -3.0, 15: 5.0}},
    "mask": {"allowed": [1, 3, 8, 20, 33]},
    "banned": {"banned": [0, 5, 6]},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("key", ["positions", "seeds"])
def test_frequencies(case: str, key: str) -> None:
    logits = (np.random.default_rng(1).standard_normal(40) * 2).astype(np.float32)
    keys: dict[str, Any] = {key: np.arange(DRAWS)}
    if key == "positions":
        keys["seeds"] = 1234567890123456789
    tokens = draw(logits, CASES[case], **keys)
    one = {
        name: [value] if name in ("bias", "banned", "prompt", "output", "allowed") else value
        for name, value in CASES[case].items()
    }
    batch = make_batch(1, 40, **one)
    ids, weights = survivors(adjusted_logits(logits, batch, 0), batch, 0)
    probabilities = np.zeros(40)
    probabilities[ids] = weights
    check_frequencies(np.bincount(tokens, minlength=40), probabilities)


@pytest.mark.parametrize("vocab", [2, 64, 65, 1500])
def test_flat_distribution(vocab: int) -> None:
    tokens = draw(np.zeros(vocab, np.float32), {}, positions=np.arange(DRAWS))
    check_frequencies(np.bincount(tokens, minlength=vocab), np.full(vocab, 1 / vocab))


def test_rare_tokens_are_drawn_as_often_as_they_should() -> None:
    """The tail of the race: one likely token and many unlikely ones far below it."""
    logits = np.full(3000, -12.0, np.float32)
    logits[1234] = 0.0
    tail = 2999 * np.exp(-12.0)
    tokens = draw(logits, {}, positions=np.arange(DRAWS))
    expected = DRAWS * tail / (1 + tail)  # about 362
    assert abs(np.sum(tokens != 1234) - expected) < 3.9 * np.sqrt(expected)


@pytest.mark.parametrize("neighbour", ["position", "seed", "position, after filters"])
def test_neighbours_are_independent(neighbour: str) -> None:
    """Pairs at (p, p + 1), or seeds (s, s + 1), against the product of the marginals."""
    logits = np.array([0.3, -0.5, 0.9, 0.0, -1.0, 0.2], np.float32)
    fields: dict[str, Any] = {"top_k": 5, "top_p": 0.97} if "filters" in neighbour else {}
    if neighbour == "seed":
        tokens = draw(logits, fields, seeds=np.arange(2 * DRAWS), positions=np.full(2 * DRAWS, 9))
    else:
        tokens = draw(logits, fields, positions=np.arange(2 * DRAWS), seeds=99)
    batch = make_batch(1, 6, **fields)
    ids, weights = survivors(logits, batch, 0)
    marginal = np.zeros(6)
    marginal[ids] = weights
    pairs = np.bincount(tokens[0::2] * 6 + tokens[1::2], minlength=36)
    check_frequencies(pairs, np.outer(marginal, marginal).ravel())


def test_shared_noise_couples_close_distributions() -> None:
    """What speculation relies on: nearly the same logits give mostly the same token."""
    rng = np.random.default_rng(5)
    logits = (rng.standard_normal(50) * 2).astype(np.float32)
    near = logits + (rng.standard_normal(50) * 0.05).astype(np.float32)
    keys = {"positions": np.arange(4000), "seeds": 3}
    same = np.mean(draw(logits, {}, **keys) == draw(near, {}, **keys))
    assert same > 0.9
