"""A spec, read as its docstring says, computes what transformers computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import spec_reference
import tiny_models
import torch

from trimtab.checkpoints import open_checkpoint

NUM_TOKENS = 120  # beyond the windows, and beyond the original context of longrope


@pytest.mark.parametrize("name", tiny_models.FAMILIES)
def test_logits_equal_transformers(name: str, tmp_path: Path) -> None:
    model = tiny_models.build(name).eval()
    checkpoint = open_checkpoint(tiny_models.save(model, tmp_path))
    ids = np.random.default_rng(0).integers(0, 101, NUM_TOKENS).tolist()
    model = model.double()
    with torch.no_grad():
        expected = model(torch.tensor([ids]), use_cache=False).logits[0].numpy()
    ours = spec_reference.logits(checkpoint, ids)
    # transformers keeps norms and angles in float32, whatever the model's dtype
    np.testing.assert_allclose(ours, expected, atol=2e-4 * expected.std(), rtol=0)


def test_a_longrope_model_that_serves_short_contexts(tmp_path: Path) -> None:
    model = tiny_models.build("phi3-longrope").eval()
    tiny_models.save(model, tmp_path)
    ids = list(range(2, 62))
    with torch.no_grad():
        expected = model.double()(torch.tensor([ids])).logits[0].numpy()
    short = spec_reference.logits(open_checkpoint(tmp_path, max_context=64), ids)
    np.testing.assert_allclose(short, expected, atol=2e-4 * expected.std(), rtol=0)
    long = spec_reference.logits(open_checkpoint(tmp_path), ids)
    assert np.abs(long - expected).max() > 0.01 * expected.std()
