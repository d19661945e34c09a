"""What a model costs, from its ModelSpec alone: bytes by part, bytes and arithmetic a token."""

from __future__ import annotations

from dataclasses import dataclass

from trimtab.config import ExecutorConfig, KVFormat, WeightFormat
from trimtab.models.spec import ModelSpec

PANEL = 16  # output columns of a micro-panel (native/kernels/kernels.h)
KV_BYTES: dict[KVFormat, int] = {"f32": 4, "bf16": 2, "int8": 1}


def _round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


def head_format(config: ExecutorConfig) -> WeightFormat:
    """The output head is kept in int8 where the weights are int4."""
    return "int8" if config.weights == "int4" else config.weights


def head_group(config: ExecutorConfig) -> int:
    """Likewise: columns of the output head that share a scale."""
    return 0 if config.weights == "int4" else config.scale_group


def matrix_bytes(rows: int, cols: int, weights: WeightFormat, group_size: int) -> int:
    """Packed bytes of a [rows (outputs), cols (inputs)] matrix, padding and scales included.

    The layouts are written down at `PackedMatrix` in native/kernels/kernels.h.
    """
    if weights == "f32":
        return _round_up(rows, PANEL) * cols * 4
    if weights == "bf16":
        return _round_up(rows, PANEL) * _round_up(cols, 2) * 2
    if group_size == 0:
        return _round_up(rows, PANEL) * (_round_up(cols, 4) + 4)
    groups = -(-cols // group_size)
    bits = 8 if weights == "int8" else 4
    return _round_up(rows, 2 * PANEL) * groups * (group_size * bits // 8 + 2)


@dataclass(frozen=True)
class Footprint:
    """Bytes are those that the executor holds, in its packed formats."""

    parameters: int
    part_bytes: dict[str, int]  # embedding, attention, mlp, norms, output head
    weight_bytes: int
    read_bytes_per_step: int  # weights that every decode step reads: all but the embedding table
    kv_bytes_per_token: int
    layer_macs_per_token: int  # multiply-accumulates in the matrices of the layers
    head_macs_per_token: int  # the same of the output head, for tokens that need logits

    attention_macs_per_position: int  # one query row against one position, in one layer
    windows: tuple[int, ...]  # sliding window of each layer, 0 = none

    def positions_read(self, context: int) -> int:
        """Positions that one row at the end of `context` tokens attends to, over all layers."""
        return sum(min(context, window or context) for window in self.windows)

    def positions_read_by_prompt(self, length: int) -> int:
        """The same, summed over the rows of a prompt (causal)."""
        total = 0
        for window in self.windows:
            full = min(length, window or length)
            total += full * (full + 1) // 2 + (length - full) * full
        return total


def _linear_shapes(spec: ModelSpec) -> dict[str, list[tuple[int, int]]]:
    """The matrices of one layer as the executor holds them: QKV and gate+up are fused."""
    queries = spec.num_heads * spec.head_dim
    keys = spec.num_kv_heads * spec.head_dim
    # gate and up are padded to whole panels each, so that the panels can alternate
    gated = 2 * _round_up(spec.intermediate_size, PANEL)
    return {
        "attention": [(queries + 2 * keys, spec.hidden_size), (spec.hidden_size, queries)],
        "mlp": [(gated, spec.hidden_size), (spec.hidden_size, spec.intermediate_size)],
    }


def footprint(spec: ModelSpec, config: ExecutorConfig) -> Footprint:
    hidden, layers = spec.hidden_size, spec.num_layers
    shapes = _linear_shapes(spec)
    part_bytes = {
        part: layers * sum(matrix_bytes(n, k, config.weights, config.scale_group) for n, k in mats)
        for part, mats in shapes.items()
    }
    embedding_width = 4 if config.weights == "f32" else 2
    part_bytes["embedding"] = spec.vocab_size * hidden * embedding_width
    part_bytes["output head"] = matrix_bytes(
        spec.vocab_size, hidden, head_format(config), head_group(config)
    )
    norms_per_layer = (4 if spec.post_norms else 2) * hidden + 2 * spec.head_dim * spec.qk_norm
    part_bytes["norms"] = 4 * (layers * norms_per_layer + hidden)

    queries = spec.num_heads * spec.head_dim
    keys = spec.num_kv_heads * spec.head_dim
    layer_macs = layers * hidden * (2 * queries + 2 * keys + 3 * spec.intermediate_size)
    head_macs = spec.vocab_size * hidden
    biases = layers * (
        (queries + 2 * keys) * spec.qkv_bias
        + hidden * spec.output_bias
        + (2 * spec.intermediate_size + hidden) * spec.mlp_bias
    )
    parameters = (
        layer_macs
        + head_macs * (1 if spec.tied_embeddings else 2)
        + part_bytes["norms"] // 4
        + biases
    )
    kv_width = KV_BYTES[config.kv_cache]
    kv_scale_bytes = 8 if config.kv_cache == "int8" else 0
    weight_bytes = sum(part_bytes.values())
    return Footprint(
        parameters=parameters,
        part_bytes=part_bytes,
        weight_bytes=weight_bytes,
        read_bytes_per_step=weight_bytes - part_bytes["embedding"],
        kv_bytes_per_token=layers
        * spec.num_kv_heads
        * (2 * spec.head_dim * kv_width + kv_scale_bytes),
        layer_macs_per_token=layer_macs,
        head_macs_per_token=head_macs,
        attention_macs_per_position=2 * queries,
        windows=tuple(layer.sliding_window for layer in spec.layers),
    )


@dataclass(frozen=True)
class Ceilings:
    """The fastest that physics allows, given a measured machine. Tokens a second."""

    decode: dict[int, float]  # context length -> one stream
    prefill: dict[int, float]  # prompt length -> one prompt

    def as_json(self) -> dict[str, dict[str, float]]:
        return {
            "decode_tokens_per_s": {str(k): v for k, v in self.decode.items()},
            "prefill_tokens_per_s": {str(k): v for k, v in self.prefill.items()},
        }


def ceilings(
    model: Footprint,
    bytes_per_s: float,
    linear_macs_per_s: float,
    attention_macs_per_s: float,
    contexts: tuple[int, ...],
    prompts: tuple[int, ...],
) -> Ceilings:
    """Decode: weights + KV read once, over bandwidth. Prefill: the larger of arithmetic (linear
    layers at the weight format's peak, causal attention at the KV format's) and one weight read.
    """

    def prefill_seconds(length: int) -> float:
        causal = model.attention_macs_per_position * model.positions_read_by_prompt(length)
        linear = model.layer_macs_per_token * length + model.head_macs_per_token
        arithmetic = linear / linear_macs_per_s + causal / attention_macs_per_s
        return max(arithmetic, model.read_bytes_per_step / bytes_per_s)

    def decode_bytes(context: int) -> float:
        kv_bytes_per_layer = model.kv_bytes_per_token / len(model.windows)
        return model.read_bytes_per_step + model.positions_read(context) * kv_bytes_per_layer

    return Ceilings(
        decode={c: bytes_per_s / decode_bytes(c) for c in contexts},
        prefill={p: p / prefill_seconds(p) for p in prompts},
    )
