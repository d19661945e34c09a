"""The sampling options that `generate` and `chat` share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from trimtab.config import knob

if TYPE_CHECKING:
    from trimtab.engine.sampling_params import SamplingParams


@dataclass(frozen=True)
class SamplingOptions:
    max_tokens: int = knob(0, "longest answer in tokens; 0 = up to the context limit")
    temperature: float = knob(1.0, "0 = always the most likely token")
    top_k: int = knob(0, "sample from the k most likely tokens; 0 = off")
    top_p: float = knob(1.0, "sample from the most likely tokens of this total probability")
    min_p: float = knob(0.0, "drop tokens less likely than this times the most likely one")
    repetition_penalty: float = knob(1.0, "above 1: tokens that were there already lose")
    seed: int | None = knob(None, "the same seed gives the same text; default: a random one")

    def params(self) -> SamplingParams:
        """Raises RequestError for a value out of range."""
        from trimtab.engine.sampling_params import SamplingParams

        return SamplingParams(
            max_tokens=self.max_tokens or None,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            seed=self.seed,
        )
