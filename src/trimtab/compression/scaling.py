"""How strong a scaling between a vector and the matrices that read it should be: by trying."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trimtab.compression.folding import READERS, FoldedLayer
from trimtab.compression.gptq import Hessian
from trimtab.compression.layer_task import LayerTask, capture, round_activations
from trimtab.executors.torch_model import Linear, plain_linear

SEARCH_TOKENS = 4096  # on which scalings of q, k, v and gate, up are compared
FIRST_READERS = tuple(names[0] for names in READERS.values())
# (scale of each input column, the rounded matrices that read it) -> squared error
OutputError = Callable[[Tensor, dict[str, Tensor]], float]
Rounding = Callable[[str, Tensor], Tensor]  # (matrix, weights) -> what they are rounded to


@dataclass
class InputStatistics:
    """Of the inputs of the matrices that read one vector, over the calibration."""

    hessian: Hessian
    magnitude: Tensor  # [cols] mean |x|
    largest: Tensor  # [cols] max |x|


def input_statistics(task: LayerTask) -> dict[str, InputStatistics]:
    """By source of READERS, of the float layer on its inputs."""
    sources = {names[0]: source for source, names in READERS.items()}
    found: dict[str, InputStatistics] = {}

    def visit(name: str, x: Tensor) -> None:
        cols = x.shape[1]
        if sources[name] not in found:
            zeros = torch.zeros(cols, device=x.device)
            found[sources[name]] = InputStatistics(Hessian(cols, x.device), zeros, zeros.clone())
        one, size = found[sources[name]], x.abs()
        before = one.hessian.count
        one.hessian.add(name, x)
        one.magnitude = (one.magnitude * before + size.sum(0)) / one.hessian.count
        one.largest = torch.maximum(one.largest, size.amax(0))

    capture(task, task.weights, visit, FIRST_READERS)
    return found


class ModuleError:
    """The squared error of what attention or the MLP adds, when only the matrices that read its
    norm are rounded, on the first batches of the calibration."""

    def __init__(self, task: LayerTask, source: str, round_inputs: bool) -> None:
        self._task, self._source, self._round_inputs = task, source, round_inputs
        inputs = task.calibration()
        self._batches: list[tuple[Tensor, Tensor, Tensor]] = []  # input, segments, output
        count = 0
        with torch.no_grad():
            for batch in inputs:
                h = task.decoder.norm(batch.x, task.weights[source])
                plain = plain_linear(task.weights)
                self._batches.append((h, batch.segments, self._module(h, batch.segments, plain)))
                count += h.shape[0] * h.shape[1]
                if count >= SEARCH_TOKENS:
                    break

    def __call__(self, scales: Tensor, rounded: dict[str, Tensor]) -> float:
        """With inputs divided by `scales`, and these matrices."""
        plain = plain_linear({**self._task.weights, **rounded})

        def apply(name: str, x: Tensor) -> Tensor:
            if name not in rounded:
                return plain(name, x)
            return plain(name, round_activations(x) if self._round_inputs else x)

        with torch.no_grad():
            return sum(
                float((self._module(h / scales, segments, apply) - expected).square().sum())
                for h, segments, expected in self._batches
            )

    def _module(self, h: Tensor, segments: Tensor, apply: Linear) -> Tensor:
        decoder, task = self._task.decoder, self._task
        if self._source == "attn_norm":
            return decoder.attention(task.index, task.weights, h, segments, apply)
        return decoder.mlp(h, apply)


def linear_error(hessian: Tensor, weights: Tensor) -> OutputError:
    """The squared error of the output of one matrix."""

    def error(scales: Tensor, rounded: dict[str, Tensor]) -> float:
        (matrix,) = rounded.values()
        off = matrix / scales - weights
        return float(((off @ hessian) * off).sum())

    return error


def best_scaling(
    layer: FoldedLayer,
    source: str,
    candidates: Sequence[Tensor],
    rounding: Rounding,
    error: OutputError,
) -> Tensor | None:
    """The candidate with the least error, one scale for each output of the source; None if no
    scaling is as good."""
    best, least = None, error(torch.ones(()), _rounded(layer, source, None, rounding))
    for wished in candidates:
        scales, _ = layer.exact(source, wished)
        found = error(layer.spread(source, scales), _rounded(layer, source, scales, rounding))
        if found < least:
            best, least = wished, found
    return best


def _rounded(
    layer: FoldedLayer, source: str, scales: Tensor | None, rounding: Rounding
) -> dict[str, Tensor]:
    if scales is None:
        matrices = {name: layer.weights[name] for name in READERS[source]}
    else:
        matrices = layer.scaled(source, scales)
    return {name: rounding(name, matrix) for name, matrix in matrices.items()}
