"""Whether speculation as a whole is faster than leaving it: measured on whole steps.

What a step costs is modelled, and a model can be wrong; guessing takes time that no model of the
executor sees. So steps with and without speculation are timed from end to end, in turns, wherever
the gain is not beyond doubt.

    in doubt, on better   | on .................................... | off | on ...
    in doubt, off better  | off ................................... | on  | off ...
    clearly better        | on ...

Each trial in a row that off has won doubles the steps until the next one, up to MOST_PATIENCE: what
does not pay in a full batch is hardly tried there any more.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from trimtab.engine.timing import StepPart

FIRST = 48  # steps before the first comparison
CYCLE = 128  # and then between two
SPACING = 32  # at least, also when a request begins
TRIAL = 8  # of these, with the other way
CLEAR = 1.5  # a gain that needs no comparison
CLEAR_CYCLE = 1024  # steps between comparisons then
MOST_PATIENCE = 16
WORTH = (
    1.05  # smaller gains are noise, and guessing has costs that trials of a few steps do not see
)
MEMORY = 0.97  # of what is known of a way, from step to step
OVERHEAD_WEIGHT = 0.05


class _Way:
    """Tokens and seconds of recent steps."""

    def __init__(self) -> None:
        self.tokens = 0.0
        self.seconds = 0.0

    @property
    def rate(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0

    def learn(self, tokens: int, seconds: float) -> None:
        self.tokens = self.tokens * MEMORY + tokens
        self.seconds = self.seconds * MEMORY + seconds

    def forget(self, factor: float) -> None:
        self.tokens /= factor
        self.seconds /= factor


class Duty:
    """For batches of about one size."""

    def __init__(self) -> None:
        self.overhead = 0.0  # seconds of a step with drafts outside the executor, beyond any step's
        self._on, self._off = _Way(), _Way()
        self._is_on = True  # this step
        self._prefers_on = True
        self._left = FIRST  # steps until the other way is tried; below 0 while it is
        self._outside = 0.0  # the executor, in steps without drafts
        self._num_same = 0  # steps in a row that went the same way
        self._patience = 1  # how much rarer trials are, since they keep being lost

    @property
    def num_left(self) -> float:
        """Steps with drafts that are to be expected, this one among them: few in a trial."""
        if self._prefers_on:
            return inf
        return max(1, TRIAL + self._left + 1)

    def begin(self, is_new: bool) -> bool:
        """Whether the step that comes may have drafts. `is_new`: a request has just begun to
        decode, and may be better to guess than others were."""
        if is_new and not self._prefers_on:
            rested = self._patience * CYCLE - self._left
            if self._left > 0 and rested >= self._patience * SPACING:
                self._left = 0
        is_trial = self._left <= 0
        if is_trial and self._left <= -TRIAL:
            self._decide()
            is_trial = False
        if self._left == 0:  # a trial begins: what was long ago counts less
            (self._off if self._prefers_on else self._on).forget(self._patience)
        self._left -= 1
        is_on = self._prefers_on != is_trial
        self._num_same = self._num_same + 1 if is_on == self._is_on else 0
        self._is_on = is_on
        return is_on

    def learn(self, num_tokens: int, parts: Sequence[float], has_drafts: bool) -> None:
        """A step of decodes is over; `parts`: its seconds."""
        outside = parts[StepPart.SCHEDULE] + parts[StepPart.BUILD] + parts[StepPart.COMMIT]
        if has_drafts:
            beyond = max(0.0, outside - self._outside)
            self.overhead += OVERHEAD_WEIGHT * (beyond - self.overhead)
        elif self._num_same and self._outside:
            self._outside += OVERHEAD_WEIGHT * (outside - self._outside)
        else:
            self._outside = self._outside or outside
        if self._num_same:  # the first step of a kind finds nothing prepared
            way = self._on if self._is_on else self._off
            way.learn(num_tokens, outside + parts[StepPart.DRAFT] + parts[StepPart.EXECUTE])

    def charge(self, seconds: float) -> None:
        """Guessing took so long in a step that is not compared: a prompt was in it. Most of what a
        new request costs falls into such steps."""
        if self._is_on and self._num_same:
            self._on.learn(0, seconds)

    def _decide(self) -> None:
        """A trial is over."""
        was_on = self._prefers_on
        self._prefers_on = self._on.rate >= WORTH * self._off.rate
        is_clear = self._prefers_on and self._on.rate > CLEAR * self._off.rate
        if self._prefers_on:
            self._patience = 1
        elif not was_on:
            self._patience = min(2 * self._patience, MOST_PATIENCE)
        self._left = CLEAR_CYCLE if is_clear else self._patience * CYCLE
