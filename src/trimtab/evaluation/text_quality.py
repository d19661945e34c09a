"""Perplexity and bits per byte of a model on text, and its distance from a baseline there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trimtab.evaluation.divergence import divergence
from trimtab.evaluation.estimate import Estimate, ratio
from trimtab.evaluation.scoring import score
from trimtab.evaluation.windows import Window
from trimtab.executors.base import Executor

MAX_ROWS = 2048  # of a step
MAX_LOGITS = 1 << 26  # floats of a step whose logits are compared


@dataclass(frozen=True)
class Distance:
    """From the baseline, over all scored tokens."""

    kl: Estimate  # mean of sum p log(p / q), p of the baseline, in nats
    kl_median: float
    kl_p99: float
    kl_max: float
    top1: Estimate  # share of positions where both rate the same token highest
    target_rms: float  # root mean square of the change in the probability of the text's own token
    nll_change: Estimate  # mean loss minus the baseline's, nats a token: paired, so narrow

    def as_json(self) -> dict[str, Any]:
        return {
            "kl_nats": self.kl.as_json(),
            "kl_median_nats": self.kl_median,
            "kl_p99_nats": self.kl_p99,
            "kl_max_nats": self.kl_max,
            "top1_agreement": self.top1.as_json(),
            "target_probability_rms_change": self.target_rms,
            "nll_change_nats": self.nll_change.as_json(),
        }


@dataclass(frozen=True)
class TextQuality:
    """Confidence intervals are over the windows."""

    num_windows: int
    num_tokens: int  # scored
    num_bytes: int  # of these
    nll: Estimate  # mean loss, nats a token
    bits_per_byte: Estimate
    distance: Distance | None

    @property
    def perplexity(self) -> Estimate:
        return self.nll.map(_exp)

    def as_json(self) -> dict[str, Any]:
        return {
            "windows": self.num_windows,
            "tokens": self.num_tokens,
            "bytes": self.num_bytes,
            "nll_nats": self.nll.as_json(),
            "perplexity": self.perplexity.as_json(),
            "bits_per_byte": self.bits_per_byte.as_json(),
            "distance": None if self.distance is None else self.distance.as_json(),
        }


def rows_of_step(vocab_size: int, with_logits: bool) -> int:
    return max(1, min(MAX_ROWS, MAX_LOGITS // vocab_size)) if with_logits else MAX_ROWS


def text_quality(
    executor: Executor, windows: Sequence[Window], baseline: Executor | None = None
) -> TextQuality:
    """Of the executor's model; with a baseline, whose vocabulary must be the same, also how far it
    is from that. Raises what `score` raises."""
    count = len(windows)
    losses, distance = np.zeros(count), None
    if baseline is None:
        for rows in score(executor, windows, rows_of_step(executor.spec.vocab_size, False)):
            losses[rows.window] -= rows.logprobs.sum(dtype=np.float64)
    else:
        distance, losses = _compare(executor, baseline, windows)
    tokens = [window.num_scored for window in windows]
    sizes = [window.num_bytes for window in windows]
    return TextQuality(
        num_windows=count,
        num_tokens=sum(tokens),
        num_bytes=sum(sizes),
        nll=ratio(losses.tolist(), tokens),
        bits_per_byte=ratio((losses / math.log(2)).tolist(), sizes),
        distance=distance,
    )


def _compare(
    executor: Executor, baseline: Executor, windows: Sequence[Window]
) -> tuple[Distance, np.ndarray[Any, np.dtype[np.float64]]]:
    """The distance, and the model's own loss of each window."""
    count = len(windows)
    losses, changes, kls, agreements = (np.zeros(count) for _ in range(4))
    all_kl, all_changes = [], []
    max_rows = rows_of_step(executor.spec.vocab_size, with_logits=True)
    pairs = zip(
        score(executor, windows, max_rows, with_logits=True),
        score(baseline, windows, max_rows, with_logits=True),
        strict=True,
    )
    for ours, theirs in pairs:
        assert ours.logits is not None
        assert theirs.logits is not None
        first = ours.first + 1
        ids = windows[ours.window].token_ids[first : first + len(ours.logprobs)]
        found = divergence(theirs.logits, ours.logits, np.asarray(ids))
        losses[ours.window] -= ours.logprobs.sum(dtype=np.float64)
        changes[ours.window] += (theirs.logprobs - ours.logprobs).sum(dtype=np.float64)
        kls[ours.window] += found.kl.sum()
        agreements[ours.window] += found.agrees.sum()
        all_kl.append(found.kl)
        all_changes.append(found.target_change)
    kl, change = np.concatenate(all_kl), np.concatenate(all_changes)
    tokens = [window.num_scored for window in windows]
    distance = Distance(
        kl=ratio(kls.tolist(), tokens),
        kl_median=float(np.median(kl)),
        kl_p99=float(np.quantile(kl, 0.99)),
        kl_max=float(kl.max()),
        top1=ratio(agreements.tolist(), tokens),
        target_rms=float(np.sqrt((change**2).mean())),
        nll_change=ratio(changes.tolist(), tokens),
    )
    return distance, losses


def _exp(x: float) -> float:
    return math.exp(x) if x < 700 else math.inf
