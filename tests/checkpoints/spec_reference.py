"""What a ModelSpec means, in float64 numpy: one whole sequence, no cache, no cleverness.

Written from the docstring of trimtab/models/spec.py alone.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from trimtab.checkpoints.base import Checkpoint
from trimtab.models.spec import LayerSpec, ModelSpec, RopeSpec

Array = npt.NDArray[np.float64]


def logits(checkpoint: Checkpoint, token_ids: list[int]) -> Array:
    """[len(token_ids), vocab_size]"""
    spec = checkpoint.spec
    w = {name: checkpoint.tensor(name).to_float32().astype(float) for name in checkpoint.names()}
    x = w["embed"][token_ids] * spec.embedding_scale
    for i, layer in enumerate(spec.layers):
        x = _layer(spec, layer, {k.split(".", 2)[2]: v for k, v in _of_layer(w, i)}, x)
    head = w["embed"] if spec.tied_embeddings else w["lm_head"]
    return _softcap(_norm(spec, x, w["final_norm"]) @ head.T, spec.logits_softcap)


def _of_layer(w: dict[str, Array], i: int) -> list[tuple[str, Array]]:
    return [(name, value) for name, value in w.items() if name.startswith(f"layers.{i}.")]


def _layer(spec: ModelSpec, layer: LayerSpec, w: dict[str, Array], x: Array) -> Array:
    attention = _attention(spec, layer, w, _norm(spec, x, w["attn_norm"]))
    if spec.post_norms:
        attention = _norm(spec, attention, w["post_attn_norm"])
    x = x + attention
    h = _norm(spec, x, w["mlp_norm"])
    m = _linear(_activation(spec, _linear(h, w, "gate")) * _linear(h, w, "up"), w, "down")
    if spec.post_norms:
        m = _norm(spec, m, w["post_mlp_norm"])
    return x + m


def _attention(spec: ModelSpec, layer: LayerSpec, w: dict[str, Array], h: Array) -> Array:
    rows, group = len(h), spec.num_heads // spec.num_kv_heads
    q = _linear(h, w, "q").reshape(rows, spec.num_heads, spec.head_dim)
    k = _linear(h, w, "k").reshape(rows, spec.num_kv_heads, spec.head_dim)
    v = _linear(h, w, "v").reshape(rows, spec.num_kv_heads, spec.head_dim)
    if spec.qk_norm:
        q, k = _norm(spec, q, w["q_norm"]), _norm(spec, k, w["k_norm"])
    rope = spec.ropes[layer.rope]
    q, k = _rotate(rope, q), np.repeat(_rotate(rope, k), group, axis=1)
    scores = np.einsum("qhd,khd->hqk", q, k) * spec.attention_scale
    scores = _softcap(scores, spec.attention_softcap)
    distance = np.arange(rows)[:, None] - np.arange(rows)[None, :]
    hidden = distance < 0
    if layer.sliding_window:
        hidden |= distance >= layer.sliding_window
    scores = np.where(hidden, -np.inf, scores)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    mixed = np.einsum("hqk,khd->qhd", weights, np.repeat(v, group, axis=1))
    return _linear(mixed.reshape(rows, -1), w, "o")


def _rotate(rope: RopeSpec, x: Array) -> Array:
    angle = np.arange(len(x))[:, None, None] * np.array(rope.inv_freq)
    cos, sin = np.cos(angle) * rope.amplitude, np.sin(angle) * rope.amplitude
    half = rope.rotary_dim // 2
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin, rest], axis=-1)


def _linear(x: Array, w: dict[str, Array], name: str) -> Array:
    y = x @ w[name].T
    return y + w[f"{name}_bias"] if f"{name}_bias" in w else y


def _norm(spec: ModelSpec, x: Array, weight: Array) -> Array:
    scale = 1 / np.sqrt((x * x).mean(-1, keepdims=True) + spec.norm_eps)
    return x * scale * (spec.norm_weight_offset + weight)


def _activation(spec: ModelSpec, x: Array) -> Array:
    if spec.activation == "silu":
        return x / (1 + np.exp(-x))
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def _softcap(x: Array, cap: float) -> Array:
    return cap * np.tanh(x / cap) if cap else x
