"""The walk over a model: each layer is loaded, quantized, run and let go."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import torch
from torch import Tensor

from trimtab.checkpoints.base import Checkpoint, StoredDtype, StoredTensor
from trimtab.compression.activations import Activations
from trimtab.compression.calibration import CalibrationRows
from trimtab.compression.grids import round_matrix
from trimtab.compression.layer_task import HeadTask, LayerTask, QuantizationMethod
from trimtab.compression.report import MatrixReport, Report
from trimtab.compression.settings import MATRICES, Grid, QuantizeSettings
from trimtab.errors import TrimtabError
from trimtab.executors.torch_model import TorchDecoder, layer_weights, load
from trimtab.numerics.stored import GroupedMatrix

Sink = Callable[[str, GroupedMatrix | StoredTensor], None]  # takes a canonical name and its tensor
Progress = Callable[[str], None]
KL_TOKENS = 4096  # at least so many, where there are, tell how far the probabilities moved
KL_ROWS = 512  # whose logits are in memory at once
DTYPES: dict[StoredDtype, torch.dtype] = {
    "f32": torch.float32,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
}


def quantize_layers(
    checkpoint: Checkpoint,
    rows: CalibrationRows | None,
    settings: QuantizeSettings,
    method: QuantizationMethod,
    grids: Mapping[str, Grid],
    sink: Sink,
    progress: Progress,
) -> Report:
    """Quantizes what `grids` names, in the order of the model, and hands each result to `sink`. One
    layer's weights are in memory at a time. `rows` may be None for methods without calibration.

    Raises CheckpointError for damaged weights, ConfigError for unusable calibration, TrimtabError
    if the model's activations are not finite.
    """
    walk = _Walk(checkpoint, rows, settings, method, grids, sink)
    for index in range(checkpoint.spec.num_layers):
        progress(f"layer {index + 1} of {checkpoint.spec.num_layers}")
        walk.layer(index)
        checkpoint.release()
    progress("output head")
    walk.head()
    return walk.report


class _Walk:
    def __init__(
        self,
        checkpoint: Checkpoint,
        rows: CalibrationRows | None,
        settings: QuantizeSettings,
        method: QuantizationMethod,
        grids: Mapping[str, Grid],
        sink: Sink,
    ) -> None:
        self.checkpoint, self.settings, self.method = checkpoint, settings, method
        self.grids, self.sink = grids, sink
        self.decoder = TorchDecoder(checkpoint.spec, settings.device)
        self.report = Report(settings.method)
        self.stream: Activations | None = None
        self.float_stream: Activations | None = None
        self._begin(rows)

    def _begin(self, rows: CalibrationRows | None) -> None:
        """The embedding, and the streams after it."""
        plain = rounded = load(self.checkpoint, "embed", self.decoder.device)
        if "embed" in self.grids:
            matrix = round_matrix(plain, self.grids["embed"], search=True)
            rounded = self._add("embed", matrix, plain)
        if rows is None:
            return
        self.report.calibration_tokens = rows.num_tokens

        def stream(embedding: Tensor) -> Activations:
            embed = partial(self.decoder.embed, embedding)
            return Activations.of_tokens(rows, embed, self.decoder.device)

        self.stream = stream(rounded)
        self.float_stream = self.stream if rounded is plain else stream(plain)

    def layer(self, index: int) -> None:
        prefix = f"layers.{index}."
        weights = layer_weights(self.checkpoint, index, self.decoder.device)
        task = LayerTask(
            decoder=self.decoder,
            index=index,
            weights=weights,
            grids={name: self.grids[prefix + name] for name in MATRICES},
            inputs=self.stream,
            float_inputs=self.float_stream,
            settings=self.settings,
            vector_dtypes={
                name: DTYPES[self.checkpoint.tensor(prefix + name).dtype]
                for name, tensor in weights.items()
                if tensor.ndim == 1
            },
        )
        result = self.method.quantize(task)
        quantized = {**weights, **result.vectors}
        for name, matrix in result.matrices.items():
            target = result.scaled.get(name, weights[name])
            quantized[name] = self._add(prefix + name, matrix, target)
        for name, tensor in result.vectors.items():
            self.sink(prefix + name, self._stored(prefix + name, tensor))
            self.report.changed.append(prefix + name)
        self.report.notes += result.notes
        if self.stream is None or self.float_stream is None:
            return
        self.float_stream = self.float_stream.through(lambda batch: task.forward(batch, weights))
        apply = result.linear(quantized)
        self.stream = self.stream.through(lambda batch: task.forward(batch, quantized, apply))
        error = relative_error(self.stream, self.float_stream)
        if not math.isfinite(error):
            raise TrimtabError(f"the activations of layer {index} are not finite")
        self.report.layer_errors.append(error)

    def head(self) -> None:
        """The output head, and how far its probabilities have moved."""
        name = "embed" if self.checkpoint.spec.tied_embeddings else "lm_head"
        for kept in {"embed", name} - self.grids.keys():
            self.report.kept[kept] = "not asked for"
        if self.stream is None and name not in self.grids:
            return
        final_norm = load(self.checkpoint, "final_norm", self.decoder.device)
        plain = rounded = load(self.checkpoint, name, self.decoder.device)
        if name in self.grids and name == "embed":
            rounded = self._rounded_embedding(plain)
        elif name in self.grids:
            task = HeadTask(
                self.decoder, plain, final_norm, self.grids[name], self.stream, self.settings
            )
            rounded = self._add(name, self.method.quantize_head(task), plain)
        if self.stream is not None and self.float_stream is not None:
            logits = partial(self.decoder.logits, final_norm)
            self.report.kl = divergence(
                self.stream, self.float_stream, partial(logits, rounded), partial(logits, plain)
            )

    def _rounded_embedding(self, embedding: Tensor) -> Tensor:
        matrix = round_matrix(embedding, self.grids["embed"], search=True)
        return torch.from_numpy(matrix.to_float32()).to(embedding.device)

    def _add(self, name: str, matrix: GroupedMatrix, target: Tensor) -> Tensor:
        """Hands it on; gives what it stands for, dequantized."""
        found = torch.from_numpy(matrix.to_float32()).to(target.device)
        error = float((found - target).square().sum() / target.square().sum().clamp(min=1e-30))
        grid = self.grids[name]
        bits = grid.bits_per_weight(matrix.shape[1])
        self.report.matrices.append(MatrixReport(name, matrix.shape, str(grid), bits, error))
        self.sink(name, matrix)
        return found

    def _stored(self, name: str, tensor: Tensor) -> StoredTensor:
        """In the dtype in which the checkpoint has it."""
        dtype = self.checkpoint.tensor(name).dtype
        held = tensor.detach().to("cpu", DTYPES[dtype]).contiguous()
        if dtype == "bf16":
            return StoredTensor(held.view(torch.int16).numpy().view(np.uint16), dtype)
        return StoredTensor(held.numpy(), dtype)


def relative_error(found: Activations, expected: Activations) -> float:
    """|found - expected|^2 / |expected|^2 over all tokens."""
    total = error = 0.0
    for index in range(len(found)):
        target = expected.batch(index).x
        error += float((found.batch(index).x - target).square().sum())
        total += float(target.square().sum())
    return error / max(total, 1e-30)


def divergence(
    found: Activations,
    expected: Activations,
    logits: Callable[[Tensor], Tensor],
    expected_logits: Callable[[Tensor], Tensor],
) -> float:
    """Mean KL divergence in nats of the next token's distribution from the expected one, over the
    first `KL_TOKENS` tokens of two streams before the final norm."""
    total, count = 0.0, 0
    with torch.no_grad():
        for index in range(len(found)):
            q_stream, p_stream = (part.batch(index).x.flatten(0, 1) for part in (found, expected))
            for q, p in zip(
                torch.split(q_stream, KL_ROWS), torch.split(p_stream, KL_ROWS), strict=True
            ):
                log_q = torch.log_softmax(logits(q), -1)
                log_p = torch.log_softmax(expected_logits(p), -1)
                total += float((log_p.exp() * (log_p - log_q)).sum())
                count += len(p)
            if count >= KL_TOKENS:
                break
    return total / max(1, count)
