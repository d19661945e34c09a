"""A ModelSpec interpreted with torch: eager, differentiable, one layer at a time, CPU or CUDA.

For calibration and training, not for serving: whole sequences, no KV cache, every matrix product
in the dtype of what it is given. The decoder holds no weights: whoever calls it holds as much of
the model as it needs. Shapes: B sequences of T positions, H the hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn.functional import gelu, linear, scaled_dot_product_attention, silu

from trimtab.checkpoints.base import Checkpoint
from trimtab.models.spec import ModelSpec

Weights = Mapping[str, Tensor]  # canonical names; of a layer, without "layers.{i}."
Linear = Callable[[str, Tensor], Tensor]  # (name of a matrix, its input) -> its output


def layer_weights(checkpoint: Checkpoint, index: int, device: torch.device) -> dict[str, Tensor]:
    """Float32 copies of all tensors of one layer, by name without its prefix."""
    prefix = f"layers.{index}."
    return {
        name.removeprefix(prefix): load(checkpoint, name, device)
        for name in checkpoint.names()
        if name.startswith(prefix)
    }


def load(checkpoint: Checkpoint, name: str, device: torch.device) -> Tensor:
    """A float32 copy; what is stored quantized, dequantized."""
    return torch.from_numpy(checkpoint.tensor(name).to_float32()).to(device)


def plain_linear(weights: Weights) -> Linear:
    """x W^T (+ bias)"""

    def apply(name: str, x: Tensor) -> Tensor:
        return linear(x, weights[name], weights.get(f"{name}_bias"))

    return apply


class TorchDecoder:
    """The functions of a spec. `segments` [B, T] says which document each position is of: positions
    attend only within their own; None: each sequence is one document."""

    def __init__(self, spec: ModelSpec, device: torch.device | str = "cpu") -> None:
        self.spec = spec
        self.device = torch.device(device)

    def embed(self, embedding: Tensor, token_ids: Tensor) -> Tensor:
        """[B, T, H] of token ids [B, T]."""
        return embedding[token_ids] * self.spec.embedding_scale

    def layer(
        self,
        index: int,
        weights: Weights,
        x: Tensor,
        segments: Tensor | None = None,
        apply: Linear | None = None,
    ) -> Tensor:
        """The residual stream [B, T, H] after layer `index`. `apply` computes the matrix products,
        the biases with them; plainly, if it is not given."""
        apply = apply or plain_linear(weights)
        x = x + self.attention_block(index, weights, x, segments, apply)
        return x + self.mlp_block(weights, x, apply)

    def attention_block(
        self, index: int, weights: Weights, x: Tensor, segments: Tensor | None, apply: Linear
    ) -> Tensor:
        """What attention adds to the residual stream."""
        h = self.norm(x, weights["attn_norm"])
        out = self.attention(index, weights, h, segments, apply)
        if self.spec.post_norms:
            return self.norm(out, weights["post_attn_norm"])
        return out

    def mlp_block(self, weights: Weights, x: Tensor, apply: Linear) -> Tensor:
        """What the MLP adds to the residual stream."""
        out = self.mlp(self.norm(x, weights["mlp_norm"]), apply)
        return self.norm(out, weights["post_mlp_norm"]) if self.spec.post_norms else out

    def attention(
        self, index: int, weights: Weights, h: Tensor, segments: Tensor | None, apply: Linear
    ) -> Tensor:
        spec, layer = self.spec, self.spec.layers[index]
        batch, length, _ = h.shape

        def heads(x: Tensor, count: int) -> Tensor:
            return x.view(batch, length, count, spec.head_dim)

        q = heads(apply("q", h), spec.num_heads)
        k = heads(apply("k", h), spec.num_kv_heads)
        v = heads(apply("v", h), spec.num_kv_heads)
        if spec.qk_norm:
            q, k = self.norm(q, weights["q_norm"]), self.norm(k, weights["k_norm"])
        cos, sin = self._rotation(layer.rope, length, h)
        q, k = _rotate(q, cos, sin).transpose(1, 2), _rotate(k, cos, sin).transpose(1, 2)
        group = spec.num_heads // spec.num_kv_heads
        k = k.repeat_interleave(group, 1)
        v = v.transpose(1, 2).repeat_interleave(group, 1)
        seen = self._seen(layer.sliding_window, length, segments)
        if spec.attention_softcap:
            scores = _softcap(q @ k.transpose(2, 3) * spec.attention_scale, spec.attention_softcap)
            mixed = torch.softmax(scores.masked_fill(~seen, -torch.inf), -1) @ v
        else:
            mixed = scaled_dot_product_attention(
                q, k, v, attn_mask=seen, scale=spec.attention_scale
            )
        return apply("o", mixed.transpose(1, 2).reshape(batch, length, -1))

    def mlp(self, h: Tensor, apply: Linear) -> Tensor:
        gate = apply("gate", h)
        gate = silu(gate) if self.spec.activation == "silu" else gelu(gate, approximate="tanh")
        return apply("down", gate * apply("up", h))

    def norm(self, x: Tensor, weight: Tensor) -> Tensor:
        scale = torch.rsqrt(x.square().mean(-1, keepdim=True) + self.spec.norm_eps)
        return x * scale * (self.spec.norm_weight_offset + weight)

    def logits(self, final_norm: Tensor, head: Tensor, x: Tensor) -> Tensor:
        """[B, T, vocab]"""
        out = linear(self.norm(x, final_norm), head)
        return _softcap(out, self.spec.logits_softcap)

    def _rotation(self, rope: int, length: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines [T, 1, rotary_dim / 2]."""
        found = self.spec.ropes[rope]
        frequencies = torch.tensor(found.inv_freq, dtype=torch.float64)
        angle = torch.arange(length, dtype=torch.float64)[:, None, None] * frequencies
        cos, sin = torch.cos(angle) * found.amplitude, torch.sin(angle) * found.amplitude
        return cos.to(like), sin.to(like)

    def _seen(self, window: int, length: int, segments: Tensor | None) -> Tensor:
        """True where a position (row) may look (column): [T, T] or [B, 1, T, T]."""
        place = torch.arange(length, device=self.device)
        distance = place[:, None] - place
        seen = distance >= 0
        if window:
            seen = seen & (distance < window)
        if segments is not None:
            same = segments[:, :, None] == segments[:, None, :]
            seen = seen & same[:, None]
        return seen


def model_logits(
    checkpoint: Checkpoint,
    token_ids: Tensor,
    segments: Tensor | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """[B, T, vocab] float32 of token ids [B, T], one layer's weights in memory at a time."""
    decoder = TorchDecoder(checkpoint.spec, device)
    names = set(checkpoint.names())
    token_ids = token_ids.to(decoder.device)
    segments = None if segments is None else segments.to(decoder.device)
    x = decoder.embed(load(checkpoint, "embed", decoder.device), token_ids)
    for index in range(checkpoint.spec.num_layers):
        x = decoder.layer(index, layer_weights(checkpoint, index, decoder.device), x, segments)
        checkpoint.release()
    head = load(checkpoint, "lm_head" if "lm_head" in names else "embed", decoder.device)
    return decoder.logits(load(checkpoint, "final_norm", decoder.device), head, x)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [B, T, heads, head_dim]; pair i of a head is (x[i], x[i + rotary_dim / 2])."""
    half = cos.shape[-1]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], -1)


def _softcap(x: Tensor, cap: float) -> Tensor:
    return cap * torch.tanh(x / cap) if cap else x
