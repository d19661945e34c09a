"""What a model costs, from its ModelSpec alone: bytes by part, bytes and arithmetic a token."""

from __future__ import annotations

from dataclasses import dataclass

from trimtab.config import Device, ExecutorConfig
from trimtab.executors.formats import (
    PANEL,
    HeldFormat,
    KernelFormat,
    ModelFormats,
    Slot,
    formats_of_config,
)
from trimtab.models.spec import ModelSpec

KV_BYTES: dict[str, int] = {"f32": 4, "bf16": 2, "int8": 1, "fp8": 1}
KV_SCALE_BYTES: dict[str, int] = {"int8": 8, "fp8": 8}  # of a token and head, K and V


@dataclass(frozen=True)
class Footprint:
    """Bytes are those that the CPU executor holds, in its packed formats; other devices hold as
    many but for padding."""

    parameters: int
    layer_weights: HeldFormat  # whose arithmetic the layers use
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


def arithmetic_of(format: KernelFormat, device: Device = "cpu") -> HeldFormat:
    """The format whose products those of a matrix become."""
    weights = format.weights
    if device != "cpu":  # integers in groups are widened: gpu/matrix_loading.py
        is_own = weights in ("f32", "fp8") or (weights == "int8" and not format.group_size)
        return weights if is_own else "bf16"
    if weights == "int5" or weights == "int6":
        return "int8"
    return "f32" if weights == "fp8" else weights


def _rows(spec: ModelSpec, part: str) -> int:
    """Of a projection, by its canonical name in a layer."""
    if part in ("gate", "up"):
        return spec.intermediate_size
    if part in ("o", "down"):
        return spec.hidden_size
    return (spec.num_heads if part == "q" else spec.num_kv_heads) * spec.head_dim


def _slot_bytes(spec: ModelSpec, slot: Slot) -> int:
    """Of a layer's matrix as the executor holds it."""
    cols = {"o": spec.num_heads * spec.head_dim, "down": spec.intermediate_size}
    rows = sum(_rows(spec, part) for part in slot.parts)
    if slot.name == "gate_up":  # padded to whole panels each, so that the panels can alternate
        rows = 2 * -(-spec.intermediate_size // PANEL) * PANEL
    return slot.format.num_bytes(rows, cols.get(slot.name, spec.hidden_size))


def _part_bytes(spec: ModelSpec, formats: ModelFormats, device: Device) -> dict[str, int]:
    vocab, hidden = spec.vocab_size, spec.hidden_size
    parts = {"attention": 0, "mlp": 0}
    for layer in formats.layers:
        for slot in layer:
            mlp = slot.name in ("gate_up", "gate", "up", "down")
            parts["mlp" if mlp else "attention"] += _slot_bytes(spec, slot)
    own = formats.embedding_matrix
    widths = {"f32": 4, "bf16": 2, "head": 0, "matrix": 0}
    parts["embedding"] = vocab * hidden * widths[formats.embedding]
    if own is not None:
        parts["embedding"] = own.format.num_bytes(vocab, hidden)
    parts["output head"] = formats.head.format.num_bytes(vocab, hidden)
    is_float = formats.head.format.weights in ("f32", "bf16")
    if device != "cpu" and spec.tied_embeddings and is_float:
        parts["embedding"] = 0  # the head is the table
    return parts


def footprint(
    spec: ModelSpec, config: ExecutorConfig, formats: ModelFormats | None = None
) -> Footprint:
    """`formats`: of a checkpoint (choose_formats); by default one of floats."""
    hidden, layers = spec.hidden_size, spec.num_layers
    formats = formats or formats_of_config(spec, config)
    part_bytes = _part_bytes(spec, formats, config.device)
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
    kv_scale_bytes = KV_SCALE_BYTES.get(config.kv_cache, 0)
    weight_bytes = sum(part_bytes.values())
    return Footprint(
        parameters=parameters,
        layer_weights=arithmetic_of(formats.layers[0][-1].format, config.device),
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
