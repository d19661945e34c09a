"""The models that are measured: shapes of benchmarks/configs, and small ones of the same kind."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimtab.models.registry import model_spec
from trimtab.models.spec import ModelSpec

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
SHAPES = ("llama-3.1-8b", "qwen3-0.6b")
FORMATS = ("bf16", "fp8", "int4")
MAX_CONTEXT = 8192 + 512
TINY_CONTEXT = 256
GROUP_SIZE = 128  # of int4
TINY_GROUP_SIZE = 32
_TINY = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 512,
    "bos_token_id": 0,
    "eos_token_id": 1,
}


@dataclass(frozen=True)
class Case:
    """Streams that begin together, with random prompts."""

    streams: int
    prompt: int
    output: int

    @property
    def name(self) -> str:
        return f"{self.streams} x {self.prompt}+{self.output}"

    @property
    def num_tokens(self) -> int:
        """In the KV cache when all are at their end."""
        return self.streams * (self.prompt + self.output)


# By weight: what the targets are about first, since time may end. Outputs are long enough that all
# streams decode together for a while after the last prompt is in.
CASES = (
    Case(1, 128, 128),
    Case(64, 128, 128),
    Case(8, 128, 128),
    Case(64, 1024, 64),
    Case(1, 2048, 48),
    Case(256, 128, 64),
    Case(1, 8192, 48),
    Case(8, 2048, 48),
    Case(64, 2048, 64),
    Case(256, 1024, 80),
    Case(8, 8192, 48),
)
TINY_CASES = (Case(1, 16, 6), Case(4, 16, 6), Case(1, 96, 4))
PREFILLS = (128, 1024, 2048, 8192)
TINY_PREFILLS = (16, 96)
BATCH_TOKENS = 8192  # of a step
TINY_BATCH_TOKENS = 64


def config_of(shape: str, tiny: bool) -> dict[str, Any]:
    """The config.json of a shape, as transformers reads it."""
    values: dict[str, Any] = json.loads((CONFIGS / f"{shape}.json").read_text())
    return {**values, **_TINY} if tiny else values


def spec_of(shape: str, tiny: bool) -> ModelSpec:
    return model_spec(config_of(shape, tiny), TINY_CONTEXT if tiny else MAX_CONTEXT)
