"""Small random models whose activations have outliers and correlations, as those of real ones."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "checkpoints"))

import tiny_models
from overlay import Overlay

from trimtab.checkpoints import open_checkpoint
from trimtab.checkpoints.base import Checkpoint, StoredTensor
from trimtab.compression.calibration import CalibrationRows
from trimtab.compression.quantize import quantize_weights
from trimtab.compression.report import Report
from trimtab.compression.settings import QuantizeSettings
from trimtab.executors.torch_model import model_logits
from trimtab.numerics.stored import GroupedMatrix

Changes = dict[str, GroupedMatrix | StoredTensor]
SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "num_hidden_layers": 2,
}


def build(directory: Path, family: str = "llama", dtype: torch.dtype = torch.float32) -> Checkpoint:
    model = tiny_models.build(family, **SIZES)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "embed_tokens" in name:  # few directions matter most
                low = torch.randn(8, SIZES["hidden_size"], generator=generator)
                codes = torch.randn(len(parameter), 8, generator=generator)
                parameter.copy_(codes @ low + 0.3 * parameter)
            elif parameter.ndim == 2:
                parameter.mul_(parameter.shape[1] ** -0.5 / 0.3)
            elif "norm" in name:  # a few channels stand out
                spread = torch.randn(len(parameter), generator=generator)
                offset = 1.0 if family.startswith("gemma") else 0.0
                parameter.copy_(torch.exp(spread) - offset)
            else:
                parameter.mul_(0.3)
    return open_checkpoint(tiny_models.save(model.to(dtype), directory))


def rows(num_rows: int = 8, length: int = 48, seed: int = 0) -> CalibrationRows:
    rng = np.random.default_rng(seed)
    token_ids = rng.integers(0, tiny_models.SIZES["vocab_size"], (num_rows, length))
    segments = np.repeat(np.arange(length) // (length // 2), num_rows).reshape(length, num_rows).T
    return CalibrationRows(token_ids, np.ascontiguousarray(segments))


def quantized(
    checkpoint: Checkpoint, calibration: CalibrationRows | None = None, **settings: Any
) -> tuple[Changes, Report]:
    changes: Changes = {}
    chosen = QuantizeSettings(**{"group_size": 32, **settings})
    report = quantize_weights(checkpoint, calibration, chosen, changes.__setitem__)
    return changes, report


def kl(checkpoint: Checkpoint, changes: Changes) -> float:
    """Of the quantized model from the original, on the calibration rows."""
    given = rows()
    tokens, segments = torch.from_numpy(given.token_ids), torch.from_numpy(given.segments)
    with torch.no_grad():
        p = torch.log_softmax(model_logits(checkpoint, tokens, segments), -1)
        q = torch.log_softmax(model_logits(Overlay(checkpoint, changes), tokens, segments), -1)
    return float((p.exp() * (p - q)).sum(-1).mean())
