"""One quantization: a checkpoint in, another out, a report. Knows which method is which."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from trimtab.checkpoints.base import Checkpoint, StoredTensor
from trimtab.compression.settings import MATRICES, Grid, QuantizeSettings
from trimtab.errors import ConfigError
from trimtab.numerics.stored import GroupedMatrix, GroupFormat

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from trimtab.checkpoints.writing import Container
    from trimtab.compression.calibration import CalibrationRows
    from trimtab.compression.layer_task import QuantizationMethod
    from trimtab.compression.report import Report

Progress = Callable[[str], None]


def quantize_weights(
    checkpoint: Checkpoint,
    rows: CalibrationRows | None,
    settings: QuantizeSettings,
    sink: Callable[[str, GroupedMatrix | StoredTensor], None],
    progress: Progress = lambda line: None,
) -> Report:
    """Every matrix of the layers, and embedding and head where `settings` asks for them, quantized
    and handed to `sink` with its canonical name; so is every norm or bias that took up a scaling.
    What `sink` does not get is unchanged.

    Raises ConfigError for settings that do not fit the model, for missing calibration, and where
    torch is not installed.
    """
    settings.check_model(checkpoint.spec)
    if rows is None and settings.needs_calibration:
        raise ConfigError(f"{settings.method} needs calibration text: use --calibration FILE")
    check_device(settings.device)
    from trimtab.compression.streaming import quantize_layers

    grids = uniform_grids(checkpoint, settings)
    sensitivity: dict[str, float] = {}
    if settings.bits_per_weight is not None and rows is not None:
        from trimtab.compression.sensitivity import mixed_grids

        grids, sensitivity = mixed_grids(
            checkpoint, rows, grids, settings.bits_per_weight, settings.device, progress
        )
    method = _method(settings)
    report = quantize_layers(checkpoint, rows, settings, method, grids, sink, progress)
    report.sensitivity = sensitivity
    return report


def quantize_checkpoint(
    source: Checkpoint,
    out: Path,
    settings: QuantizeSettings,
    progress: Progress = lambda line: None,
    *,
    container: Container = "compressed-tensors",
    calibration: Path | None = None,
) -> Report:
    """Writes `source`, quantized, to `out` in a container; scales are of the type that it stores.
    `calibration` is a text file or JSON lines (see `calibration.read_documents`).

    Raises CheckpointError if it cannot be written so, UserError for calibration that cannot be
    read, and what `quantize_weights` raises.
    """
    from trimtab.checkpoints.writing import open_writer, scale_type_of

    check_fits(container, settings)
    settings = replace(settings, scale_type=scale_type_of(source, container))
    settings.check_model(source.spec)
    check_device(settings.device)
    rows = None
    if calibration is not None:
        progress("reading the calibration text")
        rows = read_rows(source, calibration, settings)
    bits = settings.activation_bits
    with open_writer(source, out, container, activation_bits=bits) as writer:
        report = quantize_weights(source, rows, settings, writer.add, progress)
        progress("writing")
        written = writer.finish()
    report.files = [str(file) for file in written.files]
    report.total_bytes = written.total_bytes
    report.notes += written.notes
    if _is_quantized(source):
        report.notes.append("the model was quantized already: its errors stay, and new ones come")
    return report


def _is_quantized(source: Checkpoint) -> bool:
    return any(isinstance(source.format(name), GroupFormat) for name in source.names())


def importance_of(
    source: Checkpoint, calibration: Path, settings: QuantizeSettings, progress: Progress
) -> dict[str, npt.NDArray[np.float32]]:
    """Of each matrix, the mean square of each input column over the calibration text: the
    importance that `write_gguf` takes. Raises as `quantize_checkpoint` does."""
    check_device(settings.device)
    from trimtab.compression.importance import column_importance

    progress("reading the calibration text")
    rows = read_rows(source, calibration, settings)
    return column_importance(source, rows, settings.device, progress)


def read_rows(source: Checkpoint, path: Path, settings: QuantizeSettings) -> CalibrationRows:
    """The calibration text as tokens of the model."""
    from trimtab.compression.calibration import calibration_rows, read_documents
    from trimtab.tokenization import load_tokenizer

    if settings.sequence_length > source.spec.max_context:
        raise ConfigError(
            f"sequence length {settings.sequence_length} is beyond the model's context of "
            f"{source.spec.max_context}"
        )
    tokenizer = load_tokenizer(source.path)
    opening = tokenizer.encode("")[:1]
    documents = read_documents(path, tokenizer)
    length, count = settings.sequence_length, settings.num_samples
    return calibration_rows(documents, count, length, opening, settings.seed)


def uniform_grids(checkpoint: Checkpoint, settings: QuantizeSettings) -> dict[str, Grid]:
    """One grid for all matrices, by canonical name."""
    names = [
        f"layers.{layer}.{name}" for layer in range(checkpoint.spec.num_layers) for name in MATRICES
    ]
    if settings.embedding or (settings.head and checkpoint.spec.tied_embeddings):
        names.append("embed")
    if settings.head and not checkpoint.spec.tied_embeddings:
        names.append("lm_head")
    return dict.fromkeys(names, settings.grid)


def check_device(device: str) -> None:
    """Raises ConfigError without torch, or without this device."""
    try:
        import torch
    except ImportError:
        raise ConfigError(
            "quantization needs PyTorch, which is not installed: pip install torch"
        ) from None
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"device {device!r} cannot be used: {reason}") from None


def check_container(name: str) -> Container:
    """Raises ConfigError for a name that is none."""
    from trimtab.checkpoints.writing import Container

    for container in get_args(Container):
        if name == container:
            return container  # type: ignore[no-any-return]
    raise ConfigError(f"format {name!r}: use one of {', '.join(get_args(Container))}")


def check_fits(container: Container, settings: QuantizeSettings) -> None:
    """Raises ConfigError, before anything is computed, for what a container can never hold."""
    mixed = settings.bits_per_weight is not None
    if container == "gguf":
        right_bits = settings.bits in (4, 8) and not mixed
        if not right_bits or settings.group_size != 32 or not settings.resolved_symmetric:
            raise ConfigError(
                "gguf holds 4 or 8 bits in symmetric groups of 32: use --group-size 32 --symmetric "
                "and --bits 4 or 8"
            )
    if container == "awq" and (settings.bits != 4 or mixed):
        raise ConfigError("awq files hold 4 bits only: use --bits 4, or another --format")
    if container == "safetensors":
        raise ConfigError("plain safetensors hold floats: use another format")


def _method(settings: QuantizeSettings) -> QuantizationMethod:
    if settings.method == "rtn":
        from trimtab.compression.rtn import RoundToNearest

        return RoundToNearest()
    if settings.method == "awq":
        from trimtab.compression.awq import Awq

        return Awq()
    if settings.method == "smoothquant":
        from trimtab.compression.smoothquant import SmoothQuant

        return SmoothQuant()
    if settings.method == "autoround":
        from trimtab.compression.autoround import AutoRound

        return AutoRound()
    from trimtab.compression.gptq import Gptq

    return Gptq()
