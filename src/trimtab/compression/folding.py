"""Scalings that change what is rounded and not what a layer computes.

The columns of the matrices that read a vector are multiplied by s, and what makes the vector is
divided by it: the norm before q, k, v or gate, up; the rows of v before o; the rows of up before
down. Norms are stored with few digits, so a scaling is first rounded to one that the norm can hold
exactly: the float model computes the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from trimtab.models.spec import ModelSpec

READERS: dict[str, tuple[str, ...]] = {
    "attn_norm": ("q", "k", "v"),
    "v": ("o",),
    "mlp_norm": ("gate", "up"),
    "up": ("down",),
}


@dataclass
class FoldedLayer:
    """A layer's tensors as they become; see `fold`."""

    spec: ModelSpec
    weights: dict[str, Tensor]
    vector_dtypes: Mapping[str, torch.dtype]  # in which norms and biases are stored
    changed: set[str] = field(default_factory=set)  # vectors
    column_scales: dict[str, Tensor] = field(default_factory=dict)  # of each reader so far

    def reduced(self, source: str, of_columns: Tensor) -> Tensor:
        """Means, over the input columns of the readers that share a scale of the source."""
        if source != "v":
            return of_columns
        return self._heads(of_columns).mean(1).flatten()

    def spread(self, source: str, scales: Tensor) -> Tensor:
        """The scale of each input column of the readers."""
        if source != "v":
            return scales
        group = self.spec.num_heads // self.spec.num_kv_heads
        of_heads = scales.view(self.spec.num_kv_heads, 1, self.spec.head_dim)
        return of_heads.expand(-1, group, -1).flatten()

    def exact(self, source: str, scales: Tensor) -> tuple[Tensor, Tensor]:
        """(scales that can be folded exactly, the source after that), near to those wished."""
        weight = self.weights[source]
        if source not in ("attn_norm", "mlp_norm"):
            return scales, weight / scales[:, None]
        offset, dtype = self.spec.norm_weight_offset, self.vector_dtypes[source]
        factor = weight + offset
        folded = (factor / scales - offset).to(dtype).to(weight.dtype)
        possible = factor / (folded + offset)
        fits = torch.isfinite(possible) & (possible > 0)
        return torch.where(fits, possible, 1.0), torch.where(fits, folded, weight)

    def scaled(self, source: str, scales: Tensor) -> dict[str, Tensor]:
        """The readers with their columns multiplied; changes nothing. `scales`: of `exact`."""
        columns = self.spread(source, scales)
        return {name: self.weights[name] * columns for name in READERS[source]}

    def fold(self, source: str, scales: Tensor) -> None:
        """`scales` > 0, one for each output of the source, rounded as `exact` does."""
        possible, folded = self.exact(source, scales)
        self.weights.update(self.scaled(source, possible))
        for name in READERS[source]:
            self.column_scales[name] = self.spread(source, possible)
        self.weights[source] = folded
        bias = f"{source}_bias"
        if source in ("attn_norm", "mlp_norm"):
            self.changed.add(source)
        elif bias in self.weights:
            dtype = self.vector_dtypes[bias]
            self.weights[bias] = (self.weights[bias] / possible).to(dtype).float()
            self.changed.add(bias)

    def _heads(self, of_columns: Tensor) -> Tensor:
        """[kv heads, query heads of each, head_dim]"""
        return of_columns.view(self.spec.num_kv_heads, -1, self.spec.head_dim)
