"""How much each input column of each matrix matters: the mean square of its activations.

Of an output y = w x, an error e of the weights costs the sum of e_j^2 E[x_j^2], as far as the
inputs are uncorrelated. llama.cpp calls the same numbers the importance matrix.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trimtab.checkpoints.base import Checkpoint
from trimtab.compression.activations import Activations, Batch
from trimtab.compression.calibration import CalibrationRows
from trimtab.executors.torch_model import TorchDecoder, layer_weights, load, plain_linear


def column_importance(
    checkpoint: Checkpoint,
    rows: CalibrationRows,
    device: str = "cpu",
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, npt.NDArray[np.float32]]:
    """By canonical name of each layer's matrices: [columns], over all tokens of `rows`. One
    layer's weights are in memory at a time."""
    decoder = TorchDecoder(checkpoint.spec, device)
    embedding = load(checkpoint, "embed", decoder.device)
    stream = Activations.of_tokens(rows, partial(decoder.embed, embedding), decoder.device)
    importance = {}
    for index in range(checkpoint.spec.num_layers):
        progress(f"activations of layer {index + 1} of {checkpoint.spec.num_layers}")
        stream, squares = _through_layer(decoder, index, checkpoint, stream)
        for name, (total, count) in squares.items():
            importance[f"layers.{index}.{name}"] = (total / count).float().cpu().numpy()
        checkpoint.release()
    return importance


def _through_layer(
    decoder: TorchDecoder, index: int, checkpoint: Checkpoint, stream: Activations
) -> tuple[Activations, dict[str, tuple[Tensor, int]]]:
    """The stream behind the layer; of each matrix the sum of squares, and of how many tokens."""
    weights = layer_weights(checkpoint, index, decoder.device)
    plain = plain_linear(weights)
    squares: dict[str, tuple[Tensor, int]] = {}

    def apply(name: str, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1]).double()
        total, count = squares.get(name, (torch.zeros_like(flat[0]), 0))
        squares[name] = (total + (flat * flat).sum(0), count + len(flat))
        return plain(name, x)

    def run(batch: Batch) -> Tensor:
        return decoder.layer(index, weights, batch.x, batch.segments, apply)

    return stream.through(run), squares
