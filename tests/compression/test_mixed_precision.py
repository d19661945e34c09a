"""Budgets of bits: the allocation against every possibility, the measure against the model."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import small_models
from small_models import kl, quantized, rows

from trimtab.checkpoints.base import Checkpoint
from trimtab.compression.allocation import Choice, allocate
from trimtab.compression.quantize import uniform_grids
from trimtab.compression.sensitivity import mixed_grids
from trimtab.compression.settings import Grid, QuantizeSettings
from trimtab.errors import ConfigError


@pytest.mark.parametrize("seed", range(20))
def test_allocation_is_near_the_best_there_is(seed: int) -> None:
    rng = np.random.default_rng(seed)
    units = {}
    for number in range(6):
        size, loss = rng.integers(1, 9), float(rng.exponential())
        units[str(number)] = [
            Choice(3, 3.5 * size, loss),
            Choice(4, 4.5 * size, loss / rng.uniform(2, 6)),
            Choice(8, 8.5 * size, loss / rng.uniform(100, 600)),
        ]
    least = sum(choices[0].cost for choices in units.values())
    most = sum(choices[2].cost for choices in units.values())
    for share in (0.0, 0.1, 0.3, 0.6, 1.0):
        budget = least + share * (most - least)
        found = allocate(units, budget)
        assert sum(choice.cost for choice in found.values()) <= budget
        best = min(
            sum(choice.loss for choice in combination)
            for combination in itertools.product(*units.values())
            if sum(choice.cost for choice in combination) <= budget
        )
        first = sum(choices[0].loss for choices in units.values())
        # What greed may miss is less than what one unit could save.
        largest = max(choices[0].loss for choices in units.values())
        total = sum(choice.loss for choice in found.values())
        assert best <= total <= min(first, best + largest)
    assert all(choice.bits == 8 for choice in allocate(units, most).values())


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_sensitivity_is_the_divergence_with_that_unit_alone(family: str, tmp_path: Path) -> None:
    checkpoint = small_models.build(tmp_path, family)
    settings = QuantizeSettings(method="rtn", group_size=32, head=True, embedding=True, bits=3)
    grids = uniform_grids(checkpoint, settings)
    _, found = mixed_grids(checkpoint, rows(), grids, 4.5, "cpu", lambda line: None)
    everything, _ = quantized(
        checkpoint, None, method="rtn", bits=3, search=True, head=True, embedding=True
    )
    ends = {"embed"} if checkpoint.spec.tied_embeddings else {"embed", "lm_head"}
    assert ends < found.keys()
    for first, names in {
        "layers.0.q": ("layers.0.q", "layers.0.k", "layers.0.v"),
        "layers.1.down": ("layers.1.down",),
        **{end: (end,) for end in ends},
    }.items():
        alone = {name: everything[name] for name in names}
        assert found[first] == pytest.approx(kl(checkpoint, alone), rel=0.01)


def test_a_budget_is_kept_and_spent_better_than_evenly(llama: Checkpoint) -> None:
    ends = {"method": "rtn", "search": True, "head": True, "embedding": True}
    mixed, report = quantized(llama, rows(), **ends, bits_per_weight=4.8)
    even, _ = quantized(llama, rows(), **ends, bits=4)
    assert 4.5 < report.bits_per_weight <= 4.8
    formats = {entry.name: entry.format for entry in report.matrices}
    assert len(set(formats.values())) > 1
    for layer in range(llama.spec.num_layers):  # what servers run as one matrix is stored alike
        for parts in (("q", "k", "v"), ("gate", "up")):
            assert len({formats[f"layers.{layer}.{part}"] for part in parts}) == 1
    assert kl(llama, mixed) < kl(llama, even)


def test_a_large_budget_gives_eight_bits_to_all(llama: Checkpoint) -> None:
    _, report = quantized(llama, rows(), method="gptq", bits_per_weight=12.0)
    assert {entry.format for entry in report.matrices} == {str(Grid(8, 32, True))}


def test_a_budget_needs_calibration(llama: Checkpoint) -> None:
    with pytest.raises(ConfigError, match="needs calibration"):
        quantized(llama, None, method="rtn", bits_per_weight=4.5)
