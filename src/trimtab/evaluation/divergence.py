"""How far one distribution of the next token is from another, position by position."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Float64Array = npt.NDArray[np.float64]
ROWS = 64  # worked on at once: what is between them stays in the caches for small vocabularies


@dataclass(frozen=True)
class Divergence:
    """Of n positions, with p of the baseline and q of the model under test."""

    kl: Float64Array  # [n] sum of p log(p / q) over the vocabulary, in nats
    agrees: npt.NDArray[np.bool_]  # [n] both rate the same token highest
    target_change: Float64Array  # [n] q - p of the token that follows in the text


def log_softmax(logits: npt.NDArray[Any]) -> Float64Array:
    """[n, vocab] in float64."""
    wide: Float64Array = logits.astype(np.float64)
    wide -= wide.max(1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(1, keepdims=True))
    return wide


def divergence(
    baseline: npt.NDArray[Any], logits: npt.NDArray[Any], targets: npt.NDArray[np.integer[Any]]
) -> Divergence:
    """Logits [n, vocab] of either, and the tokens [n] that follow in the text."""
    count = len(logits)
    kl, change = np.empty(count), np.empty(count)
    agrees = np.empty(count, bool)
    for first in range(0, count, ROWS):
        rows = slice(first, first + ROWS)
        top_p, top_q = baseline[rows].argmax(1), logits[rows].argmax(1)
        agrees[rows] = top_p == top_q
        p, q = _below(baseline[rows], top_p), _below(logits[rows], top_q)
        with np.errstate(invalid="ignore"):  # both may rule a token out
            gap = p - q
        p, q = np.exp(p), np.exp(q)  # times their sums
        gap[p == 0] = 0  # 0 log 0 is 0: what the baseline rules out costs nothing
        sum_p, sum_q = p.sum(1), q.sum(1)
        kl[rows] = np.einsum("ij,ij->i", p, gap) / sum_p + np.log(sum_q / sum_p)
        places = np.arange(len(p)), targets[rows]
        change[rows] = q[places] / sum_q - p[places] / sum_p
    return Divergence(kl, agrees, change)


def _below(logits: npt.NDArray[Any], top: npt.NDArray[np.integer[Any]]) -> Float64Array:
    """How far each logit is from its row's largest, in float64."""
    wide: Float64Array = logits.astype(np.float64)
    wide -= wide[np.arange(len(wide)), top, None]
    return wide
