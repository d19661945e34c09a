"""How often `speculative auto` guesses right, counted on a few answers to a workload's prompts.

Answers that repeat themselves are guessed well, most others hardly at all, so that a few answers
tell little: counts of all variants go together. How a model repeats itself hardly depends on how
its weights are stored; each variant has prompts of its own.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from itertools import zip_longest
from typing import Any

from trimtab.config import ExecutorConfig, SchedulerConfig
from trimtab.engine.client import EngineStats, SpeculationStats
from trimtab.simulator.speculation import SpeculationModel

MOST_GUESSED_TOKENS = 512  # of an answer


@dataclass
class Guesses:
    """Counts of one request at a time. `followed[a][b]`: steps with (b = 1) and without a draft,
    behind a step with (a = 1) or without one."""

    num_decodes: int = 0  # single tokens that were decoded, drafts or not
    num_drafts: int = 0
    drafted_by_position: list[int] = field(default_factory=list)
    accepted_by_position: list[int] = field(default_factory=list)
    draft_seconds: float = 0.0
    followed: list[list[int]] = field(default_factory=lambda: [[0, 0], [0, 0]])

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Guesses:
        return cls(**value)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def model(self) -> SpeculationModel | None:
        """None if nothing was drafted. Steps that follow others are drawn to the share of all steps
        by as much as one step of each kind."""
        stats = SpeculationStats(
            self.num_drafts, self.drafted_by_position, self.accepted_by_position, {}, {}
        )
        found = SpeculationModel.from_stats(stats, self.num_decodes, self.draft_seconds)
        if found is None:
            return None
        (never, begun), (ended, stayed) = self.followed
        return replace(
            found,
            share=(begun + found.share) / (never + begun + 1),
            stay=(stayed + found.share) / (ended + stayed + 1),
        )


def together(counts: Iterable[Guesses]) -> Guesses:
    total = Guesses()
    for one in counts:
        total = Guesses(
            total.num_decodes + one.num_decodes,
            total.num_drafts + one.num_drafts,
            _sums(total.drafted_by_position, one.drafted_by_position),
            _sums(total.accepted_by_position, one.accepted_by_position),
            total.draft_seconds + one.draft_seconds,
            [_sums(a, b) for a, b in zip(total.followed, one.followed, strict=True)],
        )
    return total


def count_guesses(
    model: str,
    executor: ExecutorConfig,
    scheduler: SchedulerConfig,
    prompts: Sequence[tuple[str, int]],
    seconds: float,
) -> Guesses | None:
    """In answers as long as the workload's, one by one: models repeat themselves in long ones.
    `prompts`: texts, and the tokens of their answers. None if nobody guesses."""
    from trimtab.engine.llm import LLM
    from trimtab.engine.sampling_params import SamplingParams

    ends = time.monotonic() + seconds
    found = Guesses()
    with LLM(model, **asdict(executor), **asdict(scheduler)) as llm:
        for prompt, num_tokens in prompts:
            ids = llm.tokenizer.encode(prompt)
            count = min(num_tokens, MOST_GUESSED_TOKENS, llm.engine.info.max_context - len(ids))
            if count < 1:
                continue
            params = SamplingParams(max_tokens=count, temperature=0, ignore_eos=True)
            with closing(llm.stream(ids, params)) as answer:
                had, before = 0, _num_drafts(llm.engine.stats())
                for _ in answer:
                    now = _num_drafts(llm.engine.stats())
                    has, before = int(now > before), now
                    found.followed[had][has] += 1
                    had = has
                    if time.monotonic() > ends:
                        break
            if time.monotonic() > ends:
                break
        stats = llm.engine.stats()
    if stats.speculation is None:
        return None
    found.num_decodes = stats.num_generated_tokens - stats.speculation.num_accepted
    found.num_drafts = stats.speculation.num_drafts
    found.drafted_by_position = stats.speculation.drafted_by_position
    found.accepted_by_position = stats.speculation.accepted_by_position
    found.draft_seconds = stats.draft_seconds
    return found


def _num_drafts(stats: EngineStats) -> int:
    return 0 if stats.speculation is None else stats.speculation.num_drafts


def _sums(one: Sequence[int], other: Sequence[int]) -> list[int]:
    return [a + b for a, b in zip_longest(one, other, fillvalue=0)]
