"""The mean squares of activations, against the model run as a whole by transformers."""

from __future__ import annotations

import numpy as np
import torch
from small_models import rows
from transformers import AutoModelForCausalLM

from trimtab.checkpoints.base import Checkpoint
from trimtab.compression.importance import column_importance


def test_equal_to_what_transformers_feeds_each_matrix(llama: Checkpoint) -> None:
    given = rows()
    found = column_importance(llama, given)
    model = AutoModelForCausalLM.from_pretrained(llama.path, dtype=torch.float32)
    squares: dict[str, list[torch.Tensor]] = {}

    def hook(name: str) -> object:
        def keep(_: object, inputs: tuple[torch.Tensor, ...]) -> None:
            squares.setdefault(name, []).append(inputs[0].reshape(-1, inputs[0].shape[-1]) ** 2)

        return keep

    for i, layer in enumerate(model.model.layers):
        for short in "qkvo":
            matrix = getattr(layer.self_attn, f"{short}_proj")
            matrix.register_forward_pre_hook(hook(f"layers.{i}.{short}"))
        for short in ("gate", "up", "down"):
            matrix = getattr(layer.mlp, f"{short}_proj")
            matrix.register_forward_pre_hook(hook(f"layers.{i}.{short}"))
    with torch.no_grad():
        for tokens, segments in zip(given.token_ids, given.segments, strict=True):
            for segment in np.unique(segments):  # texts that share a row do not see each other
                model(torch.from_numpy(tokens[segments == segment])[None])
    assert set(found) == set(squares)
    for name, values in found.items():
        expected = torch.cat(squares[name]).double().mean(0).numpy()
        np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-7)
