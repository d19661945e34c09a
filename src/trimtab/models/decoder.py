"""What nearly every family shares: the sizes, the rope and the tensor table of a decoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from trimtab.errors import ConfigError
from trimtab.models.config_reader import ConfigReader
from trimtab.models.rope import FoldedRope, read_rope
from trimtab.models.spec import Activation, LayerSpec, ModelSpec, TensorSource

MAX_LAYERS = 4096

_ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
}


@dataclass(frozen=True)
class Conventions:
    """What a family's files may leave unsaid, and where they say things."""

    defaults: Mapping[str, int] = field(default_factory=dict)  # of size keys; others are required
    activation_key: str = "hidden_act"
    activation: str = "silu"  # when the key is absent
    tied: bool = False  # tie_word_embeddings when absent
    norm_eps: float | None = None  # rms_norm_eps when absent; None = required
    partial_rotary: bool = False
    original_positions: int | None = None  # original_max_position_embeddings when absent
    renamed_ropes: Mapping[str, str] = field(default_factory=dict)


def read_decoder(
    config: ConfigReader,
    max_context: int,
    conventions: Conventions | None = None,
    rope: FoldedRope | None = None,
) -> ModelSpec:
    """A ModelSpec of the plain Llama kind: full attention, no biases, one rope.

    `rope` is given by families that read their own. Raises CheckpointError for what the config
    gets wrong and ConfigError when `max_context` exceeds what the model can serve.
    """
    conventions = conventions or Conventions()

    def size(name: str, maximum: int = 1 << 24) -> int:
        return config.integer(name, conventions.defaults.get(name), maximum=maximum)

    hidden_size = size("hidden_size")
    num_heads = size("num_attention_heads", 1 << 16)
    num_kv_heads = config.integer(
        "num_key_value_heads",
        conventions.defaults.get("num_key_value_heads", num_heads),
        maximum=num_heads,
    )
    if num_heads % num_kv_heads:
        raise config.error(
            f"num_attention_heads = {num_heads} is not a multiple of "
            f"num_key_value_heads = {num_kv_heads}"
        )
    head_dim = read_head_dim(config, hidden_size, num_heads, conventions)
    max_positions = size("max_position_embeddings", (1 << 31) - 1)
    if rope is None:
        rope = read_rope(
            config,
            head_dim=head_dim,
            max_positions=max_positions,
            max_context=max_context,
            allow_partial=conventions.partial_rotary,
            default_original=conventions.original_positions,
            renamed_kinds=dict(conventions.renamed_ropes),
        )
    vocab_size = size("vocab_size")
    bos = config.token_ids("bos_token_id", vocab_size)
    return ModelSpec(
        architecture="",  # filled in by the registry
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=size("intermediate_size"),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        layers=(LayerSpec(),) * size("num_hidden_layers", MAX_LAYERS),
        ropes=(rope.rope,),
        norm_eps=config.number("rms_norm_eps", conventions.norm_eps),
        max_context=serving_context(rope, max_context),
        activation=read_activation(config, conventions),
        tied_embeddings=config.flag("tie_word_embeddings", conventions.tied),
        attention_scale=head_dim**-0.5,
        bos_token_id=bos[0] if bos else None,
        eos_token_ids=config.token_ids("eos_token_id", vocab_size),
    )


def read_head_dim(
    config: ConfigReader, hidden_size: int, num_heads: int, conventions: Conventions
) -> int:
    derived = hidden_size // num_heads if hidden_size % num_heads == 0 else None
    default = conventions.defaults.get("head_dim", derived)
    if default is None and config.raw("head_dim") is None:
        raise config.error(
            f"hidden_size = {hidden_size} is not a multiple of num_attention_heads = "
            f"{num_heads}, and head_dim is missing"
        )
    head_dim = config.integer("head_dim", default, minimum=2, maximum=1 << 16)
    if head_dim % 2:
        raise config.error(f"head_dim = {head_dim}: must be even")
    return head_dim


def read_activation(config: ConfigReader, conventions: Conventions) -> Activation:
    name = config.text(conventions.activation_key, conventions.activation)
    activation = _ACTIVATIONS.get(name)
    if activation is None:
        raise config.error(
            f"{conventions.activation_key} = {name!r} is not supported "
            f"(supported: {', '.join(sorted(_ACTIVATIONS))})"
        )
    return activation


def serving_context(rope: FoldedRope, max_context: int) -> int:
    if max_context < 0:
        raise ConfigError(f"max_context={max_context}: must not be negative")
    if max_context > rope.context_limit:
        raise ConfigError(
            f"max_context={max_context}: this model can serve at most {rope.context_limit} tokens"
        )
    return max_context or rope.default_context


def effective_window(window: int | None, max_context: int) -> int:
    """A window that spans the whole context is none at all."""
    return window if window is not None and window < max_context else 0


def uniform_layers(spec: ModelSpec, window: int | None) -> tuple[LayerSpec, ...]:
    layer = LayerSpec(sliding_window=effective_window(window, spec.max_context))
    return (layer,) * spec.num_layers


def typed_layers(
    config: ConfigReader, spec: ModelSpec, window: int | None, default_types: Sequence[str]
) -> tuple[tuple[LayerSpec, ...], tuple[str, ...]]:
    """Layers from `layer_types`, or from the family's own pattern where that is absent.

    Returns the layers (rope 0) and their types.
    """
    types = config.texts("layer_types", spec.num_layers) or tuple(default_types)
    layers = []
    for i, name in enumerate(types):
        if name == "full_attention":
            layers.append(LayerSpec())
        elif name == "sliding_attention":
            if window is None:
                raise config.error(
                    f"layer_types[{i}] is sliding_attention, but there is no sliding_window"
                )
            layers.append(LayerSpec(sliding_window=effective_window(window, spec.max_context)))
        else:
            raise config.error(f"layer_types[{i}] = {name!r} is not supported")
    return tuple(layers), types


@dataclass(frozen=True)
class NormNames:
    """How a family calls the norms of a layer."""

    attn_norm: str = "input_layernorm"
    mlp_norm: str = "post_attention_layernorm"
    post_attn_norm: str = ""
    post_mlp_norm: str = ""


def decoder_tensors(spec: ModelSpec, norms: NormNames | None = None) -> dict[str, TensorSource]:
    """Canonical name -> source in the layout of Hugging Face's Llama: separate projections."""
    norms = norms or NormNames()
    hidden, head_dim = spec.hidden_size, spec.head_dim
    table = {
        "embed": TensorSource("model.embed_tokens.weight", (spec.vocab_size, hidden)),
        "final_norm": TensorSource("model.norm.weight", (hidden,)),
    }
    if not spec.tied_embeddings:
        table["lm_head"] = TensorSource("lm_head.weight", (spec.vocab_size, hidden))
    for i in range(spec.num_layers):
        ours, theirs = f"layers.{i}.", f"model.layers.{i}."
        for norm in ("attn_norm", "mlp_norm", "post_attn_norm", "post_mlp_norm"):
            if name := getattr(norms, norm):
                table[ours + norm] = TensorSource(f"{theirs}{name}.weight", (hidden,))
        for name, place, shape, bias in projections(spec):
            table[ours + name] = TensorSource(f"{theirs}{place}.weight", shape)
            if bias:
                table[f"{ours}{name}_bias"] = TensorSource(f"{theirs}{place}.bias", shape[:1])
        if spec.qk_norm:
            for name in ("q_norm", "k_norm"):
                table[ours + name] = TensorSource(f"{theirs}self_attn.{name}.weight", (head_dim,))
    return table


def projections(spec: ModelSpec) -> list[tuple[str, str, tuple[int, int], bool]]:
    """The matrices of one layer: (canonical name, place in the layer, shape, has a bias)."""
    hidden, inner = spec.hidden_size, spec.intermediate_size
    q, kv = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    return [
        ("q", "self_attn.q_proj", (q, hidden), spec.qkv_bias),
        ("k", "self_attn.k_proj", (kv, hidden), spec.qkv_bias),
        ("v", "self_attn.v_proj", (kv, hidden), spec.qkv_bias),
        ("o", "self_attn.o_proj", (hidden, q), spec.output_bias),
        ("gate", "mlp.gate_proj", (inner, hidden), spec.mlp_bias),
        ("up", "mlp.up_proj", (inner, hidden), spec.mlp_bias),
        ("down", "mlp.down_proj", (hidden, inner), spec.mlp_bias),
    ]
