"""What a step of the target takes, and a guess, as far as is known when they are planned."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter

from trimtab.engine.speculation.costs import StepCosts
from trimtab.engine.speculation.draft import Draft
from trimtab.engine.speculation.proposer import Proposer

LOOKAHEAD = 4  # rows over which the cost of one more is averaged: kernels take rows by the tile
MIN_PACE = 1e-6  # seconds
SMALL_BACKLOG = 32  # tokens that cost next to nothing
BACKLOG_SIZE = 128  # tokens of a step that works through a backlog, until that was measured


class PlannedStep:
    """The step that is planned, as far as it is known."""

    def __init__(
        self,
        costs: StepCosts,
        num_rows: int,
        num_tokens: int,
        overhead: float,
        num_left: float,
    ) -> None:
        """`overhead`: seconds that a step with drafts takes outside the executor, beyond those that
        any step takes. `num_left`: steps with drafts to be expected; infinite outside trials."""
        self.costs = costs
        self.overhead = overhead
        self.num_left = num_left
        self.num_rows = num_rows
        self.num_tokens = num_tokens  # without drafts
        # What prompts take of it, they take anyway: a token is worth what it costs without them.
        self._given = costs.seconds(num_rows) - costs.seconds(num_tokens)
        self.seconds = costs.seconds(num_tokens)
        self.base_rate = num_tokens / self.seconds
        self.rate = self.base_rate  # tokens a second, that another row must not lower
        # Of one more row, on average over the next few.
        self.row_seconds = (self.seconds_with(LOOKAHEAD) - self.seconds) / LOOKAHEAD

    def seconds_with(self, count: int) -> float:
        """With so many drafted tokens, without what prompts take."""
        return self.costs.seconds(self.num_rows + count) - self._given

    def is_worth(self, survival: float, seconds: float) -> bool:
        """Whether a token of such a survival pays for its row and the time to guess it."""
        return survival > self.rate * (self.row_seconds + seconds)

    def pays(self, num_drafts: int, rate: float, seconds: float, limit: int) -> bool:
        """Whether some length pays, at `rate` for each token and so many seconds for one of all
        drafts."""
        tokens, survival = float(self.num_tokens), 1.0
        for length in range(1, limit + 1):
            survival *= rate
            tokens += num_drafts * survival
            time = self.seconds_with(num_drafts * length) + length * seconds + self.overhead
            if tokens > self.base_rate * time:
                return True
        return False


class Pace:
    """How long a proposer takes for one more token of all the drafts that it is asked for."""

    def __init__(self, proposer: Proposer) -> None:
        self.num_passed = 0  # steps in which it was not asked
        self._proposer = proposer
        self._by_size: dict[int, float] = {}  # by the bit length of the number of drafts
        self._start = self._first = self._last = 0.0
        self._token_seconds = 0.0  # of a backlog; 0: not measured
        self._backlog = 0

    @property
    def token_seconds(self) -> float:
        """For one token of a backlog."""
        return self._token_seconds or self._proposer.guess_seconds(BACKLOG_SIZE) / BACKLOG_SIZE

    def seconds(self, num_drafts: int) -> float:
        size = num_drafts.bit_length()
        if size not in self._by_size:
            self._by_size[size] = self._proposer.guess_seconds(num_drafts)
        return self._by_size[size]

    def start(self, drafts: Sequence[Draft]) -> None:
        self._backlog = self._count(drafts)
        self._start, self._first = perf_counter(), 0.0

    def lap(self) -> None:
        """A token was proposed."""
        self._last = perf_counter()
        if not self._first:
            self._first = self._last

    def stop(self, drafts: Sequence[Draft]) -> None:
        """What comes before the first token is work that is done once, on a backlog."""
        num_done = self._backlog - self._count(drafts)
        if num_done > SMALL_BACKLOG:
            spent = (self._first or perf_counter()) - self._start
            seconds = max(MIN_PACE / num_done, (spent - self.seconds(len(drafts))) / num_done)
            self._token_seconds += (seconds - self._token_seconds) / (
                4 if self._token_seconds else 1
            )
        length = max(map(len, drafts))
        if length > 1:
            known = self.seconds(len(drafts))
            seconds = min((self._last - self._first) / (length - 1), 4 * known + MIN_PACE)
            self._by_size[len(drafts).bit_length()] = known + (seconds - known) / 8

    def _count(self, drafts: Sequence[Draft]) -> int:
        return sum(self._proposer.backlog(draft.request) for draft in drafts)
