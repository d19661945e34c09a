"""What quality is asked for: `kl:mean<0.02; kl:p99<0.5; top1>=0.98; ppl_ratio<1.02; tasks>=base`.

kl:mean, kl:pNN    KL divergence from the unmodified model a token, in nats: mean, percentile
top1               share of positions where both rate the same token highest
ppl_ratio          perplexity over the unmodified model's, on the same text
tasks              share of the tasks answered right: at least `base` (the unmodified model's
                   own share) less so many percentage points, or at least a share
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from trimtab.errors import UserError

Relation = Literal["<", "<=", ">", ">="]
EXAMPLE = "kl:mean<0.02; kl:p99<0.5; top1>=0.98; ppl_ratio<1.02; tasks>=base-1%"
_TERM = re.compile(r"([a-z_0-9]+)(?::([a-z0-9.]+))?\s*(<=|>=|<|>)\s*(\S+)")
_NUMBER = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(?:e[+-]?\d+)?(%?)")
_BASE = re.compile(r"base(?:-(.+))?")
_AT_MOST = ("kl", "ppl_ratio")  # smaller is better
_AT_LEAST = ("top1", "tasks")


@dataclass(frozen=True)
class QualityTerm:
    """One condition. `limit` is a share for top1 and tasks, nats for kl."""

    metric: Literal["kl", "top1", "ppl_ratio", "tasks"]
    relation: Relation
    limit: float
    percentile: float | None = None  # of kl, in (0, 1); None = the mean
    of_base: bool = False  # tasks: the limit is the unmodified model's share plus `limit`

    @property
    def name(self) -> str:
        """`kl:mean`, `kl:p99.9`, `top1`."""
        if self.metric != "kl":
            return self.metric
        return "kl:mean" if self.percentile is None else f"kl:p{100 * self.percentile:.10g}"

    @property
    def smaller_is_better(self) -> bool:
        return self.relation in ("<", "<=")

    def as_text(self) -> str:
        if self.of_base:
            base = f"base-{-100 * self.limit:.10g}%" if self.limit else "base"
            return f"{self.name}{self.relation}{base}"
        return f"{self.name}{self.relation}{self.limit:.10g}"

    def holds(self, value: float, base: float = 0.0) -> bool:
        """Of a value that is known; `base` is the unmodified model's share of the tasks."""
        limit = self.limit + (base if self.of_base else 0.0)
        if self.relation == "<":
            return value < limit
        if self.relation == "<=":
            return value <= limit
        return value > limit if self.relation == ">" else value >= limit - 1e-12


@dataclass(frozen=True)
class QualityNeed:
    terms: tuple[QualityTerm, ...] = ()

    def as_text(self) -> str:
        """What `parse_quality` makes the same need of."""
        return "; ".join(term.as_text() for term in self.terms)

    @property
    def needs_tasks(self) -> bool:
        return any(term.metric == "tasks" for term in self.terms)


def parse_quality(text: str) -> QualityNeed:
    """Terms with ; between; an empty text asks for nothing. Raises UserError, naming the term."""
    terms = tuple(_parse_term(part.strip()) for part in text.split(";") if part.strip())
    names = [term.name for term in terms]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"quality {text!r}: {name} stands there twice")
    return QualityNeed(terms)


def _parse_term(text: str) -> QualityTerm:
    found = _TERM.fullmatch(text)
    if found is None:
        raise _refused(text, "not METRIC<LIMIT or METRIC>=LIMIT")
    metric, statistic, relation, limit = found.groups()
    if metric not in (*_AT_MOST, *_AT_LEAST):
        raise _refused(text, f"there is no metric {metric!r}")
    if (relation[0] == "<") != (metric in _AT_MOST):
        better = "<" if metric in _AT_MOST else ">="
        raise _refused(text, f"{metric} is better the {_better(metric)} it is: use {better}")
    percentile = None
    if metric == "kl":
        percentile = _percentile(text, statistic)
    elif statistic is not None:
        raise _refused(text, f"{metric} has no {statistic!r}")
    if metric == "tasks" and limit.startswith("base"):
        return QualityTerm("tasks", relation, _base(text, limit), of_base=True)  # type: ignore[arg-type]
    value = _number(text, limit, metric != "kl")
    if metric in _AT_LEAST and not 0 <= value <= 1:
        raise _refused(text, "a share is between 0 and 1 (or 0 % and 100 %)")
    return QualityTerm(metric, relation, value, percentile)  # type: ignore[arg-type]


def _percentile(text: str, statistic: str | None) -> float | None:
    if statistic == "mean":
        return None
    found = re.fullmatch(r"p(\d{1,2}(?:\.\d+)?)", statistic or "")
    share = float(found.group(1)) / 100 if found else 0.0
    if not 0 < share < 1:
        raise _refused(text, "say of what: kl:mean, or a percentile such as kl:p99")
    return share


def _base(text: str, limit: str) -> float:
    found = _BASE.fullmatch(limit)
    if found is None:
        raise _refused(text, "use base, or base-1%")
    if found.group(1) is None:
        return 0.0
    share = _number(text, found.group(1), True)
    if share > 1:
        raise _refused(text, "nobody can lose more than 100 %")
    return -share


def _number(text: str, limit: str, may_be_percent: bool) -> float:
    found = _NUMBER.fullmatch(limit)
    if found is None or (found.group(2) and not may_be_percent):
        raise _refused(text, f"{limit!r} is no number")
    value = float(limit.removesuffix("%"))
    if not math.isfinite(value):
        raise _refused(text, f"{limit!r} is too large")
    return value / 100 if found.group(2) else value


def _better(metric: str) -> str:
    return "smaller" if metric in _AT_MOST else "larger"


def _refused(text: str, why: str) -> UserError:
    return UserError(f"quality {text!r}: {why}; for instance {EXAMPLE!r}")
