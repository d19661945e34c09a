"""Gemma 3, text: Gemma 2 without soft caps, with qk-norm and two ropes.

Layers with a sliding window turn by the local rope (theta 10,000, never scaled), the others
(every sixth) by the global one. Of the multimodal checkpoints the text model is taken; the
vision tower is left alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from trimtab.models.config_reader import ConfigReader
from trimtab.models.decoder import Conventions, typed_layers
from trimtab.models.family import Family
from trimtab.models.gemma2 import parse_gemma, softcap, tensors
from trimtab.models.rope import FoldedRope, RopeInputs, fold_rope, rotary_dim
from trimtab.models.spec import LayerSpec, ModelSpec

# The published multimodal files leave most sizes to these defaults.
_CONVENTIONS = Conventions(
    defaults={
        "vocab_size": 262_208,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "max_position_embeddings": 131_072,
    },
    activation_key="hidden_activation",
    activation="gelu_pytorch_tanh",
    tied=True,
    norm_eps=1e-6,
)
_GLOBAL, _LOCAL = 0, 1  # order of the spec's ropes


def parse(config: ConfigReader, max_context: int) -> ModelSpec:
    global_rope, local_rope = _read_ropes(config, max_context)
    spec = parse_gemma(config, max_context, _CONVENTIONS, global_rope)
    window = config.optional_integer("sliding_window", default=4096)
    layers, types = typed_layers(config, spec, window, _pattern(config, spec.num_layers))
    return replace(
        spec,
        qk_norm=True,
        ropes=(global_rope.rope, local_rope.rope),
        layers=_with_ropes(layers, types),
        attention_softcap=softcap(config, "attn_logit_softcapping", default=0.0),
        logits_softcap=softcap(config, "final_logit_softcapping", default=0.0),
    )


def parse_multimodal(config: ConfigReader, max_context: int) -> ModelSpec:
    text = config.section("text_config")
    if text is None:
        raise config.error("text_config is missing")
    spec = parse(text, max_context)
    text.finish()
    # These describe images; text alone never meets them.
    config.ignore("vision_config", "mm_tokens_per_image", "image_token_index", "image_token_id")
    config.ignore("boi_token_index", "eoi_token_index", "boi_token_id", "eoi_token_id")
    eos = config.token_ids("eos_token_id", spec.vocab_size)
    bos = config.token_ids("bos_token_id", spec.vocab_size)
    return replace(
        spec,
        tied_embeddings=config.flag("tie_word_embeddings", spec.tied_embeddings),
        eos_token_ids=eos or spec.eos_token_ids,
        bos_token_id=bos[0] if bos else spec.bos_token_id,
    )


def _read_ropes(config: ConfigReader, max_context: int) -> tuple[FoldedRope, FoldedRope]:
    """The global and the local rope, from either generation of config."""
    head_dim = config.integer("head_dim", _CONVENTIONS.defaults["head_dim"], minimum=2)
    max_positions = config.integer(
        "max_position_embeddings", _CONVENTIONS.defaults["max_position_embeddings"]
    )
    original = config.optional_integer("original_max_position_embeddings")
    empty = ConfigReader({}, f"{config.where}: rope_parameters")
    nested = config.section("rope_parameters")
    if nested is None:
        sections = (config.section("rope_scaling") or empty, empty)
    else:
        if config.raw("rope_scaling") is not None:
            raise config.error("rope_scaling and rope_parameters are both given")
        sections = (
            nested.section("full_attention") or empty,
            nested.section("sliding_attention") or empty,
        )
        nested.finish(frozenset())
    thetas = (config.number("rope_theta", 1e6), config.number("rope_local_base_freq", 1e4))
    dims = [rotary_dim(section, head_dim, None, allow_partial=False) for section in sections]
    folded = [
        fold_rope(section, RopeInputs(theta, dim, max_positions, original, max_context))
        for section, theta, dim in zip(sections, thetas, dims, strict=True)
    ]
    return folded[0], folded[1]


def _pattern(config: ConfigReader, num_layers: int) -> Sequence[str]:
    """The first layers of each period are local, its last one global."""
    name = "sliding_window_pattern"
    if name not in config:
        name = "_sliding_window_pattern"  # as transformers 5 writes it
    period = config.integer(name, default=6)
    return [
        "sliding_attention" if (i + 1) % period else "full_attention" for i in range(num_layers)
    ]


def _with_ropes(layers: Sequence[LayerSpec], types: Sequence[str]) -> tuple[LayerSpec, ...]:
    """The rope follows a layer's type, also where its window spans the whole context."""
    return tuple(
        replace(layer, rope=_LOCAL if kind == "sliding_attention" else _GLOBAL)
        for layer, kind in zip(layers, types, strict=True)
    )


FAMILY = Family(parse, tensors)
MULTIMODAL_FAMILY = Family(
    parse_multimodal,
    tensors,
    foreign_prefixes=(
        "vision_tower.",
        "multi_modal_projector.",
        "model.vision_tower.",
        "model.multi_modal_projector.",
    ),
)
