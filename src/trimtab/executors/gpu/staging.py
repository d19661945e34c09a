"""The arrays of a step to the device in one copy.

    host     | token_ids .. | positions .. | ... |     packed by numpy, pinned where that matters
    device   | token_ids .. | positions .. | ... |     one copy; views at the same offsets

Two host buffers take turns: one is packed while the other may still be read. There is one device
buffer, at an address that never changes: the next copy is queued behind the step that reads it. So
arrays of the same lengths always lie at the same addresses.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

ALIGNMENT = 16  # bytes
HOST_BUFFERS = 2

# What torch has no type for is held as the bits of a signed integer.
_TORCH: dict[str, torch.dtype] = {
    "int32": torch.int32,
    "uint32": torch.int32,
    "int64": torch.int64,
    "uint64": torch.int64,
    "float32": torch.float32,
}
Views = dict[str, Tensor]


class Staging:
    def __init__(self, num_bytes: int, device: torch.device) -> None:
        """Steps of more bytes than these get memory of their own."""
        self.device = device
        pinned = device.type == "cuda"
        self._hosts = [
            torch.empty(num_bytes, dtype=torch.uint8, pin_memory=pinned)
            for _ in range(HOST_BUFFERS)
        ]
        self._copied: list[torch.cuda.Event | None] = [None] * HOST_BUFFERS
        self._device = torch.empty(num_bytes, dtype=torch.uint8, device=device)
        self._turn = 0

    def upload(self, arrays: Mapping[str, npt.NDArray[Any]]) -> tuple[Views, bool]:
        """Views on the device, valid until the step after next is uploaded; and whether they lie in
        the buffer, at the offsets that their lengths say."""
        offsets, total = _offsets(arrays)
        fits = total <= len(self._device)
        if fits:
            host, device = self._next_host(), self._device[:total]
        else:
            host = torch.empty(total, dtype=torch.uint8)
            device = torch.empty(total, dtype=torch.uint8, device=self.device)
        packed = host.numpy()
        for name, array in arrays.items():
            first = offsets[name]
            packed[first : first + array.nbytes].view(array.dtype)[:] = array.ravel()
        device.copy_(host[:total], non_blocking=fits)
        if fits and self.device.type == "cuda":
            event = torch.cuda.Event()
            event.record()
            self._copied[self._turn] = event
        views: Views = {
            name: device[offsets[name] : offsets[name] + array.nbytes]
            .view(_TORCH[array.dtype.name])
            .view(array.shape)
            for name, array in arrays.items()
        }
        return views, fits

    def beyond(self, view: Tensor) -> Tensor:
        """All of the buffer from where a view in it starts, as its type: always of one length."""
        return self._device.view(view.dtype)[view.storage_offset() :]

    def _next_host(self) -> Tensor:
        self._turn = (self._turn + 1) % HOST_BUFFERS
        copied = self._copied[self._turn]
        if copied is not None:
            copied.synchronize()
        return self._hosts[self._turn]


def _offsets(arrays: Mapping[str, npt.NDArray[Any]]) -> tuple[dict[str, int], int]:
    offsets, total = {}, 0
    for name, array in arrays.items():
        offsets[name] = total
        total += -(-array.nbytes // ALIGNMENT) * ALIGNMENT
    return offsets, total
