"""The baseline: a byte n-gram model with interpolated modified Kneser-Ney smoothing.

Source: Chen and Goodman, "An Empirical Study of Smoothing Techniques for Language Modeling", 1998.

    python ngram.py --work DIR [--order 6]
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

MAX_ORDER = 8  # an n-gram is packed into one uint64


def packed_ngrams(data: np.ndarray, order: int) -> np.ndarray:
    """The n-grams of a byte array, oldest byte highest; [len(data) - order + 1] uint64."""
    count = len(data) - order + 1
    packed = np.zeros(count, dtype=np.uint64)
    for offset in range(order):
        packed = (packed << np.uint64(8)) | data[offset : offset + count].astype(np.uint64)
    return packed


@dataclass(frozen=True)
class Level:
    """Sorted n-grams of one order with their counts, and sums over each context."""

    ngrams: np.ndarray
    counts: np.ndarray
    contexts: np.ndarray
    totals: np.ndarray
    reserved: np.ndarray  # probability mass that discounting frees, times the total
    discounts: np.ndarray  # by min(count, 3)


def _lookup(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """values where keys == wanted, 0 elsewhere; keys are sorted."""
    places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[places] == wanted, values[places], 0)


def _make_level(ngrams: np.ndarray, counts: np.ndarray) -> Level:
    of_count = [np.count_nonzero(counts == count) for count in (1, 2, 3, 4)]
    n1, n2, n3, n4 = (max(1, number) for number in of_count)
    ratio = n1 / (n1 + 2 * n2)
    discounts = np.array(
        [0, 1 - 2 * ratio * n2 / n1, 2 - 3 * ratio * n3 / n2, 3 - 4 * ratio * n4 / n3]
    )
    discounts = np.clip(discounts, 0, [0, 1, 2, 3])
    contexts, starts = np.unique(ngrams >> np.uint64(8), return_index=True)
    return Level(
        ngrams,
        counts,
        contexts,
        np.add.reduceat(counts, starts),
        np.add.reduceat(discounts[np.minimum(counts, 3)], starts),
        discounts,
    )


class KneserNey:
    """P(byte | up to order - 1 bytes before it), uniform over 256 bytes at the bottom."""

    def __init__(self, text: bytes, order: int = 6) -> None:
        if not 2 <= order <= MAX_ORDER:
            raise ValueError(f"order must be from 2 to {MAX_ORDER}, not {order}")
        self.order = order
        data = np.frombuffer(text, dtype=np.uint8)
        ngrams, counts = np.unique(packed_ngrams(data, order), return_counts=True)
        self.levels = [_make_level(ngrams, counts)]
        for shorter in range(order - 1, 0, -1):
            # Lower orders count in how many different contexts an n-gram occurs.
            mask = np.uint64((1 << (8 * shorter)) - 1)
            ngrams, counts = np.unique(ngrams & mask, return_counts=True)
            self.levels.insert(0, _make_level(ngrams, counts))

    def probabilities(self, text: bytes) -> np.ndarray:
        """P of each byte but the first order - 1, which serve as context only."""
        data = np.frombuffer(text, dtype=np.uint8)
        count = len(data) - self.order + 1
        result = np.full(count, 1 / 256)
        for length, level in enumerate(self.levels, start=1):
            grams = packed_ngrams(data, length)[-count:]
            counts = _lookup(level.ngrams, level.counts, grams)
            contexts = grams >> np.uint64(8)
            totals = _lookup(level.contexts, level.totals, contexts)
            reserved = _lookup(level.contexts, level.reserved, contexts)
            kept = counts - level.discounts[np.minimum(counts, 3)]
            seen = totals > 0
            safe = np.where(seen, totals, 1)
            result = np.where(seen, (kept + reserved * result) / safe, result)
        return result

    def bits_per_byte(self, text: bytes) -> float:
        return float(-np.log2(self.probabilities(text)).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("build/builtin_model"))
    parser.add_argument("--order", type=int, default=6)
    args = parser.parse_args()
    documents = json.loads((args.work / "corpus.json").read_text())
    held_out = (args.work / "heldout.txt").read_bytes()
    model = KneserNey("\n".join(documents).encode(), args.order)
    print(f"order {args.order}: {model.bits_per_byte(held_out):.4f} bits per byte")


if __name__ == "__main__":
    main()
