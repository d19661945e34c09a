"""A SamplingBatch as a step's staged arrays, and back as device tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import numpy.typing as npt
from torch import Tensor

from trimtab.executors.base import SamplingBatch, StepBatch
from trimtab.executors.gpu.ops import DeviceSampling

ARRAYS = tuple(field.name for field in fields(SamplingBatch))
PER_ROW = tuple(name for name in ARRAYS if not name.endswith(("ids", "values", "mask")))


def sampling_arrays(batch: StepBatch) -> dict[str, npt.NDArray[Any]]:
    arrays = {f"sampling.{name}": getattr(batch.sampling, name) for name in ARRAYS}
    if batch.targets is not None:
        arrays["targets"] = batch.targets
    return arrays


def device_sampling(batch: StepBatch, views: Mapping[str, Tensor]) -> DeviceSampling:
    """Of `sampling_arrays` on the device; what the host knows is read off the batch."""
    sampling = batch.sampling
    return DeviceSampling(
        **{name: views[f"sampling.{name}"] for name in ARRAYS},
        targets=views.get("targets"),
        top_width=max(0, int(sampling.num_logprobs.max(initial=0))),
        adjusts=_adjusts(sampling),
        filters=bool(
            sampling.top_k.any() or (sampling.top_p < 1).any() or (sampling.min_p > 0).any()
        ),
        samples=bool(sampling.temperature.any()),
        wants_logprobs=bool((sampling.num_logprobs >= 0).any()),
    )


def _adjusts(sampling: SamplingBatch) -> bool:
    lists = (sampling.bias_ids, sampling.banned_ids)
    return bool(
        any(map(len, lists))
        or (sampling.mask_rows >= 0).any()
        or (sampling.repetition_penalty != 1).any()
        or sampling.presence_penalty.any()
        or sampling.frequency_penalty.any()
    )


def sampling_rows(batch: DeviceSampling, first: int, last: int) -> DeviceSampling:
    """Rows [first, last); ragged fields keep their ids, and starts that lead into them."""
    cut: dict[str, Any] = {}
    for name in PER_ROW:
        end = last + 1 if name.endswith("_starts") else last
        cut[name] = getattr(batch, name)[first:end]
    targets = None if batch.targets is None else batch.targets[first:last]
    return replace(batch, targets=targets, **cut)
