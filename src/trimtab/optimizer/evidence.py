"""What is known so far of a variant's quality, and what that decides."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from trimtab.evaluation.divergence import Divergence
from trimtab.evaluation.estimate import Estimate
from trimtab.optimizer.confidence import (
    quantile_sequence,
    ratio_sequence,
    remaining_bounds,
    share_sequence,
)
from trimtab.optimizer.quality_need import QualityNeed, QualityTerm

Status = Literal["pass", "fail", "undecided"]
TASKS_TIGHTEST_AT = 200


@dataclass(frozen=True)
class TermResult:
    """`low` and `high` hold at every look with 95 % confidence; of tasks that were all answered
    there is nothing to be unsure of. `value` is None where nothing was measured."""

    name: str
    text: str
    status: Status
    value: float | None
    low: float | None
    high: float | None
    limit: float  # of tasks relative to base: of the difference
    base: float | None = None  # tasks: the unmodified model's share

    def as_json(self) -> dict[str, Any]:
        ends = {
            name: value if value is None or math.isfinite(value) else None
            for name, value in (("value", self.value), ("low", self.low), ("high", self.high))
        }
        return {
            "name": self.name,
            "text": self.text,
            "status": self.status,
            **ends,
            "limit": self.limit,
            "base": self.base,
        }


@dataclass
class Evidence:
    """Sums of each window, and the divergence of each token."""

    tokens: list[int] = field(default_factory=list)
    kl_sums: list[float] = field(default_factory=list)
    kl: list[npt.NDArray[np.float64]] = field(default_factory=list)
    agreements: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)  # of the variant, nats
    base_losses: list[float] = field(default_factory=list)
    num_tasks: int = 0  # that there are
    right: list[bool] = field(default_factory=list)  # of those answered
    base_right: list[bool] = field(default_factory=list)

    def add_window(
        self,
        found: Divergence,
        logprobs: npt.NDArray[np.float32],
        base_logprobs: npt.NDArray[np.float32],
    ) -> None:
        self.tokens.append(len(found.kl))
        self.kl.append(found.kl)
        self.kl_sums.append(float(found.kl.sum()))
        self.agreements.append(int(found.agrees.sum()))
        self.losses.append(-float(logprobs.sum(dtype=np.float64)))
        self.base_losses.append(-float(base_logprobs.sum(dtype=np.float64)))

    def add_tasks(self, right: Sequence[bool], base_right: Sequence[bool]) -> None:
        self.right += right
        self.base_right += base_right

    def judge(self, need: QualityNeed) -> list[TermResult]:
        return [self._judge(term) for term in need.terms]

    def is_hopeless(self, need: QualityNeed, num_windows: int) -> bool:
        """Whether some term of text will not be certain with so many windows either, even if the
        truth lies at the better end of its interval: that shrinks with the root of their number."""
        if not self.tokens:
            return False
        share = math.sqrt(len(self.tokens) / max(num_windows, 1))
        for term in need.terms:
            if term.metric == "tasks" or self._judge(term).status != "undecided":
                continue
            found = self.estimate(term)
            half = share * (found.high - found.low) / 2
            best = found.low + half if term.smaller_is_better else found.high - half
            if not term.holds(best):
                return True
        return False

    def estimate(self, term: QualityTerm) -> Estimate:
        """Of a term over the windows. Needs one."""
        if term.metric == "top1":
            return share_sequence(self.agreements, self.tokens)
        if term.metric == "ppl_ratio":
            changes = np.subtract(self.losses, self.base_losses)
            return ratio_sequence(changes, self.tokens).map(_exp)
        if term.percentile is not None:
            return quantile_sequence(self.kl, term.percentile)
        found = ratio_sequence(self.kl_sums, self.tokens)
        return Estimate(found.value, max(0.0, found.low), found.high)

    def summary(self) -> dict[str, Any]:
        """Everything that was seen, asked for or not."""
        found: dict[str, Any] = {"windows": len(self.tokens), "tokens": sum(self.tokens)}
        if self.tokens:
            kl = np.concatenate(self.kl)
            total = sum(self.tokens)
            terms = {
                "kl:mean": QualityTerm("kl", "<", 0.0),
                "kl:p99": QualityTerm("kl", "<", 0.0, percentile=0.99),
                "top1": QualityTerm("top1", ">=", 0.0),
                "ppl_ratio": QualityTerm("ppl_ratio", "<", 0.0),
            }
            found |= {name: self.estimate(term).as_json() for name, term in terms.items()}
            found |= {
                "kl_median": float(np.median(kl)),
                "kl_p999": float(np.quantile(kl, 0.999)),
                "kl_max": float(kl.max()),
                "perplexity": _exp(sum(self.losses) / total),
                "base_perplexity": _exp(sum(self.base_losses) / total),
            }
        if self.right:
            found["tasks"] = {
                "answered": len(self.right),
                "of": self.num_tasks,
                "right": sum(self.right),
                "base_right": sum(self.base_right),
            }
        return found

    def _judge(self, term: QualityTerm) -> TermResult:
        if term.metric == "tasks":
            return self._judge_tasks(term)
        if not self.tokens:
            return _unseen(term)
        found = self.estimate(term)
        status: Status = "undecided"
        best, worst = (found.low, found.high)
        if not term.smaller_is_better:
            best, worst = worst, best
        if term.holds(worst):
            status = "pass"
        elif not term.holds(best):
            status = "fail"
        if not any(self.kl_sums):  # the very same numbers
            status = "pass" if term.holds(found.value) else "fail"
        return TermResult(
            term.name, term.as_text(), status, found.value, found.low, found.high, term.limit
        )

    def _judge_tasks(self, term: QualityTerm) -> TermResult:
        """The tasks are all that there is to answer: once all are, the share is known, and what the
        rest cannot change is decided before."""
        if not self.right:
            return _unseen(term)
        count = len(self.right)
        right, base = np.array(self.right, float), np.array(self.base_right, float)
        values = right - base if term.of_base else right
        value = float(values.mean())
        if count == self.num_tasks:
            low = high = value
        else:
            moved = (float(np.abs(values).sum()) + 2) / (count + 4)
            found = ratio_sequence(
                values, np.ones(count), math.sqrt(moved * max(1 - moved, 0.01)), TASKS_TIGHTEST_AT
            )
            least, most = remaining_bounds(values, self.num_tasks)
            low, high = max(found.low, least), min(found.high, most)
        status: Status = "undecided"
        if term.holds(low):
            status = "pass"
        elif not term.holds(high):
            status = "fail"
        base_share = float(base.mean())
        return TermResult("tasks", term.as_text(), status, value, low, high, term.limit, base_share)


def _unseen(term: QualityTerm) -> TermResult:
    return TermResult(term.name, term.as_text(), "undecided", None, None, None, term.limit)


def _exp(x: float) -> float:
    if x == -math.inf:
        return 0.0
    return math.exp(x) if x < 700 else math.inf
