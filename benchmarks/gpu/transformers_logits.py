"""The executor's logits against transformers': an oracle that nobody here wrote."""

from __future__ import annotations

from typing import Any

import torch

from gpu.batches import sequence_logits
from gpu.checkpoints import RandomCheckpoint
from gpu.context import Settings
from gpu.executors import open_executor
from gpu.model_checks import agreement, exact_products, token_ids
from gpu.shapes import spec_of
from gpu.transformers_models import about, make_model
from trimtab.models.registry import FAMILIES


def compare_with_transformers(settings: Settings, shape: str, most: float) -> dict[str, Any]:
    """The small model of a shape, in float32, with the same weights in both."""
    spec = spec_of(shape, True)
    checkpoint = RandomCheckpoint(spec, "bf16", settings.device, settings.seed)
    model = make_model(shape, True, settings.device, torch.float32, "eager")
    state = model.state_dict()
    for name, source in FAMILIES[spec.architecture].tensors(spec).items():
        stored = torch.from_numpy(checkpoint.tensor(name).to_float32())
        state[source.name].copy_(stored)
    ids = token_ids(settings, spec)
    with torch.inference_mode(), exact_products():
        tokens = torch.from_numpy(ids)[None].to(settings.device)
        expected = model(tokens).logits[0].float().cpu().numpy()
    executor = open_executor(settings, checkpoint, num_blocks=16, weights="f32", kv_cache="f32")
    try:
        ours = sequence_logits(executor, ids.tolist(), [len(ids) - 3, 1, 2])
    finally:
        executor.close()
    return {**agreement(ours, expected, most), "oracle": about()}
