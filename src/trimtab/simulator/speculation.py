"""Guessing tokens ahead, in a simulation: how long drafts are, and how many of their tokens hold.

The engine's Speculator asks real proposers about real text. Here the rates are given, by position:
l of drafts that have a token there, s of such tokens that are right if those before them were. The
most tokens of a draft are what it would choose, for most expected tokens over time of the step:

    N + drafts * (l1 s1 + l2 s1 s2 + ...)  /  seconds(rows + drafts * (l1 + l2 + ...)) + guessing
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from trimtab.engine.client import SpeculationStats
from trimtab.engine.kv_cache import KVCacheManager
from trimtab.engine.request import Request
from trimtab.engine.scheduler import Chunk, StepPlan
from trimtab.engine.speculation.draft import Draft
from trimtab.engine.speculation.speculator import MAX_KNOWN_ROWS
from trimtab.errors import ConfigError

NEVER = 1 << 40  # steps


@dataclass(frozen=True)
class SpeculationModel:
    """`acceptance[i]`: how often token i of a draft is right if those before it were; no draft is
    longer than that. `lengths[i]`: how often a draft has a token i, if tokens are to be had; empty:
    always. Answers that repeat something go on doing so, hence `stay`."""

    acceptance: tuple[float, ...]
    share: float = 1.0  # of a request's decode steps in which its proposer has anything to guess,
    stay: float | None = None  # and of those behind a step in which it had; None: no difference
    guess_seconds: float = 0.0  # for one token of one draft
    lengths: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.lengths:
            object.__setattr__(self, "lengths", (1.0,) * len(self.acceptance))
        rates = (*self.acceptance, *self.lengths, self.share, self.stay or 0.0)
        if not self.acceptance or not all(0 <= rate <= 1 for rate in rates):
            raise ConfigError("speculation needs acceptance rates by position, each in [0, 1]")
        falling = sorted(self.lengths, reverse=True)
        if len(self.lengths) != len(self.acceptance) or list(self.lengths) != falling:
            raise ConfigError("lengths must be as many as acceptance rates, and not rise")
        if self.guess_seconds < 0:
            raise ConfigError("guess_seconds must not be negative")

    @classmethod
    def from_stats(
        cls, stats: SpeculationStats, num_decodes: int, draft_seconds: float = 0.0
    ) -> SpeculationModel | None:
        """What an engine has counted: `num_decodes` single tokens that it decoded, drafts or not,
        and the seconds that it guessed. None if it drafted nothing."""
        survivals = [
            accepted / drafted
            for drafted, accepted in zip(
                stats.drafted_by_position, stats.accepted_by_position, strict=True
            )
            if drafted
        ]
        if not survivals:
            return None
        before = [1.0, *survivals[:-1]]
        rates = [min(1.0, s / b) if b else 0.0 for s, b in zip(survivals, before, strict=True)]
        share = min(1.0, stats.num_drafts / max(1, num_decodes))
        most = max(stats.num_drafts, stats.drafted_by_position[0])
        lengths = [drafted / most for drafted in stats.drafted_by_position[: len(rates)]]
        guessing = draft_seconds / max(1, stats.num_drafted)
        return cls(tuple(rates), share, None, guessing, tuple(lengths))

    def scaled(self, factor: float) -> SpeculationModel:
        """With something to guess in `factor` times as many steps, in runs as long as before."""
        if self.stay is None:
            return replace(self, share=min(1.0, factor * self.share))
        wanted = min(1.0, factor * self.share / max(1 + self.share - self.stay, 1e-9))
        ended = (1 - self.stay) * wanted
        return replace(self, share=1.0 if ended >= 1 - wanted else ended / (1 - wanted))

    def length(self, num_tokens: int, num_drafts: int, seconds_with: Callable[[int], float]) -> int:
        """Of each draft, in a step that gives `num_tokens` without; `seconds_with`: the step's
        seconds with so many more rows."""
        best, best_rate = 0, num_tokens / seconds_with(0)
        tokens, survival, drafted = float(num_tokens), 1.0, 0.0
        for length, (rate, have) in enumerate(zip(self.acceptance, self.lengths, strict=True), 1):
            survival *= rate
            tokens += num_drafts * survival * have
            drafted += num_drafts * have
            reached = tokens / (seconds_with(round(drafted)) + drafted * self.guess_seconds)
            if reached > best_rate:
                best, best_rate = length, reached
        return best


@dataclass(slots=True)
class _Luck:
    """Of one request: the same whatever runs beside it, and however its steps are planned."""

    draw: random.Random
    quiet: int  # decode steps until it has something to guess


class SimulatedSpeculator:
    """Gives the chunks of a plan drafts, and draws how many of their tokens are accepted."""

    def __init__(
        self,
        model: SpeculationModel,
        kv_cache: KVCacheManager,
        max_batch_tokens: int,
        seed: tuple[int, int],
    ) -> None:
        self.model = model
        self._kv_cache = kv_cache
        self._max_batch_tokens = max_batch_tokens
        self._seed = seed
        self._lucks: dict[Request, _Luck] = {}
        kv_cache.max_draft_tokens = len(model.acceptance)
        self.num_drafted = 0
        self.num_accepted = 0

    def quiet_steps(self, running: Sequence[Request]) -> int:
        """In how many decode steps none of them has anything to guess."""
        return min(self._luck(request).quiet for request in running)

    def skip(self, running: Sequence[Request], steps: int) -> None:
        """So many steps are over, all of them quiet."""
        for request in running:
            self._lucks[request].quiet -= steps

    def extend(
        self, plan: StepPlan, seconds_with: Callable[[StepPlan], Callable[[int], float]]
    ) -> float:
        """Drafts for requests that decode, in free blocks only; seconds of guessing.
        `seconds_with`: of a plan, as `SpeculationModel.length` asks for it."""
        budget = self._max_batch_tokens - plan.num_rows
        chunks = [chunk for chunk in plan.chunks if self._has_draft(chunk)]
        if budget < 1 or not chunks:
            return 0.0
        num_tokens = sum(chunk.emits for chunk in plan.chunks)
        length = self.model.length(num_tokens, len(chunks), seconds_with(plan))
        count = 0
        for chunk in chunks:
            most = min(length, budget, self._draw_length(chunk.request))
            room = self._room(chunk.request, most, len(plan.chunks))
            if room:
                chunk.draft = _draft(chunk.request, room)
                budget -= room
                count += room
        self.num_drafted += count
        return count * self.model.guess_seconds

    def num_right(self, draft: Draft) -> int:
        """How many tokens of a draft are what the model chooses."""
        draw = self._lucks[draft.request].draw
        count = 0
        while count < len(draft) and draw.random() < self.model.acceptance[count]:
            count += 1
        return count

    def forget(self, request: Request) -> None:
        """It is complete."""
        self._lucks.pop(request, None)

    def _luck(self, request: Request) -> _Luck:
        luck = self._lucks.get(request)
        if luck is None:
            draw = random.Random(repr((*self._seed, request.request_id)))
            luck = self._lucks[request] = _Luck(draw, _num_failures(draw, self.model.share))
        return luck

    def _has_draft(self, chunk: Chunk) -> bool:
        if not chunk.emits or chunk.count > MAX_KNOWN_ROWS:
            return False
        luck = self._luck(chunk.request)
        if luck.quiet:
            luck.quiet -= 1
            return False
        model = self.model
        if model.stay is None:
            luck.quiet = _num_failures(luck.draw, model.share)
        elif luck.draw.random() >= model.stay:
            luck.quiet = 1 + _num_failures(luck.draw, model.share)
        return True

    def _draw_length(self, request: Request) -> int:
        """What a proposer has to say. Drawn only where drafts differ."""
        lengths = self.model.lengths
        if lengths[-1] == 1:
            return len(lengths)
        chance = self._lucks[request].draw.random()
        return sum(have > chance for have in lengths)

    def _room(self, request: Request, limit: int, spare: int) -> int:
        limit = min(limit, request.max_total_tokens - request.num_tokens - 1)
        return self._kv_cache.grow_for_draft(request, limit, spare) if limit > 0 else 0


def _num_failures(draw: random.Random, chance: float) -> int:
    """Before the first success."""
    if chance >= 1:
        return 0
    if chance <= 0:
        return NEVER
    return min(NEVER, int(math.log(1 - draw.random()) / math.log1p(-chance)))


def _draft(request: Request, length: int) -> Draft:
    """Of tokens that nobody looks at."""
    draft = Draft(request, length, lambda draft: True)
    draft.token_ids = [0] * length
    return draft
