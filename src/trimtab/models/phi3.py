"""Phi-3, Phi-3.5 and Phi-4-mini: Llama with fused projections, partial rope and LongRoPE.

    qkv_proj      rows: q [heads * head_dim] | k [kv heads * head_dim] | v [kv heads * head_dim]
    gate_up_proj  rows: gate [intermediate] | up [intermediate]

Which of the two LongRoPE factor lists is used is decided at load: the long one when the context
that will be served (`max_context`, by default max_position_embeddings) exceeds
original_max_position_embeddings. To get the short one, serve with `max_context` at most that.
"""

from __future__ import annotations

from dataclasses import replace

from trimtab.models.config_reader import ConfigReader
from trimtab.models.decoder import Conventions, decoder_tensors, read_decoder, uniform_layers
from trimtab.models.family import Family
from trimtab.models.spec import ModelSpec, TensorSource

_CONVENTIONS = Conventions(
    partial_rotary=True,
    original_positions=4096,
    renamed_ropes={"su": "longrope", "yarn": "longrope"},
)


def parse(config: ConfigReader, max_context: int) -> ModelSpec:
    for name in ("full_attn_mod", "interpolate_factor"):  # Phi-4-mini writes both as 1
        if config.integer(name, default=1) != 1:
            raise config.error(f"{name} = {config.raw(name)} is not supported")
    spec = read_decoder(config, max_context, _CONVENTIONS)
    window = config.optional_integer("sliding_window", default=None)
    return replace(spec, layers=uniform_layers(spec, window))


def tensors(spec: ModelSpec) -> dict[str, TensorSource]:
    table = decoder_tensors(spec)
    for i in range(spec.num_layers):
        ours, theirs = f"layers.{i}.", f"model.layers.{i}."
        _fuse(table, [f"{ours}{n}" for n in "qkv"], f"{theirs}self_attn.qkv_proj.weight")
        _fuse(table, [f"{ours}gate", f"{ours}up"], f"{theirs}mlp.gate_up_proj.weight")
    return table


def _fuse(table: dict[str, TensorSource], names: list[str], stored: str) -> None:
    """Let `names` be consecutive row ranges of one stored matrix."""
    total = sum(table[name].shape[0] for name in names)
    first = 0
    for name in names:
        shape = table[name].shape
        table[name] = TensorSource(stored, shape, first_row=first, fused_rows=total)
        first += shape[0]


FAMILY = Family(parse, tensors)
