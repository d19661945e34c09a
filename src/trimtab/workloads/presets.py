"""The built-in workloads: what people do with language models, in lengths of public traces."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from trimtab.workloads import arrivals, lengths
from trimtab.workloads.arrivals import Arrivals
from trimtab.workloads.lengths import Lengths, LogNormal, draw, uniform
from trimtab.workloads.requests import Piece
from trimtab.workloads.sessions import Turn, conversation_length


@dataclass(frozen=True)
class Shape:
    """How much shorter than its source a workload is."""

    lengths: float = 1.0
    turns: float = 1.0


@dataclass(frozen=True)
class Preset(ABC):
    name: str
    arrivals: Arrivals

    @abstractmethod
    def session(
        self, rng: np.random.Generator, shape: Shape, prefix: str, number: int
    ) -> list[Turn]:
        """Session `number`, drawn from `rng`. Keys of its pieces start with `prefix`."""

    @abstractmethod
    def sources(self) -> dict[str, Any]:
        """What it is made of, by part."""


@dataclass(frozen=True)
class SingleTurn(Preset):
    """Prompts that share nothing."""

    prompt: Lengths
    answer: Lengths

    def session(
        self, rng: np.random.Generator, shape: Shape, prefix: str, number: int
    ) -> list[Turn]:
        pieces = (Piece(f"{prefix}/{number}", draw(self.prompt, rng, shape.lengths)),)
        return [Turn(pieces, draw(self.answer, rng, shape.lengths))]

    def sources(self) -> dict[str, Any]:
        return {"prompt": self.prompt.source, "answer": self.answer.source}


@dataclass(frozen=True)
class Agent(Preset):
    """A system prompt with tool descriptions that all sessions share, a task, then call after call:
    each turn's new part is what a tool gave, after the pause that the tool took."""

    system: int
    task: Lengths
    result: Lengths
    answer: Lengths
    turns: Lengths
    pause: LogNormal  # seconds

    def session(
        self, rng: np.random.Generator, shape: Shape, prefix: str, number: int
    ) -> list[Turn]:
        count = draw(self.turns, rng, shape.turns)
        system = Piece(f"{prefix}/system", max(1, round(self.system * shape.lengths)))
        turns = []
        for place in range(count):
            own = draw(self.result if place else self.task, rng, shape.lengths)
            piece = Piece(f"{prefix}/{number}.{place}", own)
            pause = self.pause.at(uniform(rng)) if place else 0.0
            pieces = (piece,) if place else (system, piece)
            turns.append(Turn(pieces, draw(self.answer, rng, shape.lengths), pause))
        return turns

    def sources(self) -> dict[str, Any]:
        return {
            "system": f"assumed: {self.system} tokens, the same in all sessions",
            "task": self.task.source,
            "tool_result": self.result.source,
            "answer": self.answer.source,
            "turns": self.turns.source,
            "pause_seconds": self.pause.source,
        }


@dataclass(frozen=True)
class Retrieval(Preset):
    """Instructions that all requests share, one of a library of documents, a question. How often a
    document is asked about falls with its rank (Zipf, exponent 1)."""

    system: int
    num_documents: int
    document: Lengths
    question: Lengths
    answer: Lengths

    def session(
        self, rng: np.random.Generator, shape: Shape, prefix: str, number: int
    ) -> list[Turn]:
        place = int(np.searchsorted(_zipf(self.num_documents), rng.random(), "right"))
        place = min(place, self.num_documents - 1)
        # A document has its length for good: by its place, spread over the quantiles.
        share = (place * 0.6180339887498949 + 0.5) % 1
        document = max(1, round(shape.lengths * self.document.at(share)))
        pieces = (
            Piece(f"{prefix}/system", max(1, round(self.system * shape.lengths))),
            Piece(f"{prefix}/document {place}", document),
            Piece(f"{prefix}/{number}", draw(self.question, rng, shape.lengths)),
        )
        return [Turn(pieces, draw(self.answer, rng, shape.lengths))]

    def sources(self) -> dict[str, Any]:
        return {
            "system": f"assumed: {self.system} tokens, the same in all requests",
            "documents": f"assumed: {self.num_documents}, asked about by Zipf's law, exponent 1",
            "document": self.document.source,
            "question": self.question.source,
            "answer": self.answer.source,
        }


@lru_cache(maxsize=8)
def _zipf(count: int) -> np.ndarray:
    """Cumulative probabilities of the ranks."""
    weights = np.cumsum(1 / np.arange(1, count + 1))
    return np.asarray(weights / weights[-1])


PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        SingleTurn("chat", arrivals.AZURE_CONV, lengths.AZURE_CONV_IN, lengths.AZURE_CONV_OUT),
        Agent(
            "agent",
            arrivals.POISSON,
            system=3800,
            task=LogNormal(250, 0.8, 20, 4000),
            result=LogNormal(400, 1.2, 10, 8000),
            answer=lengths.MOONCAKE_OUT,
            turns=LogNormal(6, 0.6, 2, 30),
            pause=LogNormal(1.0, 1.0, 0.05, 30),
        ),
        Retrieval(
            "rag",
            arrivals.POISSON,
            system=200,
            num_documents=1000,
            document=lengths.ARXIV_IN,
            question=LogNormal(30, 0.6, 5, 300),
            answer=lengths.SERVEGEN_LARGE_OUT,
        ),
        SingleTurn("summarize", arrivals.POISSON, lengths.ARXIV_IN, lengths.ARXIV_OUT),
        SingleTurn("batch", arrivals.POISSON, lengths.AZURE_CONV_IN, lengths.AZURE_CONV_OUT),
        SingleTurn("code", arrivals.AZURE_CODE, lengths.AZURE_CODE_IN, lengths.AZURE_CODE_OUT),
    )
}

_PILOT_SESSIONS = 2000


def longest(preset: Preset, shape: Shape, sessions: int = _PILOT_SESSIONS) -> int:
    """p99 of the tokens of a whole conversation, of a sample that is always the same."""
    rng = np.random.default_rng(0)
    totals = sorted(
        conversation_length(preset.session(rng, shape, "", number)) for number in range(sessions)
    )
    return totals[int(0.99 * (sessions - 1))]


@lru_cache(maxsize=64)
def shape_for(preset: Preset, scale: float, max_context: int) -> Shape:
    """`scale`, or as much less as it takes for p99 of whole conversations to fit `max_context`
    (0: any). Sessions of several turns get shorter turns and, less so, fewer."""
    wanted = Shape(scale)
    if not max_context or longest(preset, wanted) <= max_context:
        return wanted

    def make(factor: float) -> Shape:
        if isinstance(preset, Agent):
            return Shape(scale * factor**0.75, factor**0.25)
        return Shape(scale * factor)

    low, high = 0.0, 1.0
    for _ in range(10):
        middle = (low + high) / 2
        if longest(preset, make(middle), 500) <= max_context:
            low = middle
        else:
            high = middle
    return make(low or high)
