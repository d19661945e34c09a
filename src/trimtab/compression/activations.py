"""The residual stream of the calibration text between two layers, kept outside the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trimtab.compression.calibration import CalibrationRows

BATCH_TOKENS = 2048  # that a layer is run on at once
LARGE_BYTES = 1 << 30  # a stream that is larger in float32 is kept in bfloat16


@dataclass(frozen=True)
class Batch:
    """On the device: rows of the stream [B, T, H], and their segments [B, T]."""

    x: Tensor
    segments: Tensor


class Activations:
    """A residual stream in memory, batch by batch; float32, or bfloat16 where that is large."""

    def __init__(
        self, parts: Sequence[Tensor], segments: Sequence[Tensor], device: torch.device
    ) -> None:
        self._parts = list(parts)
        self._segments = list(segments)
        self.device = device

    @classmethod
    def of_tokens(
        cls,
        rows: CalibrationRows,
        embed: Callable[[Tensor], Tensor],
        device: torch.device,
        dtype: torch.dtype | None = None,
    ) -> Activations:
        """What `embed` makes of the tokens."""
        size = max(1, BATCH_TOKENS // rows.token_ids.shape[1])
        token_ids = torch.split(torch.from_numpy(rows.token_ids), size)
        segments = torch.split(torch.from_numpy(rows.segments), size)
        first = embed(token_ids[0].to(device))
        dtype = dtype or _kept_dtype(first.shape[-1] * rows.num_tokens)
        parts = [embed(ids.to(device)).to("cpu", dtype) for ids in token_ids]
        return cls(parts, segments, device)

    def __iter__(self) -> Iterator[Batch]:
        for index in range(len(self)):
            yield self.batch(index)

    def __len__(self) -> int:
        return len(self._parts)

    @property
    def num_rows(self) -> int:
        return sum(len(part) for part in self._parts)

    def batch(self, index: int) -> Batch:
        x = self._parts[index].to(self.device, torch.float32)
        return Batch(x, self._segments[index].to(self.device))

    def rows(self, indices: Sequence[int]) -> Batch:
        """Single rows, by their number in the whole."""
        size = len(self._parts[0])
        x = torch.stack([self._parts[i // size][i % size] for i in indices])
        segments = torch.stack([self._segments[i // size][i % size] for i in indices])
        return Batch(x.to(self.device, torch.float32), segments.to(self.device))

    def through(self, layer: Callable[[Batch], Tensor]) -> Activations:
        """What a layer makes of them."""
        dtype = self._parts[0].dtype
        with torch.no_grad():
            parts = [layer(batch).to("cpu", dtype) for batch in self]
        return Activations(parts, self._segments, self.device)


def _kept_dtype(num_values: int) -> torch.dtype:
    return torch.float32 if 4 * num_values <= LARGE_BYTES else torch.bfloat16
