"""Which matrices need their bits: measured, in one walk over the model.

A unit is what servers run as one matrix (q, k, v; gate, up) or a single one. For each, the KL
divergence of the model's output is measured with only this unit rounded to the fewest bits: its
stream branches off from the original's at its layer and goes with it through the layers that
follow. With more bits the divergence is taken to fall as the error of the layer's output does,
which is measured for each number of bits: both are quadratic in what rounding changes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from trimtab.checkpoints.base import Checkpoint
from trimtab.compression.activations import LARGE_BYTES, Activations
from trimtab.compression.allocation import Choice, allocate
from trimtab.compression.calibration import CalibrationRows
from trimtab.compression.grids import round_matrix
from trimtab.compression.layer_task import STAGES
from trimtab.compression.settings import Grid
from trimtab.compression.streaming import divergence, relative_error
from trimtab.executors.torch_model import TorchDecoder, layer_weights, load

BITS = (3, 4, 8)
TOKENS = 4096  # of the calibration that are enough for it
Progress = Callable[[str], None]


@dataclass
class Unit:
    names: tuple[str, ...]  # canonical
    grid: Grid  # but for its bits
    num_weights: int
    columns: int
    errors: dict[int, float]  # of the layer's output (of the weights, of embedding and head)
    kl: float = 0.0  # with the fewest bits

    def choices(self) -> list[Choice]:
        most = self.errors[BITS[0]]
        return [
            Choice(
                bits,
                self.num_weights * replace(self.grid, bits=bits).bits_per_weight(self.columns),
                self.kl * (self.errors[bits] / most if most > 0 else 0.0),
            )
            for bits in BITS
        ]


def mixed_grids(
    checkpoint: Checkpoint,
    rows: CalibrationRows,
    grids: Mapping[str, Grid],
    budget: float,
    device: str,
    progress: Progress,
) -> tuple[dict[str, Grid], dict[str, float]]:
    """The bits of each matrix of `grids`, on average at most `budget` a weight with scales and
    zeros, and the divergence (nats a token) that each unit causes alone with the fewest, by its
    first name."""
    units = _Walk(checkpoint, rows, grids, device).measure(progress)
    choices = {unit.names[0]: unit.choices() for unit in units}
    chosen = allocate(choices, budget * sum(unit.num_weights for unit in units))
    found = {
        name: replace(grids[name], bits=chosen[unit.names[0]].bits)
        for unit in units
        for name in unit.names
    }
    return found, {unit.names[0]: unit.kl for unit in units}


class _Walk:
    def __init__(
        self, checkpoint: Checkpoint, rows: CalibrationRows, grids: Mapping[str, Grid], device: str
    ) -> None:
        self.checkpoint, self.grids = checkpoint, grids
        self.decoder = TorchDecoder(checkpoint.spec, device)
        count = max(1, TOKENS // rows.token_ids.shape[1])
        self.rows = CalibrationRows(rows.token_ids[:count], rows.segments[:count])
        branches = len(STAGES) * checkpoint.spec.num_layers + 2
        values = self.rows.num_tokens * checkpoint.spec.hidden_size * branches
        self.dtype = torch.float32 if 4 * values <= LARGE_BYTES else torch.bfloat16
        self.units: list[Unit] = []
        self.branches: list[tuple[Unit, Activations]] = []

    def measure(self, progress: Progress) -> list[Unit]:
        embedding = load(self.checkpoint, "embed", self.decoder.device)
        stream = self._embedded(embedding)
        if "embed" in self.grids:
            unit, rounded = self._end_unit("embed", embedding)
            self.branches.append((unit, self._embedded(rounded)))
        for index in range(self.checkpoint.spec.num_layers):
            progress(f"sensitivity of layer {index + 1} of {self.checkpoint.spec.num_layers}")
            stream = self._layer(index, stream)
            self.checkpoint.release()
        self._head(stream)
        return self.units

    def _embedded(self, embedding: Tensor) -> Activations:
        embed = partial(self.decoder.embed, embedding)
        return Activations.of_tokens(self.rows, embed, self.decoder.device, self.dtype)

    def _layer(self, index: int, stream: Activations) -> Activations:
        weights = layer_weights(self.checkpoint, index, self.decoder.device)

        def through(given: Activations, changed: Mapping[str, Tensor]) -> Activations:
            tensors = {**weights, **changed}
            return given.through(
                lambda batch: self.decoder.layer(index, tensors, batch.x, batch.segments)
            )

        after = through(stream, {})
        self.branches = [(unit, through(branch, {})) for unit, branch in self.branches]
        for stage in STAGES:
            names = tuple(f"layers.{index}.{name}" for name in stage)
            size = sum(weights[name].numel() for name in stage)
            unit = Unit(names, self.grids[names[0]], size, weights[stage[0]].shape[1], {})
            for bits in reversed(BITS):
                grid = replace(unit.grid, bits=bits)
                rounded = {name: _rounded(weights[name], grid) for name in stage}
                branch = through(stream, rounded)
                unit.errors[bits] = relative_error(branch, after)
            self.units.append(unit)
            self.branches.append((unit, branch))
        return after

    def _end_unit(self, name: str, matrix: Tensor) -> tuple[Unit, Tensor]:
        """Embedding or head, and what it is with the fewest bits."""
        unit = Unit((name,), self.grids[name], matrix.numel(), matrix.shape[1], {})
        for bits in reversed(BITS):
            rounded = _rounded(matrix, replace(unit.grid, bits=bits))
            unit.errors[bits] = float((rounded - matrix).square().sum())
        self.units.append(unit)
        return unit, rounded

    def _head(self, stream: Activations) -> None:
        name = "embed" if self.checkpoint.spec.tied_embeddings else "lm_head"
        head = load(self.checkpoint, name, self.decoder.device)
        final_norm = load(self.checkpoint, "final_norm", self.decoder.device)
        logits = partial(self.decoder.logits, final_norm)
        plain = partial(logits, head)
        if name == "lm_head" and name in self.grids:
            unit, rounded = self._end_unit(name, head)
            unit.kl = divergence(stream, stream, partial(logits, rounded), plain)
        for unit, branch in self.branches:
            of_branch = plain
            if unit.names == (name,):  # embedding and head are one
                of_branch = partial(logits, _rounded(head, replace(unit.grid, bits=BITS[0])))
            unit.kl = divergence(branch, stream, of_branch, plain)


def _rounded(matrix: Tensor, grid: Grid) -> Tensor:
    found = round_matrix(matrix, grid, search=True)
    return torch.from_numpy(found.to_float32()).to(matrix.device)
