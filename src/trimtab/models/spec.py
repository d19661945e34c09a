"""ModelSpec: what a decoder-only transformer is, as data that every executor interprets.

Layer, in order (x is the residual stream):

    h = norm(x, attn_norm);  q, k, v = h Wq^T (+b), h Wk^T (+b), h Wv^T (+b)
    if qk_norm: q, k = norm per head(q), norm per head(k)
    rope(q, k);  a = attention(q, k, v; scale = attention_scale, softcap, sliding window)
    o = a Wo^T (+b);  if post_norms: o = norm(o, post_attn_norm);  x += o
    h = norm(x, mlp_norm);  m = (act(h Wgate^T) * (h Wup^T)) Wdown^T
    if post_norms: m = norm(m, post_mlp_norm);  x += m

    logits = softcap(norm(x, final_norm) Whead^T)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Activation = Literal["silu", "gelu_tanh"]


@dataclass(frozen=True)
class RopeSpec:
    """Rotary embedding as the executors use it, every scaling kind already folded in.

    Pair i of a head is (x[i], x[i + rotary_dim/2]); its angle at position p is p * inv_freq[i],
    its cosine and sine are multiplied by `amplitude` (YaRN, LongRoPE).
    """

    inv_freq: tuple[float, ...]  # rotary_dim / 2 values, float64
    amplitude: float = 1.0

    @property
    def rotary_dim(self) -> int:
        return 2 * len(self.inv_freq)


@dataclass(frozen=True)
class LayerSpec:
    sliding_window: int = 0  # 0 = full attention; w = the row itself and the w - 1 before it
    rope: int = 0  # index into ModelSpec.ropes


@dataclass(frozen=True)
class ModelSpec:
    architecture: str  # the checkpoint's own name, for people
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    layers: tuple[LayerSpec, ...]
    ropes: tuple[RopeSpec, ...]
    norm_eps: float
    max_context: int  # positions the model was made for
    activation: Activation = "silu"
    norm_weight_offset: float = 0.0  # Gemma multiplies by 1 + weight
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    post_norms: bool = False
    tied_embeddings: bool = False
    embedding_scale: float = 1.0
    attention_scale: float = 0.0  # softmax(q k^T * attention_scale); families fill it in
    attention_softcap: float = 0.0  # 0 = off; c tanh(s / c) after scaling
    logits_softcap: float = 0.0
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = field(default=())

    @property
    def num_layers(self) -> int:
        return len(self.layers)


@dataclass(frozen=True)
class TensorSource:
    """Where a canonical tensor lies in a checkpoint: a tensor's name and, of fused ones, its rows.

    `shape` is the shape of the canonical tensor (of the row range, not of the fused one).
    """

    name: str
    shape: tuple[int, ...]
    first_row: int = 0
    fused_rows: int | None = None  # rows of the whole stored tensor, when it is fused


# Canonical tensor names, all matrices [out, in]:
#   embed [vocab, hidden]   final_norm [hidden]   lm_head [vocab, hidden] (absent when tied)
#   layers.{i}. attn_norm mlp_norm post_attn_norm post_mlp_norm [hidden]
#   layers.{i}. q k v o gate up down  (+ q_bias k_bias v_bias o_bias gate_bias up_bias down_bias)
#   layers.{i}. q_norm k_norm [head_dim]
