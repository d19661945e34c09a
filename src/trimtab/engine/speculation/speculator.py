"""Which requests get a draft in a step, whose, and how long.

A draft's token is worth its row if the token probably saves more time than the row takes:

    expected tokens of the step     N + sum of survivals of all drafted tokens
    ---------------------------  =  ------------------------------------------  -> the most
    time of decoding                seconds(rows of the plan + drafted tokens) - of prompts

N tokens come without drafts; a token's survival is the probability that it and all before it in its
draft are right. Both sides are measured: `Acceptance` and `StepCosts`. And whether all of it,
guessing included, is faster than leaving it is measured as well: `Duty`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from math import inf

from trimtab.engine.client import SpeculationStats
from trimtab.engine.kv_cache import KVCacheManager
from trimtab.engine.request import Request
from trimtab.engine.scheduler import Chunk, StepPlan
from trimtab.engine.speculation.acceptance import MAX_RATE, Acceptance
from trimtab.engine.speculation.costs import StepCosts
from trimtab.engine.speculation.draft import Draft
from trimtab.engine.speculation.duty import Duty
from trimtab.engine.speculation.proposer import Proposer
from trimtab.engine.speculation.worth import SMALL_BACKLOG, Pace, PlannedStep
from trimtab.engine.timing import StepPart
from trimtab.executors.base import StepResult

MAX_KNOWN_ROWS = 16  # of a request in a step that drafts for it: prompts come first
SLOW_MASK_SECONDS = 0.001
CHEAP = 0.01  # of a step's time: a proposer that takes less is asked without further thought
EXPLORE = 64  # steps: once in so many a proposer that does not seem to pay is asked all the same
MAX_SIZE_BITS = 32
TRUST = 0.8  # in the rate that recent steps had
MARGIN = 1.2  # in the cost of guesses, where they have to pay for a backlog
SPARE = 0.001  # of all time, that trials may spend on backlogs which will probably not pay
MOST_SPARE = 0.5  # seconds of it that are saved up


class Speculator:
    """Owns the proposers. Used by the engine's thread alone."""

    def __init__(
        self, proposers: Sequence[Proposer], costs: StepCosts, max_draft_tokens: int
    ) -> None:
        """`proposers` in the order in which they are asked: each gets the requests for which those
        before it had no better guess."""
        self.proposers = list(proposers)
        self.costs = costs
        self.max_draft_tokens = max_draft_tokens
        self._acceptance = Acceptance([proposer.priors for proposer in proposers])
        self._paces = [Pace(proposer) for proposer in proposers]
        self._used = list(range(len(self.proposers)))
        self._gain = 1.0  # of recent steps: expected tokens a second, over those without drafts
        self._duty: Duty | None = None  # of the step that runs
        self._duties = _new_duties()  # by the bit length of the number of requests
        self._duties_of = {tuple(self._used): self._duties}  # by the proposers that are asked
        self._spare = 0.0  # seconds
        self._num_accepted_now = 0
        self._num_drafts = 0
        self._drafted = [0] * max_draft_tokens
        self._accepted = [0] * max_draft_tokens
        self._drafted_by = [0] * len(proposers)
        self._accepted_by = [0] * len(proposers)

    def use(self, names: Collection[str]) -> None:
        """From the next step on, only these proposers are asked; none: no drafts. Between steps."""
        self._used = [i for i, one in enumerate(self.proposers) if one.name in names]
        self._duties = self._duties_of.setdefault(tuple(self._used), _new_duties())
        self._gain = 1.0

    @property
    def needs_features(self) -> bool:
        """Whether `observe` must be given `StepResult.features`."""
        return any(self.proposers[index].needs_features for index in self._used)

    def start(self, kv_cache: KVCacheManager, max_batch_tokens: int) -> None:
        """Before the first step."""
        self._kv_cache = kv_cache
        self._max_batch_tokens = max_batch_tokens
        kv_cache.max_draft_tokens = self.max_draft_tokens
        for proposer in self.proposers:
            proposer.start(kv_cache.pool)

    def extend(self, plan: StepPlan) -> None:
        """Give chunks of the plan a draft, as long as it pays. Takes free blocks only."""
        num_rows = plan.num_rows
        budget = self._max_batch_tokens - num_rows
        chunks = [chunk for chunk in plan.chunks if _takes_draft(chunk)]
        if budget < 1 or not chunks or not self._used:
            return
        num_tokens = sum(chunk.emits for chunk in plan.chunks)
        duty = self._duty = self._duties[num_tokens.bit_length()]
        if not duty.begin(any(chunk.request.num_generated == 1 for chunk in chunks)):
            return
        step = PlannedStep(self.costs, num_rows, num_tokens, duty.overhead, duty.num_left)
        step.rate *= max(1.0, TRUST * self._gain)
        if not step.is_worth(MAX_RATE, 0.0):
            self._pass_over(chunks)
            return
        drafts = self._propose(chunks, step, budget, len(plan.chunks))
        rate = _choose(drafts, step, budget)
        self._gain += (rate / step.base_rate - self._gain) / 16
        for chunk in chunks:
            draft = drafts.get(chunk.request)
            if draft is not None and draft.token_ids:
                chunk.draft = draft

    def settle(self, draft: Draft, num_accepted: int) -> None:
        """A step has verified it: so many of its tokens were emitted."""
        request, count = draft.request, len(draft)
        request.num_drafts += count
        request.num_accepted_drafts += num_accepted
        self._num_drafts += 1
        for place in range(count):
            self._drafted[place] += 1
        for place in range(num_accepted):
            self._accepted[place] += 1
        self._drafted_by[draft.proposer] += count
        self._accepted_by[draft.proposer] += num_accepted
        self._num_accepted_now += num_accepted
        self._acceptance.learn(draft, num_accepted)

    def observe(self, plan: StepPlan, result: StepResult) -> None:
        """A step has run, and its tokens were taken."""
        for proposer in self.proposers:
            proposer.observe(plan.chunks, result)

    def stepped(self, plan: StepPlan, parts: Sequence[float]) -> None:
        """A step is over. `parts`: its seconds, by `StepPart`."""
        self._spare = min(MOST_SPARE, self._spare + SPARE * sum(parts))
        num_accepted, self._num_accepted_now = self._num_accepted_now, 0
        duty, self._duty = self._duty, None
        if not all(chunk.emits and chunk.count == 1 for chunk in plan.chunks):
            if duty is not None:
                duty.charge(parts[StepPart.DRAFT])
            return
        self.costs.learn(plan.num_rows, parts[StepPart.EXECUTE])
        if duty is not None:
            has_drafts = any(chunk.draft is not None for chunk in plan.chunks)
            duty.learn(len(plan.chunks) + num_accepted, parts, has_drafts)

    def forget(self, request: Request) -> None:
        self._acceptance.forget(request.request_id)
        for proposer in self.proposers:
            proposer.forget(request)

    def stats(self) -> SpeculationStats:
        names = [proposer.name for proposer in self.proposers]
        return SpeculationStats(
            num_drafts=self._num_drafts,
            drafted_by_position=list(self._drafted),
            accepted_by_position=list(self._accepted),
            drafted_by_proposer=dict(zip(names, self._drafted_by, strict=True)),
            accepted_by_proposer=dict(zip(names, self._accepted_by, strict=True)),
        )

    def close(self) -> None:
        for proposer in self.proposers:
            proposer.close()

    def _propose(
        self, chunks: list[Chunk], step: PlannedStep, budget: int, spare: int
    ) -> dict[Request, Draft]:
        """The best draft of each request that has one."""
        best: dict[Request, Draft] = {}
        requests = [chunk.request for chunk in chunks]
        for index in self._used:
            proposer = self.proposers[index]
            asked = self._worth_asking(index, requests, step, best)
            drafts = []
            for request in asked:
                limit = self._room(request, budget, spare)
                if limit:
                    drafts.append(Draft(request, limit, self._wants(index, step, len(asked))))
                    drafts[-1].proposer = index
            if not drafts:
                continue
            pace = self._paces[index]
            pace.start(drafts)
            proposer.propose(drafts)
            pace.stop(drafts)
            for draft in drafts:
                known = best.get(draft.request)
                if known is None or sum(draft.survivals) > sum(known.survivals):
                    best[draft.request] = draft
        return best

    def _worth_asking(
        self, index: int, requests: list[Request], step: PlannedStep, best: dict[Request, Draft]
    ) -> list[Request]:
        """Those for which this proposer will probably have a draft that pays, and a better one than
        there is."""
        pace, first = self._paces[index], self._acceptance.first
        rates = {request: first(index, request.request_id) for request in requests}
        asked = []
        for request in requests:
            known = best.get(request)
            if known is not None and known.survivals and known.survivals[0] >= rates[request]:
                continue
            if self._affords(index, request, step, rates[request]):
                asked.append(request)
        if not asked:
            return []
        seconds = pace.seconds(len(asked))
        if seconds < CHEAP * step.seconds:
            return asked
        paying = [one for one in asked if step.is_worth(rates[one], seconds / len(asked))]
        if paying:
            mean = sum(rates[one] for one in paying) / len(paying)
            if step.pays(len(paying), mean, pace.seconds(len(paying)), self.max_draft_tokens):
                return paying
        pace.num_passed += 1
        if pace.num_passed % EXPLORE == 0:
            return asked[:1]
        for request in asked:
            self._acceptance.passed_over(index, request.request_id)
        return []

    def _affords(self, index: int, request: Request, step: PlannedStep, rate: float) -> bool:
        """Whether what the proposer has missed of the request is worth working through now."""
        pace = self._paces[index]
        backlog = self.proposers[index].backlog(request)
        if backlog <= SMALL_BACKLOG:
            return True
        seconds = backlog * pace.token_seconds
        guess = step.row_seconds + pace.seconds(step.num_tokens) / step.num_tokens
        each = rate / step.base_rate - MARGIN * guess
        num_guesses = min(request.max_total_tokens - request.num_tokens, step.num_left) / (1 + rate)
        if num_guesses * each >= seconds:
            return True
        if step.num_left == inf or self._spare < seconds:
            return False
        self._spare -= seconds
        return True

    def _wants(self, index: int, step: PlannedStep, num_drafts: int) -> _Wants:
        return _Wants(self._acceptance, self._paces[index], step, num_drafts)

    def _room(self, request: Request, budget: int, spare: int) -> int:
        """How many tokens a draft of it may have."""
        most = request.max_total_tokens - request.num_tokens - 1
        limit = min(self.max_draft_tokens, most, budget)
        return self._kv_cache.grow_for_draft(request, limit, spare) if limit > 0 else 0

    def _pass_over(self, chunks: list[Chunk]) -> None:
        for index in range(len(self.proposers)):
            for chunk in chunks:
                self._acceptance.passed_over(index, chunk.request.request_id)


class _Wants:
    """`Draft.add` asks it, token by token."""

    def __init__(
        self, acceptance: Acceptance, pace: Pace, step: PlannedStep, num_drafts: int
    ) -> None:
        self._acceptance = acceptance
        self._pace = pace
        self._step = step
        self._seconds = pace.seconds(num_drafts) / num_drafts

    def __call__(self, draft: Draft) -> bool:
        self._pace.lap()
        rate = self._acceptance.token(
            draft.proposer, draft.request.request_id, draft.confidences[-1]
        )
        survivals = draft.survivals
        survival = rate * survivals[-1] if survivals else rate
        survivals.append(survival)
        # The next token will be about as sure as this one.
        return self._step.is_worth(survival * rate, self._seconds)


def _new_duties() -> list[Duty]:
    return [Duty() for _ in range(MAX_SIZE_BITS)]


def _takes_draft(chunk: Chunk) -> bool:
    request = chunk.request
    if not chunk.emits or not request.chooses or chunk.count > MAX_KNOWN_ROWS:
        return False
    grammar = request.grammar
    if grammar is None:
        return True
    if request.params.min_tokens or request.params.banned_sequences:
        return False  # its masks depend on more than the grammar
    return grammar.can_guess and grammar.seconds < SLOW_MASK_SECONDS


def _choose(drafts: dict[Request, Draft], step: PlannedStep, budget: int) -> float:
    """Cut the drafts where most tokens a second are to be expected; that rate.

    A token survives less often than the one before it, so the likeliest tokens of all drafts are
    always heads of drafts.
    """
    tokens = [(survival, draft) for draft in drafts.values() for survival in draft.survivals]
    tokens.sort(key=lambda token: -token[0])
    best, best_count, expected = step.base_rate, 0, float(step.num_tokens)
    for count, (survival, _) in enumerate(tokens[:budget], 1):
        expected += survival
        rate = expected / (step.seconds_with(count) + step.overhead)
        if rate > best:
            best, best_count = rate, count
    kept = Counter(draft.request for _, draft in tokens[:best_count])
    for request, draft in drafts.items():
        draft.cut(kept[request])
    return best
