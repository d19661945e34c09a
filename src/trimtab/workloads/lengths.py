"""How long prompts and answers are: quantiles of public traces, drawn from by inverse CDF.

Fitted lognormals are poor (Kolmogorov-Smirnov distance 0.07 to 0.22 on these traces), so between
the quantiles lengths are interpolated in log space.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

_PROBABILITIES = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999)


@dataclass(frozen=True)
class QuantileTable:
    """Lengths in tokens at rising probabilities. Below the first and above the last, the ends."""

    source: str
    probabilities: tuple[float, ...]
    values: tuple[float, ...]

    def at(self, probability: float) -> float:
        return math.exp(np.interp(probability, self.probabilities, np.log(self.values)))


@dataclass(frozen=True)
class LogNormal:
    """Of what no trace tells: an assumption, and called so in the description."""

    median: float
    sigma: float
    least: float
    greatest: float

    @property
    def source(self) -> str:
        return (
            f"assumed: lognormal, median {self.median:g}, sigma {self.sigma:g}, "
            f"{self.least:g} to {self.greatest:g}"
        )

    def at(self, probability: float) -> float:
        value = self.median * math.exp(self.sigma * NormalDist().inv_cdf(probability))
        return min(self.greatest, max(self.least, value))


Lengths = QuantileTable | LogNormal


def uniform(rng: np.random.Generator) -> float:
    """Strictly between 0 and 1, where every quantile is finite."""
    return min(1 - 1e-12, max(1e-12, float(rng.random())))


def draw(lengths: Lengths, rng: np.random.Generator, scale: float = 1.0) -> int:
    """One length, times `scale`, at least 1."""
    return max(1, round(scale * lengths.at(uniform(rng))))


def _table(source: str, *values: float) -> QuantileTable:
    return QuantileTable(source, _PROBABILITIES, values)


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """Mean and quantiles as in the tables below (nearest rank), for descriptions."""
    ordered = np.sort(np.asarray(values, np.float64))
    if not len(ordered):
        return {}
    named = {
        f"p{100 * one:g}": float(ordered[min(len(ordered) - 1, math.ceil(one * len(ordered)) - 1)])
        for one in _PROBABILITIES
    }
    return {"mean": float(ordered.mean()), **named}


# AzurePublicDataset, LLM inference trace 2023, code (8,819 requests) and conversation (19,366).
AZURE_CODE_IN = _table("azure-code, 2023", 17, 75, 147, 578, 1469, 2745, 5186, 7302, 7436, 7437)
AZURE_CODE_OUT = _table("azure-code, 2023", 6, 6, 7, 9, 13, 24, 55, 90, 252, 824)
AZURE_CONV_IN = _table("azure-conv, 2023", 29, 181, 207, 396, 1020, 1189, 2735, 4083, 4142, 6212)
AZURE_CONV_OUT = _table("azure-conv, 2023", 16, 41, 54, 85, 129, 395, 424, 451, 601, 954)
# Summaries of arXiv papers up to 4k tokens as Vidur ships them (28,257).
ARXIV_IN = _table("arxiv-summ, Vidur", 73, 749, 1242, 1986, 2730, 3370, 3702, 3813, 3933, 4012)
ARXIV_OUT = _table("arxiv-summ, Vidur", 36, 60, 78, 115, 167, 242, 372, 736, 3270, 3845)
# Mooncake's FAST'25 traces: the answers of the synthetic one (3,993), many of them tool calls.
MOONCAKE_OUT = _table("mooncake-synthetic, FAST'25", 2, 2, 4, 11, 69, 250, 389, 519, 768, 813)
# ServeGen (Alibaba), m-large, weighted by rate: three quantiles are published.
SERVEGEN_LARGE_OUT = QuantileTable("ServeGen m-large", (0.1, 0.5, 0.9, 0.99), (6, 30, 133, 828))
