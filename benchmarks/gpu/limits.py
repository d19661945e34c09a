"""What a step costs at least, from a ModelSpec: bytes that must be read and written once, and
floating point operations (two for a multiply-add). The executor's own numbers do not enter, so a
wasteful one cannot raise its own limit.
"""

from __future__ import annotations

from dataclasses import dataclass

from trimtab.models.spec import ModelSpec

ELEMENT_BYTES = {"bf16": 2.0, "fp8": 1.0, "int4": 0.5}
KV_BYTES = 2  # bf16


@dataclass(frozen=True)
class Rates:
    """Measured, a second; None where the card has none, or it was not measured."""

    copy: float | None
    bf16: float | None
    fp8: float | None


@dataclass(frozen=True)
class Cost:
    """Of one step."""

    num_bytes: float
    layer_operations: float  # of the matrices of the layers
    other_operations: float  # of attention and the output head: always bf16

    def seconds(self, rates: Rates, weights: str) -> float | None:
        """The larger of transfer and arithmetic, as if they overlapped perfectly."""
        quick = rates.fp8 if weights == "fp8" and rates.fp8 else rates.bf16
        if not (rates.copy and rates.bf16 and quick):
            return None
        arithmetic = self.layer_operations / quick + self.other_operations / rates.bf16
        return max(self.num_bytes / rates.copy, arithmetic)


def layer_elements(spec: ModelSpec) -> int:
    """Of the matrices of all layers."""
    heads = spec.num_heads * spec.head_dim
    kv = spec.num_kv_heads * spec.head_dim
    return spec.num_layers * spec.hidden_size * (2 * heads + 2 * kv + 3 * spec.intermediate_size)


def weight_bytes(spec: ModelSpec, weights: str, group_size: int) -> float:
    """That every step reads: layers and output head; not the embedding table beside it."""
    elements = layer_elements(spec)
    num_bytes = elements * ELEMENT_BYTES[weights]
    if weights == "int4":
        num_bytes += elements / group_size * 2
    if weights == "fp8":
        rows = spec.hidden_size * 2 + (spec.num_heads + 2 * spec.num_kv_heads) * spec.head_dim
        num_bytes += spec.num_layers * (rows + 2 * spec.intermediate_size) * 4
    return num_bytes + spec.vocab_size * spec.hidden_size * ELEMENT_BYTES["bf16"]


def kv_bytes_per_token(spec: ModelSpec) -> int:
    return 2 * spec.num_layers * spec.num_kv_heads * spec.head_dim * KV_BYTES


def seen(context: int, window: int) -> int:
    return min(context, window) if window else context


def causal_pairs(length: int, window: int) -> int:
    """Positions that the rows of a prompt attend to, summed."""
    full = seen(length, window)
    return full * (full + 1) // 2 + (length - full) * full


def decode_cost(
    spec: ModelSpec, weights: str, group_size: int, streams: int, context: float
) -> Cost:
    """Of one step that gives each of `streams` a token, behind `context` tokens each (a mean)."""
    per_layer = kv_bytes_per_token(spec) / spec.num_layers
    positions = sum(seen(round(context), layer.sliding_window) for layer in spec.layers)
    kv = streams * (positions * per_layer + kv_bytes_per_token(spec))
    head = spec.vocab_size * spec.hidden_size
    attention = 2 * spec.num_heads * spec.head_dim * positions
    return Cost(
        num_bytes=weight_bytes(spec, weights, group_size) + kv,
        layer_operations=2.0 * streams * layer_elements(spec),
        other_operations=2.0 * streams * (attention + head),
    )


def prefill_cost(spec: ModelSpec, weights: str, group_size: int, prompt: int) -> Cost:
    """Of one whole prompt that nothing of is cached, up to its first token."""
    pairs = sum(causal_pairs(prompt, layer.sliding_window) for layer in spec.layers)
    attention = 2 * spec.num_heads * spec.head_dim * pairs
    return Cost(
        num_bytes=weight_bytes(spec, weights, group_size) + prompt * kv_bytes_per_token(spec),
        layer_operations=2.0 * prompt * layer_elements(spec),
        other_operations=2.0 * (attention + spec.vocab_size * spec.hidden_size),
    )
