"""What speculation gains on a workload: the same requests with and without it, interleaved.

Random prompts say nothing here, since whether a guess is right depends on the text: the workload is
a file of the user's own prompts, or held-out code for a model that can continue it.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimtab.errors import UserError

if TYPE_CHECKING:
    from trimtab.engine.client import SpeculationStats
    from trimtab.engine.llm import LLM

PROMPT_CHARACTERS = 1200  # of each piece of held-out code
NUM_PIECES = 16
GOLDEN = (5**0.5 - 1) / 2  # multiples of it spread evenly over [0, 1)


@dataclass(frozen=True)
class SpeculationPlan:
    streams: tuple[int, ...] = (1, 16)
    rounds: int = 3
    output_tokens: int = 128  # of an answer, on average: see `length`
    temperature: float = 0.0
    workload: Path | None = None  # JSON lines; None: held-out code
    each: bool = True  # proposer alone, besides all together

    def length(self, index: int) -> int:
        """Of the answer to that prompt: between half and one and a half times the average. Answers
        of one length end together where nobody guesses, and their successors' prompts share a step,
        which real ones do not."""
        return max(1, round(self.output_tokens * (0.5 + (index + 0.5) * GOLDEN % 1.0)))


@dataclass
class Way:
    """One way to run: which proposers are asked. What it did, over all rounds."""

    name: str
    proposers: tuple[str, ...]
    seconds: list[float] = field(default_factory=list)
    token_seconds: list[float] = field(default_factory=list)  # TPOT, over all requests of a round
    num_tokens: int = 0
    num_steps: int = 0
    drafted: list[int] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class SpeculationRow:
    way: str
    streams: int
    tokens_per_s: float  # median of the rounds
    low: float
    high: float
    gain: float  # median of the rounds' ratios to "off"
    tpot_ms: float  # median of the rounds: from a request's first token to its last, for each
    decode_gain: float  # as `gain`, of this time: what speculation gains where prompts are short
    tokens_per_step: float
    num_drafted: int
    num_accepted: int
    acceptance_by_position: list[float]  # of those drafted at that position

    def as_json(self) -> dict[str, Any]:
        return dict(self.__dict__)


@dataclass(frozen=True)
class SpeculationReport:
    model: str
    executor: str
    plan: SpeculationPlan
    num_prompts: int
    rows: list[SpeculationRow]
    same_answers: bool  # of every way as of "off": anything else is a bug

    def as_json(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "executor": self.executor,
            "workload": str(self.plan.workload or "held-out code"),
            "num_prompts": self.num_prompts,
            "output_tokens": self.plan.output_tokens,
            "temperature": self.plan.temperature,
            "rounds": self.plan.rounds,
            "same_answers": self.same_answers,
            "rows": [row.as_json() for row in self.rows],
        }

    def lines(self) -> list[str]:
        workload = self.plan.workload or "held-out code"
        lines = [
            f"{self.model}, {self.executor}",
            f"{self.num_prompts} prompts of {workload}, about {self.plan.output_tokens} tokens "
            f"each, temperature {self.plan.temperature:g}, {self.plan.rounds} rounds, interleaved; "
            f"answers {'equal' if self.same_answers else 'DIFFER: please report this'}",
            "",
            f"{'streams':>7}  {'':<18}{'tokens/s':>9} {'[low, high]':>18} {'gain':>6} "
            f"{'TPOT, ms':>9} {'gain':>6} {'tokens/step':>11}  accepted by position",
        ]
        for row in self.rows:
            spread = f"[{row.low:.1f}, {row.high:.1f}]"
            rates = " ".join(f"{rate:.0%}" for rate in row.acceptance_by_position[:8])
            lines.append(
                f"{row.streams:>7}  {row.way:<18}{row.tokens_per_s:>9.1f} {spread:>18} "
                f"{row.gain:>5.2f}x {row.tpot_ms:>9.2f} {row.decode_gain:>5.2f}x "
                f"{row.tokens_per_step:>11.2f}  {rates}"
            )
        return lines


def measure_speculation(
    llm: LLM,
    model: str,
    plan: SpeculationPlan,
    progress: Callable[[str], None] = lambda text: None,
) -> SpeculationReport:
    """`llm` was loaded with the proposers to be measured, without a prefix cache. Each is measured
    alone (if the plan says so), and all of them together. UserError if there is none."""
    speculator = llm.engine.speculator
    if speculator is None:
        raise UserError(
            "nobody here could guess tokens: set --speculative lookup, or a draft model"
        )
    prompts = read_workload(llm, plan.workload)
    names = tuple(proposer.name for proposer in speculator.proposers)
    rows: list[SpeculationRow] = []
    same = True
    for streams in plan.streams:
        ways = [Way("off", ())]
        if plan.each:
            ways += [Way(name, (name,)) for name in names]
        if len(names) > 1 or not plan.each:
            ways.append(Way("+".join(names), names))
        answers: dict[str, list[list[int]]] = {}
        for way in ways:
            _run(llm, way, prompts[:streams], streams, plan, counts=False)  # warms up
        for number in range(1, plan.rounds + 1):
            progress(f"{streams} streams, round {number} of {plan.rounds}")
            for way in ways if number % 2 else reversed(ways):
                found = _run(llm, way, prompts, streams, plan)
                same &= answers.setdefault("", found) == found
        rows += _rows(ways, streams)
    speculator.use(names)
    return SpeculationReport(model, llm.engine.info.executor, plan, len(prompts), rows, same)


def read_workload(llm: LLM, path: Path | None) -> list[list[int]]:
    """Token ids of each prompt. A line is {"prompt": text} or {"messages": [...]}."""
    from trimtab.builtin import heldout_path

    if path is None:
        text = heldout_path().read_text(encoding="utf-8")
        stride = len(text) // NUM_PIECES
        pieces = (text[i * stride : i * stride + PROMPT_CHARACTERS] for i in range(NUM_PIECES))
        return [llm.tokenizer.encode(piece) for piece in pieces]
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--workload {path}: {error}") from None
    prompts = []
    for number, line in enumerate(filter(str.strip, lines), 1):
        try:
            entry = json.loads(line)
        except ValueError:
            entry = None
        try:
            if isinstance(entry, dict) and isinstance(entry.get("messages"), list):
                prompts.append(llm.tokenizer.encode_chat(entry["messages"]))
            elif isinstance(entry, dict) and isinstance(entry.get("prompt"), str):
                prompts.append(llm.tokenizer.encode(entry["prompt"]))
            else:
                raise UserError('use {"prompt": text} or {"messages": [...]}')
        except UserError as error:
            raise UserError(f"--workload {path}, line {number}: {error}") from None
    if not prompts:
        raise UserError(f"--workload {path}: no prompts in it")
    return prompts


def _run(
    llm: LLM,
    way: Way,
    prompts: Sequence[list[int]],
    streams: int,
    plan: SpeculationPlan,
    counts: bool = True,
) -> list[list[int]]:
    """All prompts, `streams` of them in flight; what was answered."""
    from trimtab.engine.client import EngineRequest
    from trimtab.engine.sampling_params import SamplingParams

    engine = llm.engine
    speculator = engine.speculator
    assert speculator is not None
    speculator.use(way.proposers)
    before, stats_before = engine.stats().num_steps, speculator.stats()
    answers: list[list[int]] = [[] for _ in prompts]
    decode_seconds = 0.0
    start = time.perf_counter()
    waiting = list(enumerate(prompts))[::-1]
    while waiting or engine.num_live_requests:
        while waiting and engine.num_live_requests < streams:
            index, prompt = waiting.pop()
            params = SamplingParams(
                max_tokens=plan.length(index),
                temperature=plan.temperature,
                seed=0,
                ignore_eos=True,
            )
            engine.add_request(EngineRequest(str(index), prompt, params))
        for output in engine.step():
            answers[int(output.request_id)] += output.token_ids
            if output.error is not None:
                raise UserError(f"prompt {output.request_id}: {output.error}")
            timeline = output.timeline
            if output.finish_reason is not None and timeline is not None:
                decode_seconds += timeline.total - (timeline.first_token or timeline.total)
    seconds = time.perf_counter() - start
    if counts:
        way.seconds.append(seconds)
        way.num_tokens = sum(map(len, answers))
        way.token_seconds.append(decode_seconds / max(1, way.num_tokens - len(prompts)))
        way.num_steps += engine.stats().num_steps - before
        _add(way, stats_before, speculator.stats())
    return answers


def _add(way: Way, before: SpeculationStats, after: SpeculationStats) -> None:
    for total, old, new in (
        (way.drafted, before.drafted_by_position, after.drafted_by_position),
        (way.accepted, before.accepted_by_position, after.accepted_by_position),
    ):
        added = [b - a for a, b in zip(old, new, strict=True)]
        total[:] = [a + b for a, b in zip(total or [0] * len(added), added, strict=True)]


def _rows(ways: Sequence[Way], streams: int) -> list[SpeculationRow]:
    off = ways[0]
    rows = []
    for way in ways:
        rates = [way.num_tokens / seconds for seconds in way.seconds]
        ratios = [plain / own for plain, own in zip(off.seconds, way.seconds, strict=True)]
        decode_ratios = [
            plain / own for plain, own in zip(off.token_seconds, way.token_seconds, strict=True)
        ]
        by_position = [a / d for a, d in zip(way.accepted, way.drafted, strict=True) if d]
        rows.append(
            SpeculationRow(
                way=way.name,
                streams=streams,
                tokens_per_s=statistics.median(rates),
                low=min(rates),
                high=max(rates),
                gain=statistics.median(ratios),
                tpot_ms=statistics.median(way.token_seconds) * 1e3,
                decode_gain=statistics.median(decode_ratios),
                tokens_per_step=way.num_tokens * len(way.seconds) / max(1, way.num_steps),
                num_drafted=sum(way.drafted),
                num_accepted=sum(way.accepted),
                acceptance_by_position=by_position,
            )
        )
    return rows
