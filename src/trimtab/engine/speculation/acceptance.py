"""How often drafted tokens turn out right, measured as they are verified.

Two things are learned. Of each proposer, the rate at which tokens of each confidence class are
right, if those before them were. Of each request, whether it does better or worse than these rates
say: text that repeats itself, or a topic that the draft model does not know.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trimtab.engine.speculation.draft import Draft

PRIOR_WEIGHT = 8.0  # tokens that the prior of a class counts for
MEMORY = 512.0  # tokens of a class that are remembered, about
REQUEST_WEIGHT = 3.0  # accepted tokens that "as the classes say" counts for, in a request
REQUEST_MEMORY = 24.0  # expected tokens of a request that are remembered, about
FORGETTING = 1 / 64  # of what is known of a request, in each step in which it drafts nothing
MAX_RATE = 0.98  # what no class is believed to exceed


class ClassRates:
    """Of one proposer."""

    def __init__(self, priors: Sequence[float]) -> None:
        self._right = [PRIOR_WEIGHT * prior for prior in priors]
        self._count = [PRIOR_WEIGHT] * len(priors)
        self._first_right = self._first_count = 0.0
        self._best = max(priors)

    def rate(self, confidence: int) -> float:
        return self._right[confidence] / self._count[confidence]

    @property
    def first(self) -> float:
        """The rate of first tokens, over the drafts that there were; the best prior if none."""
        return (self._first_right + self._best) / (self._first_count + 1.0)

    def learn(self, confidence: int, is_right: bool) -> None:
        count = self._count[confidence] + 1.0
        keep = min(1.0, MEMORY / count)
        self._count[confidence] = count * keep
        self._right[confidence] = (self._right[confidence] + is_right) * keep

    def learn_first(self, is_right: bool) -> None:
        count = self._first_count + 1.0
        keep = min(1.0, MEMORY / count)
        self._first_count = count * keep
        self._first_right = (self._first_right + is_right) * keep


@dataclass(slots=True)
class RequestFactor:
    """What the rates of one request's tokens are multiplied with, by one proposer."""

    expected: float = 0.0
    accepted: float = 0.0

    @property
    def value(self) -> float:
        return (self.accepted + REQUEST_WEIGHT) / (self.expected + REQUEST_WEIGHT)

    def learn(self, expected: float, accepted: int) -> None:
        keep = min(1.0, REQUEST_MEMORY / (self.expected + expected + 1e-9))
        self.expected = (self.expected + expected) * keep
        self.accepted = (self.accepted + accepted) * keep

    def forget(self) -> None:
        self.expected *= 1 - FORGETTING
        self.accepted *= 1 - FORGETTING


class Acceptance:
    """All of it. `proposer` is an index, as in Draft."""

    def __init__(self, priors: Sequence[Sequence[float]]) -> None:
        self._classes = [ClassRates(of_one) for of_one in priors]
        self._factors: list[dict[str, RequestFactor]] = [{} for _ in priors]

    def first(self, proposer: int, request_id: str) -> float:
        """The expected rate of a first token of this request."""
        return min(MAX_RATE, self._classes[proposer].first * self.factor(proposer, request_id))

    def factor(self, proposer: int, request_id: str) -> float:
        factor = self._factors[proposer].get(request_id)
        return 1.0 if factor is None else factor.value

    def token(self, proposer: int, request_id: str, confidence: int) -> float:
        """The probability that a token is right, if those before it are."""
        rate = self._classes[proposer].rate(confidence) * self.factor(proposer, request_id)
        return min(MAX_RATE, rate)

    def learn(self, draft: Draft, num_accepted: int) -> None:
        """A draft was verified: its tokens up to the first wrong one tell something."""
        rates = self._classes[draft.proposer]
        expected = 0.0
        rates.learn_first(num_accepted > 0)
        for place, confidence in enumerate(draft.confidences[: num_accepted + 1]):
            expected += rates.rate(confidence)
            rates.learn(confidence, place < num_accepted)
        factors = self._factors[draft.proposer]
        factor = factors.setdefault(draft.request.request_id, RequestFactor())
        factor.learn(expected, num_accepted)

    def passed_over(self, proposer: int, request_id: str) -> None:
        """A step in which the request could have had a draft and had none: what is known of it
        loses weight, so that it is tried again."""
        factor = self._factors[proposer].get(request_id)
        if factor is not None:
            factor.forget()

    def forget(self, request_id: str) -> None:
        for factors in self._factors:
            factors.pop(request_id, None)
