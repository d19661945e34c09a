"""DraftHeadSpec: a trained draft head (EAGLE-3, Li et al. 2025, arXiv:2503.01840), as data.

Position q of a sequence has features f[q] of the target: its residual stream before some of its
layers, side by side. The head's one layer runs on (x, e), e the embedding of token q + 1:

    x = fc f[q];  h = [norm(e, attn_norm), norm(x, hidden_norm)]
    if norm_before_residual: x = norm(x, hidden_norm)
    x += attention(h Wq^T, h Wk^T, h Wv^T) Wo^T;  x += mlp(norm(x, mlp_norm))
    logits of token q + 2 = norm(x, final_norm) Whead^T, over the draft's own vocabulary

and goes on from there: at q + 1, that x stands in for fc f[q + 1].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from trimtab.models.config_reader import ConfigReader, show
from trimtab.models.decoder import Conventions, projections, read_decoder
from trimtab.models.spec import ModelSpec, TensorSource

ARCHITECTURES = (
    "LlamaForCausalLMEagle3",
    "Eagle3LlamaForCausalLM",
    "Eagle3Speculator",
    "Eagle3DraftModel",
)
# About how the head was made, or where its target is.
HARMLESS = (
    "speculators_config",
    "speculators_model_type",
    "speculators_version",
    "embed_requires_grad",
    "has_no_defaults_at_init",
    "target_model_type",
    "max_window_layers",
    "eos_token_id",
    "bos_token_id",
)


@dataclass(frozen=True)
class DraftHeadSpec:
    decoder: ModelSpec  # of its one layer; the vocabulary is the target's
    draft_vocab_size: int
    target_hidden_size: int
    layer_ids: tuple[int, ...]  # feature i is what layer layer_ids[i] of the target gets
    norm_before_residual: bool

    @property
    def num_features(self) -> int:
        return len(self.layer_ids) * self.target_hidden_size


def read_draft_head(values: Mapping[str, Any], target: ModelSpec, where: str) -> DraftHeadSpec:
    """What a head's config.json says. Raises CheckpointError for what is not understood, and for a
    head of another target."""
    config = ConfigReader(values, where)
    names = config.raw("architectures")
    if not isinstance(names, list) or len(names) != 1 or names[0] not in ARCHITECTURES:
        raise config.error(
            f"architectures = {show(names)}: not a draft head (known: {', '.join(ARCHITECTURES)})"
        )
    inner = config.section("transformer_layer_config")
    layer = inner or config
    decoder = _read_layer(layer, target)
    spec = DraftHeadSpec(
        decoder=replace(decoder, architecture=names[0]),
        draft_vocab_size=config.integer(
            "draft_vocab_size", decoder.vocab_size, maximum=decoder.vocab_size
        ),
        target_hidden_size=config.integer("target_hidden_size", decoder.hidden_size),
        layer_ids=_read_layer_ids(config, target),
        norm_before_residual=config.flag("norm_before_residual", inner is not None),
    )
    if spec.target_hidden_size != target.hidden_size:
        raise config.error(
            f"the head reads hidden states of {spec.target_hidden_size} values, the target's have "
            f"{target.hidden_size}"
        )
    if config.optional_number("logit_scale") not in (None, 1.0):
        raise config.error("logit_scale is not supported")
    config.ignore(*HARMLESS)
    layer.ignore(*HARMLESS)
    config.finish()
    layer.finish()
    return spec


def _read_layer(config: ConfigReader, target: ModelSpec) -> ModelSpec:
    spec = read_decoder(config, 0, Conventions(defaults={"num_hidden_layers": 1}))
    if spec.num_layers != 1:
        raise config.error(f"num_hidden_layers = {spec.num_layers}: heads have one layer")
    if spec.vocab_size != target.vocab_size:
        raise config.error(
            f"vocab_size = {spec.vocab_size}, but the target has {target.vocab_size} tokens"
        )
    if spec.tied_embeddings:
        raise config.error("tie_word_embeddings is not supported: a head has its own lm_head")
    config.texts("layer_types", 1)
    bias = config.flag("attention_bias", False)
    return replace(
        spec,
        max_context=target.max_context,
        qkv_bias=bias,
        output_bias=bias,
        mlp_bias=config.flag("mlp_bias", False),
    )


def _read_layer_ids(config: ConfigReader, target: ModelSpec) -> tuple[int, ...]:
    """Which layers' inputs are the features; see docs/models.md on how published heads count."""
    nested = config.section("eagle_config")
    ids = config.raw("eagle_aux_hidden_state_layer_ids") or config.raw("aux_hidden_state_layer_ids")
    if nested is not None:
        inner = nested.raw("eagle_aux_hidden_state_layer_ids")
        if not ids and inner:
            # Those that begin with 1 count the layers whose output is meant.
            ids = [i + 1 for i in _checked_ids(nested, inner)] if inner[0] == 1 else inner
        for name, needed in (
            ("use_aux_hidden_state", True),
            ("use_input_layernorm_in_first_layer", True),
            ("use_last_layernorm", True),
            ("use_mtp_layernorm", False),
        ):
            if nested.flag(name, needed) is not needed:
                raise nested.error(f"{name} = {not needed} is not supported")
        nested.ignore("next_layer_regular", "has_lm_head")
        if nested.integer("parallel_draft_step", 1) != 1:
            raise nested.error("parallel_draft_step is not supported")
        nested.finish()
    count = target.num_layers
    if not ids:
        if count < 6:
            raise config.error(
                f"eagle_aux_hidden_state_layer_ids is missing: no default for {count} layers"
            )
        return 2, count // 2, count - 3
    for i in _checked_ids(config, ids):
        if not 0 <= i <= count:
            raise config.error(f"feature layer {i} does not exist: the target has {count} layers")
    return tuple(ids)


def _checked_ids(config: ConfigReader, ids: Any) -> list[int]:
    if not isinstance(ids, list) or not all(type(i) is int for i in ids) or len(ids) > 16:
        raise config.error(
            f"eagle_aux_hidden_state_layer_ids = {show(ids)}: must be a few integers"
        )
    return ids


def draft_head_tensors(spec: DraftHeadSpec, own_embeddings: bool) -> dict[str, TensorSource]:
    """Canonical name -> source, as published: the layer is `midlayer`."""
    decoder = spec.decoder
    hidden = decoder.hidden_size
    table = {
        "fc": TensorSource("fc.weight", (hidden, spec.num_features)),
        "hidden_norm": TensorSource("midlayer.hidden_norm.weight", (hidden,)),
        "layers.0.attn_norm": TensorSource("midlayer.input_layernorm.weight", (hidden,)),
        "layers.0.mlp_norm": TensorSource("midlayer.post_attention_layernorm.weight", (hidden,)),
        "final_norm": TensorSource("norm.weight", (hidden,)),
        "lm_head": TensorSource("lm_head.weight", (spec.draft_vocab_size, hidden)),
    }
    if own_embeddings:
        table["embed"] = TensorSource("embed_tokens.weight", (decoder.vocab_size, hidden))
    for name, place, (rows, cols), bias in projections(decoder):
        columns = 2 * hidden if name in ("q", "k", "v") else cols
        table[f"layers.0.{name}"] = TensorSource(f"midlayer.{place}.weight", (rows, columns))
        if bias:
            table[f"layers.0.{name}_bias"] = TensorSource(f"midlayer.{place}.bias", (rows,))
    return table
