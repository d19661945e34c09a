"""The torch decoder against transformers, for every family."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "checkpoints"))

import tiny_models

from trimtab.checkpoints import open_checkpoint
from trimtab.executors.torch_model import TorchDecoder, layer_weights, model_logits

CPU = torch.device("cpu")


def tokens(rows: int, length: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(rows + length)
    return torch.randint(3, tiny_models.SIZES["vocab_size"], (rows, length), generator=generator)


@pytest.mark.parametrize("family", list(tiny_models.FAMILIES))
def test_logits_are_those_of_transformers(family: str, tmp_path: Path) -> None:
    model = tiny_models.build(family).eval()
    with torch.no_grad():  # matrices by their fan-in: logits of ordinary size
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and "embed" not in name:
                parameter.mul_(parameter.shape[1] ** -0.5 / 0.3)
    # As short as LongRoPE's short factors are for: transformers chooses by the prompt's length.
    checkpoint = open_checkpoint(tiny_models.save(model, tmp_path), max_context=64)
    token_ids = tokens(2, 60)
    with torch.no_grad():
        expected = model(token_ids).logits
        found = model_logits(checkpoint, token_ids)
    assert expected.std() > 0.05
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_segments_keep_documents_apart(tmp_path: Path) -> None:
    model = tiny_models.build("mistral").eval()
    checkpoint = open_checkpoint(tiny_models.save(model, tmp_path))
    first, second = tokens(1, 20), tokens(1, 40)
    packed = torch.cat([first, second], 1)
    segments = torch.tensor([[1] * 20 + [2] * 40])
    found = model_logits(checkpoint, packed, segments)
    torch.testing.assert_close(found[:, :20], model_logits(checkpoint, first), rtol=1e-4, atol=1e-3)
    # Rotations see only differences of positions, so a document may stand anywhere.
    torch.testing.assert_close(
        found[:, 20:], model_logits(checkpoint, second), rtol=1e-4, atol=1e-3
    )


def test_gradients_are_those_of_finite_differences(tmp_path: Path) -> None:
    model = tiny_models.build("gemma2").eval()
    checkpoint = open_checkpoint(tiny_models.save(model, tmp_path))
    decoder = TorchDecoder(checkpoint.spec)
    weights = {k: w.double() for k, w in layer_weights(checkpoint, 1, CPU).items()}
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 9, 48, generator=generator, dtype=torch.float64)
    weights["o"].requires_grad_(True)
    decoder.layer(1, weights, x).square().mean().backward()
    direction = torch.randn(weights["o"].shape, generator=generator, dtype=torch.float64)
    losses = []
    for step in (1e-5, -1e-5):
        moved = {**weights, "o": weights["o"].detach() + step * direction}
        losses.append(float(decoder.layer(1, moved, x).square().mean()))
    expected = (losses[0] - losses[1]) / 2e-5
    assert weights["o"].grad is not None
    np.testing.assert_allclose(float((weights["o"].grad * direction).sum()), expected, rtol=1e-5)
