"""Quantizing a model: better than rounding, deterministic, one layer at a time, whole."""

from __future__ import annotations

import gc
import sys
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_models
import torch
from small_models import kl, quantized, rows

from trimtab.checkpoints.base import Checkpoint
from trimtab.compression import streaming
from trimtab.compression.settings import MATRICES
from trimtab.errors import ConfigError
from trimtab.numerics.stored import GroupedMatrix

CALIBRATED: list[dict[str, Any]] = [
    {"method": "gptq", "bits": 4},
    {"method": "gptq", "bits": 3, "symmetric": False},
    {"method": "gptq", "bits": 3, "group_size": 0},
    {"method": "awq", "bits": 4},
    {"method": "awq", "bits": 3, "symmetric": True},
    {"method": "autoround", "bits": 4, "iterations": 40},
    {"method": "autoround", "bits": 3, "iterations": 20, "start": "gptq"},
    {"method": "autoround", "bits": 3, "symmetric": False, "iterations": 40},
]


@pytest.mark.parametrize("settings", CALIBRATED, ids=str)
def test_better_than_rounding_to_nearest(llama: Checkpoint, settings: dict[str, Any]) -> None:
    changes, report = quantized(llama, rows(), **settings)
    nearest, _ = quantized(llama, None, **{**settings, "method": "rtn"})
    assert report.kl is not None
    assert kl(llama, changes) == pytest.approx(report.kl, rel=1e-3)
    assert kl(llama, changes) < 0.9 * kl(llama, nearest)


@pytest.mark.parametrize("family", ["gemma3", "qwen2", "llama-biases", "phi3"])
def test_every_kind_of_layer(family: str, tmp_path: Path) -> None:
    checkpoint = small_models.build(tmp_path, family)
    changes, report = quantized(checkpoint, rows(), method="gptq")
    nearest, _ = quantized(checkpoint, None, method="rtn")
    assert set(changes) == {
        f"layers.{i}.{name}" for i in range(checkpoint.spec.num_layers) for name in MATRICES
    }
    assert report.kl is not None
    assert report.kl < kl(checkpoint, nearest)


def test_what_is_quantized_is_on_its_grid(llama: Checkpoint) -> None:
    changes, report = quantized(llama, rows(), method="gptq", bits=3, symmetric=False)
    for entry in report.matrices:
        matrix = changes[entry.name]
        assert isinstance(matrix, GroupedMatrix)
        assert matrix.zeros is not None
        assert (matrix.bits, matrix.group_size) == (3, 32)
        for integers in (matrix.values, matrix.zeros):
            assert integers.min() >= -4
            assert integers.max() <= 3
        assert len(np.unique(matrix.values)) == 8
        assert 0 < entry.weight_error < 0.2
    assert report.bits_per_weight == pytest.approx(3 + 19 / 32)
    assert report.kept == {"embed": "not asked for", "lm_head": "not asked for"}


@pytest.mark.parametrize("method", ["rtn", "gptq", "awq", "autoround"])
def test_embedding_and_head_on_request(llama: Checkpoint, tmp_path: Path, method: str) -> None:
    options: dict[str, Any] = {"method": method, "iterations": 2, "grid_points": 3, "head": True}
    changes, report = quantized(llama, rows(), **options, embedding=True)
    assert {"embed", "lm_head"} <= set(changes)
    assert report.kept == {}
    assert kl(llama, changes) == pytest.approx(report.kl or 0, rel=1e-3)
    tied = small_models.build(tmp_path, "gemma2")
    changes, report = quantized(tied, rows(), **options)
    assert "embed" in changes
    assert kl(tied, changes) == pytest.approx(report.kl or 0, rel=1e-3)


def test_the_same_seed_gives_the_same_bits(llama: Checkpoint) -> None:
    for settings in ({"method": "gptq"}, {"method": "autoround", "iterations": 4, "seed": 3}):
        first, _ = quantized(llama, rows(), **settings)
        second, _ = quantized(llama, rows(), **settings)
        assert first.keys() == second.keys()
        for name, matrix in first.items():
            other = second[name]
            assert isinstance(matrix, GroupedMatrix)
            assert isinstance(other, GroupedMatrix)
            assert (matrix.values == other.values).all()
            assert (matrix.scales == other.scales).all()


def test_one_layer_in_memory_at_a_time(llama: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """When a layer is loaded, nothing of the one before is alive."""
    alive: list[weakref.ref[torch.Tensor]] = []
    loaded = []

    def load(*arguments: Any) -> dict[str, torch.Tensor]:
        gc.collect()
        assert [ref for ref in alive if ref() is not None] == []
        weights = original(*arguments)
        alive.extend(weakref.ref(tensor) for tensor in weights.values())
        loaded.append(arguments[1])
        return weights

    original = streaming.layer_weights
    monkeypatch.setattr(streaming, "layer_weights", load)
    quantized(llama, rows(), method="gptq")
    assert loaded == list(range(llama.spec.num_layers))


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"bits": 5}, "5 bits: use one of 2, 3, 4, 8"),
        ({"group_size": 48}, "group size 48: use 32, 64 or 128"),
        ({"group_size": 64}, "does not divide the 96 input columns of down: use 32 or 0"),
        ({"method": "magic"}, "method 'magic': use one of rtn, gptq"),
        ({"method": "gptq"}, "gptq needs calibration text"),
        ({"method": "smoothquant"}, "use --bits 8 --group-size 0 --symmetric"),
        ({"bits_per_weight": 1.0}, "must be between 3.5"),
        ({"num_samples": 0}, "num_samples=0"),
        ({"damping": 2.0}, "damping=2.0"),
        ({"learning_rate": 0.0}, "learning_rate=0.0"),
        ({"method": "rtn", "device": "cuda:77"}, "device 'cuda:77' cannot be used"),
        ({"method": "rtn", "device": "abacus"}, "device 'abacus' cannot be used"),
    ],
)
def test_settings_that_cannot_work(llama: Checkpoint, settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError) as raised:
        quantized(llama, None, **settings)
    assert named in str(raised.value)
    assert "\n" not in str(raised.value)


def test_without_torch_it_says_what_to_install(
    llama: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ConfigError, match="pip install torch"):
        quantized(llama, None, method="rtn")
