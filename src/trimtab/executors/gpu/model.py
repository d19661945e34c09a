"""The forward pass of a ModelSpec over the rows of a step, through Ops."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trimtab.executors.gpu.cache import KVCache
from trimtab.executors.gpu.matrices import ordered_inputs
from trimtab.executors.gpu.ops import Ops, Quantized
from trimtab.executors.gpu.weights import LayerWeights, ModelWeights, Projection
from trimtab.models.spec import ModelSpec


@dataclass(slots=True, eq=False)
class Rows:
    """The rows of a step on the device; shapes as at Ops."""

    token_ids: Tensor  # [T] int32
    positions: Tensor  # [T] int32
    slots: Tensor  # [T] int64
    seq_starts: Tensor  # [S + 1] int32
    block_tables: Tensor  # [S, M] int32
    max_rows: int
    max_context: int
    max_partitions: int  # of all contexts together; 0: nobody knows


class Model:
    """Weights and caches, and what is done with them. Writes K and V of every row."""

    def __init__(
        self, spec: ModelSpec, weights: ModelWeights, caches: Sequence[KVCache], ops: Ops
    ) -> None:
        self.spec = spec
        self.weights = weights
        self.caches = caches
        self.ops = ops

    def forward(
        self, rows: Rows, feature_layers: Sequence[int] = ()
    ) -> tuple[Tensor, list[Tensor]]:
        """[T, H] behind the final norm; and the residual stream [T, H] as each of these layers gets
        it (`num_layers`: what the final norm gets)."""
        spec, weights = self.spec, self.weights
        streams: dict[int, Tensor] = {}
        x = weights.embed[rows.token_ids.long()]
        if spec.embedding_scale != 1:
            x = (x.float() * spec.embedding_scale).to(x.dtype)
        residual = x
        added: Tensor | None = None
        for index, layer in enumerate(weights.layers):
            h, residual = self._normed_for(layer.qkv, added, residual, layer.attn_norm)
            if index in feature_layers:
                streams[index] = residual
            attended = self._attention(index, layer, h, rows)
            added = self._project(attended, layer.o)
            if layer.post_attn_norm is not None:
                added = self._norm(added, layer.post_attn_norm)
            h, residual = self._normed_for(layer.gate_up, added, residual, layer.mlp_norm)
            added = self._mlp(layer, h)
            if layer.post_mlp_norm is not None:
                added = self._norm(added, layer.post_mlp_norm)
        normed, residual = self._add_norm(added, residual, weights.final_norm)
        if spec.num_layers in feature_layers:
            streams[spec.num_layers] = residual
        return normed, [streams[index] for index in feature_layers]

    def logits(self, normed: Tensor) -> Tensor:
        """[R, V] float32 of rows [R, H] behind the final norm."""
        head = self.weights.head
        if head.kind is None:
            out = self.ops.linear(normed, head, None, torch.float32)
        else:
            values, scales = self.ops.quantize_rows(normed, head.kind)
            quantized = ordered_inputs(values, head), scales
            out = self.ops.linear_quantized(quantized, head, None, torch.float32)
        cap = self.spec.logits_softcap
        return self.ops.softcap(out, cap) if cap else out

    def _attention(
        self, index: int, layer: LayerWeights, h: Tensor | Quantized, rows: Rows
    ) -> Tensor:
        spec, cache = self.spec, self.caches[index]
        cos, sin = self.weights.ropes[spec.layers[index].rope]
        q = self.ops.qk_norm_rope_write(
            self._project_normed(h, layer.qkv),
            layer.q_norm,
            layer.k_norm,
            spec.norm_eps,
            spec.norm_weight_offset,
            cos,
            sin,
            rows.positions,
            rows.slots,
            cache,
        )
        return self.ops.attention(
            q,
            cache,
            rows.seq_starts,
            rows.positions,
            rows.block_tables,
            spec.attention_scale,
            spec.layers[index].sliding_window,
            spec.attention_softcap,
            rows.max_rows,
            rows.max_context,
            rows.max_partitions,
        )

    def _mlp(self, layer: LayerWeights, h: Tensor | Quantized) -> Tensor:
        gate_up = self._project_normed(h, layer.gate_up)
        kind = layer.down.matrix.kind
        if kind is None:
            gated = self.ops.gated(gate_up, self.spec.activation)
            return self._project_normed(gated, layer.down)
        quantized = self.ops.gated_quantize(gate_up, self.spec.activation, kind)
        return self._project_normed(quantized, layer.down)

    def _project(self, x: Tensor, projection: Projection) -> Tensor:
        kind = projection.matrix.kind
        return self._project_normed(
            x if kind is None else self.ops.quantize_rows(x, kind), projection
        )

    def _project_normed(self, x: Tensor | Quantized, projection: Projection) -> Tensor:
        """Of x as the projection takes it."""
        if isinstance(x, Tensor):
            return self.ops.linear(x, projection.matrix, projection.bias)
        dtype = self.weights.embed.dtype
        quantized = ordered_inputs(x[0], projection.matrix), x[1]
        return self.ops.linear_quantized(quantized, projection.matrix, projection.bias, dtype)

    def _normed_for(
        self, projection: Projection, added: Tensor | None, residual: Tensor, weight: Tensor
    ) -> tuple[Tensor | Quantized, Tensor]:
        kind = projection.matrix.kind
        if kind is None:
            return self._add_norm(added, residual, weight)
        eps, offset = self.spec.norm_eps, self.spec.norm_weight_offset
        if added is None:
            return self.ops.rms_norm_quantize(residual, weight, eps, offset, kind), residual
        *quantized, total = self.ops.add_rms_norm_quantize(
            added, residual, weight, eps, offset, kind
        )
        return (quantized[0], quantized[1]), total

    def _add_norm(
        self, added: Tensor | None, residual: Tensor, weight: Tensor
    ) -> tuple[Tensor, Tensor]:
        if added is None:
            return self._norm(residual, weight), residual
        spec = self.spec
        return self.ops.add_rms_norm(
            added, residual, weight, spec.norm_eps, spec.norm_weight_offset
        )

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return self.ops.rms_norm(x, weight, self.spec.norm_eps, self.spec.norm_weight_offset)
