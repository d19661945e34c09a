"""The result of a step that may still run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trimtab.executors.base import StepResult
from trimtab.executors.gpu.ops import SampleResult


@dataclass(slots=True, eq=False)
class StepOutputs:
    """What a step leaves on the device. Sampled in pieces of consecutive logit rows."""

    sampled: list[SampleResult]
    top_width: int
    wants_logprobs: bool
    logits: list[Tensor] | None  # [R, V] in the same pieces
    hidden: Tensor | None
    features: Tensor | None


class DevicePending:
    """Implements `trimtab.executors.base.Pending`. Copies to host memory are queued when it is
    made; `result` waits for them."""

    def __init__(self, outputs: StepOutputs, device: torch.device) -> None:
        self._outputs = outputs
        sampled = outputs.sampled
        self._tokens = _to_host([one.tokens for one in sampled])
        self._logprobs = self._top_ids = self._top_logprobs = None
        if outputs.wants_logprobs:
            self._logprobs = _to_host([one.logprobs for one in sampled])
        if outputs.top_width:
            self._top_ids = _to_host([one.top_ids for one in sampled])
            self._top_logprobs = _to_host([one.top_logprobs for one in sampled])
        targets = [one.target_logprobs for one in sampled if one.target_logprobs is not None]
        self._targets = _to_host(targets) if targets else None
        self._logits = None if outputs.logits is None else _to_host(outputs.logits)
        self._hidden = None if outputs.hidden is None else _to_host([outputs.hidden])
        self._features = None if outputs.features is None else _to_host([outputs.features])
        self._done: torch.cuda.Event | None = None
        if device.type == "cuda":
            self._done = torch.cuda.Event()
            self._done.record()

    def result(self) -> StepResult:
        """RuntimeError if the device failed."""
        if self._done is not None:
            self._done.synchronize()
        tokens = _array(self._tokens)
        rows, width = len(tokens), self._outputs.top_width
        return StepResult(
            tokens=tokens,
            logprobs=_array(self._logprobs, np.zeros(rows, np.float32)),
            top_ids=_array(self._top_ids, np.full((rows, width), -1, np.int32)),
            top_logprobs=_array(self._top_logprobs, np.zeros((rows, width), np.float32)),
            target_logprobs=None if self._targets is None else _array(self._targets),
            logits=None if self._logits is None else _array(self._logits),
            hidden=None if self._hidden is None else _array(self._hidden),
            features=None if self._features is None else _array(self._features),
        )


def _to_host(pieces: Sequence[Tensor]) -> list[Tensor]:
    """Copies, of what is no float32 or int32 in float32; pinned ones, not yet there, of a GPU's."""
    copies = []
    for piece in pieces:
        found = piece if piece.dtype == torch.int32 else piece.float()
        pinned = found.device.type == "cuda"
        host = torch.empty(found.shape, dtype=found.dtype, pin_memory=pinned)
        copies.append(host.copy_(found, non_blocking=True))
    return copies


def _array(
    pieces: Sequence[Tensor] | None, otherwise: npt.NDArray[Any] | None = None
) -> npt.NDArray[Any]:
    if not pieces:
        return np.zeros(0, np.int32) if otherwise is None else otherwise
    arrays = [piece.numpy() for piece in pieces]
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
