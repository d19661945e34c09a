"""Gemma 2: norms before and after each block, soft caps, a window on every other layer.

Norms multiply by 1 + weight. Embeddings are scaled by sqrt(hidden_size), here exactly; the
reference code rounds that factor to the dtype in which it runs.
"""

from __future__ import annotations

import math
from dataclasses import replace

from trimtab.models.config_reader import ConfigReader
from trimtab.models.decoder import (
    Conventions,
    NormNames,
    decoder_tensors,
    read_decoder,
    typed_layers,
)
from trimtab.models.family import Family
from trimtab.models.rope import FoldedRope
from trimtab.models.spec import ModelSpec, TensorSource

_CONVENTIONS = Conventions(
    activation_key="hidden_activation", activation="gelu_pytorch_tanh", tied=True
)
_NORMS = NormNames(
    attn_norm="input_layernorm",
    mlp_norm="pre_feedforward_layernorm",
    post_attn_norm="post_attention_layernorm",
    post_mlp_norm="post_feedforward_layernorm",
)


def parse(config: ConfigReader, max_context: int) -> ModelSpec:
    for name in ("head_dim", "query_pre_attn_scalar"):
        if config.raw(name) is None:
            raise config.error(f"{name} is missing")
    spec = parse_gemma(config, max_context, _CONVENTIONS)
    pattern = ["full_attention" if i % 2 else "sliding_attention" for i in range(spec.num_layers)]
    window = config.optional_integer("sliding_window", default=4096)
    layers, _ = typed_layers(config, spec, window, pattern)
    return replace(
        spec,
        layers=layers,
        attention_softcap=softcap(config, "attn_logit_softcapping", default=50.0),
        logits_softcap=softcap(config, "final_logit_softcapping", default=30.0),
    )


def parse_gemma(
    config: ConfigReader,
    max_context: int,
    conventions: Conventions,
    rope: FoldedRope | None = None,
) -> ModelSpec:
    """What Gemma 2 and Gemma 3 share."""
    # An older name of hidden_activation that the reference code does not read.
    legacy = config.text("hidden_act", "gelu_pytorch_tanh")
    if legacy not in ("gelu", "gelu_pytorch_tanh"):
        raise config.error(f"hidden_act = {legacy!r} is not supported by this family")
    if config.flag("use_bidirectional_attention", False):
        raise config.error("use_bidirectional_attention: only causal attention is supported")
    spec = read_decoder(config, max_context, conventions, rope)
    attention_bias = config.flag("attention_bias", False)
    return replace(
        spec,
        norm_weight_offset=1.0,
        post_norms=True,
        embedding_scale=math.sqrt(spec.hidden_size),
        attention_scale=config.number("query_pre_attn_scalar", 256.0) ** -0.5,
        qkv_bias=attention_bias,
        output_bias=attention_bias,
    )


def softcap(config: ConfigReader, name: str, default: float) -> float:
    """0 (off) when null, `default` when absent."""
    value = config.optional_number(name)
    return default if name not in config else value or 0.0


def tensors(spec: ModelSpec) -> dict[str, TensorSource]:
    return decoder_tensors(spec, _NORMS)


FAMILY = Family(parse, tensors)
