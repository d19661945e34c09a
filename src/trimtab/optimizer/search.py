"""Which configurations are worth measuring: a search over predictions, cheap but not free.

For each variant of the model, from its default run: turn one knob at a time, keep what is predicted
to be better, go round until nothing is (coordinate descent). A setting is first asked one question,
"would it hold a little more than the best one so far?", which is one simulation; only if it would
is its own highest score looked for. What failed that question is *censored*: known to be no better
than the best, and not known any closer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from trimtab.optimizer.space import Candidate, Knob, neighbours
from trimtab.optimizer.variants import Variant

GAIN = 1.02  # what is worth a change of the defaults
MAX_PASSES = 3


class Judge(Protocol):
    """Predicts. Scores are above 0, larger ones better; 0: the need cannot be met."""

    def exceeds(self, candidate: Candidate, score: float) -> bool:
        """Whether its score would be more than that. One simulation."""
        ...

    def score(self, candidate: Candidate, at_least: float) -> float:
        """Its score, known to be more than `at_least` unless that is 0."""
        ...


@dataclass(frozen=True)
class Ranked:
    candidate: Candidate
    score: float  # predicted; of a censored one, the score that it did not exceed
    censored: bool


Stop = Callable[[], bool]  # whether time is up


def search_runs(start: Candidate, knobs: Sequence[Knob], judge: Judge, stop: Stop) -> list[Ranked]:
    """Every run of the variant that was looked at, in that order; `start` always is."""
    found = {start: Ranked(start, judge.score(start, 0.0), censored=False)}
    best = found[start]
    for _ in range(MAX_PASSES):
        before = best
        for knob in knobs:
            for other in neighbours(best.candidate, knob):
                if stop():
                    return list(found.values())
                if other not in found:
                    found[other] = _look(other, best, judge)
                if not found[other].censored and found[other].score > best.score * GAIN:
                    best = found[other]
        if best is before:
            break
    return list(found.values())


def _look(candidate: Candidate, best: Ranked, judge: Judge) -> Ranked:
    least = best.score * GAIN
    if not judge.exceeds(candidate, least):
        return Ranked(candidate, least, censored=True)
    return Ranked(candidate, judge.score(candidate, least), censored=False)


def shortlist(found: Sequence[Ranked], count: int) -> list[Candidate]:
    """The best of those whose score is known, the simplest of equal ones, best variant first and
    no variant twice before each has been taken once."""
    known = [one for one in found if not one.censored and one.score > 0]
    known.sort(key=lambda one: (-one.score, len(one.candidate.run_changes)))
    firsts: dict[Variant, Ranked] = {}
    for one in known:
        firsts.setdefault(one.candidate.variant, one)
    rest = [one for one in known if one is not firsts[one.candidate.variant]]
    return [one.candidate for one in (*firsts.values(), *rest)][:count]
