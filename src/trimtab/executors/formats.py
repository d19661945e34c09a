"""In what formats the CPU executor holds a model: those of the checkpoint where it stores integers,
those of the configuration where it stores floats.

Integers stay the integers of the checkpoint. They are held in the fewest of 4, 5, 6 and 8 bits
that they fit in, with the scales, zero points and offsets that belong to them, in groups of 16, 32,
64 or 128 columns: a larger group of the checkpoint becomes several with the same scale. So does a
block of float8.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from trimtab.checkpoints.base import Checkpoint
from trimtab.config import ExecutorConfig
from trimtab.errors import CheckpointError
from trimtab.models.spec import ModelSpec
from trimtab.numerics.stored import SUPER_COLUMNS, Fp8Format, GroupFormat

PANEL = 16  # output columns of a micro-panel (native/kernels/kernels.h)
KERNEL_GROUPS = (128, 64, 32, 16)

HeldFormat = Literal["f32", "bf16", "int8", "int4", "int5", "int6", "fp8"]
ScaleFormat = Literal["f16", "bf16", "f32", "supers"]
OffsetFormat = Literal["none", "zero", "offset"]
EmbeddingSource = Literal["f32", "bf16", "matrix", "head", "other"]


@dataclass(frozen=True)
class KernelFormat:
    """MatrixFormat of native/kernels/kernels.h."""

    weights: HeldFormat
    group_size: int = 0
    scales: ScaleFormat = "f16"
    offsets: OffsetFormat = "none"
    centre: float = 0.0

    @property
    def label(self) -> str:
        """For people: `bf16`, `int4-g64`, `int4-g128 with zero points`."""
        group = f"-g{self.group_size}" if self.group_size else ""
        suffix = {"none": "", "zero": " with zero points", "offset": " with offsets"}
        return f"{self.weights}{group}{suffix[self.offsets]}"

    def num_bytes(self, rows: int, cols: int) -> int:
        """Of a packed [rows (outputs), cols (inputs)] matrix, padding and scales included."""
        if self.weights == "f32":
            return _round_up(rows, PANEL) * cols * 4
        if self.weights == "bf16":
            return _round_up(rows, PANEL) * _round_up(cols, 2) * 2
        if self.group_size == 0:
            return _round_up(rows, PANEL) * (_round_up(cols, 4) + 4)
        groups = -(-cols // self.group_size)
        if self.weights == "fp8":
            return _round_up(rows, PANEL) * groups * (self.group_size + 4)
        bits = int(self.weights.removeprefix("int"))
        supers = self.scales == "supers"
        header = {"f16": 2, "bf16": 2, "f32": 4, "supers": 1}[self.scales]
        if self.offsets != "none":
            header += 1 if supers else 2
        row_bytes = groups * (self.group_size * bits // 8 + header)
        if supers:
            row_bytes += -(-cols // SUPER_COLUMNS) * 4
        return _round_up(rows, 2 * PANEL) * row_bytes


@dataclass(frozen=True)
class Slot:
    """A matrix as the decoder has it: its name there, and the canonical names of its parts."""

    name: str
    parts: tuple[str, ...]
    format: KernelFormat


@dataclass(frozen=True)
class ModelFormats:
    layers: tuple[tuple[Slot, ...], ...]  # qkv (or q, k, v), o, gate_up (or gate, up), down
    head: Slot
    embedding: EmbeddingSource
    embedding_matrix: Slot | None = None  # where the source is a matrix of its own
    quantized: bool = False  # the checkpoint stores integers

    @property
    def label(self) -> str:
        """The format of most weights of the layers."""
        counts = Counter(slot.format.label for layer in self.layers for slot in layer)
        return counts.most_common(1)[0][0]


# Projections of the same input are one matrix if they are stored alike.
FUSED: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("qkv", ("q", "k", "v")),
    ("o", ("o",)),
    ("gate_up", ("gate", "up")),
    ("down", ("down",)),
)


def formats_of_config(spec: ModelSpec, config: ExecutorConfig) -> ModelFormats:
    """Of a checkpoint that stores floats."""
    layer_format = _config_format(config)
    layer = tuple(Slot(name, parts, layer_format) for name, parts in FUSED)
    head = Slot("lm_head", (_head_source(spec),), _head_format(config))
    return ModelFormats((layer,) * spec.num_layers, head, _table(config))


def choose_formats(checkpoint: Checkpoint, config: ExecutorConfig) -> ModelFormats:
    """Raises CheckpointError for integers that the kernels do not take."""
    spec = checkpoint.spec

    def stored(name: str, floats: KernelFormat, cols: int) -> tuple[KernelFormat, str]:
        """The kernel format of a matrix, and the order of its columns."""
        found = checkpoint.format(name)
        if not isinstance(found, GroupFormat | Fp8Format):
            return floats, ""
        try:
            if isinstance(found, Fp8Format):
                return fp8_format(found, cols), ""
            return kernel_format(found, cols), found.order
        except ValueError as error:
            raise CheckpointError(f"{checkpoint.path}: {name}: {error}") from None

    def layer(index: int) -> Iterable[Slot]:
        for name, parts in FUSED:
            cols = _columns(spec, name)
            names = tuple(f"layers.{index}.{part}" for part in parts)
            found = [stored(part, _config_format(config), cols) for part in names]
            if len(set(found)) == 1:
                yield Slot(name, parts, found[0][0])
            else:
                for part, (format, _) in zip(parts, found, strict=True):
                    yield Slot(part, (part,), format)

    hidden = spec.hidden_size
    source = _head_source(spec)
    head, _ = stored(source, _head_format(config), hidden)
    formats = ModelFormats(
        tuple(tuple(layer(i)) for i in range(spec.num_layers)),
        Slot("lm_head", (source,), head),
        _table(config),
        quantized=any(
            isinstance(checkpoint.format(name), GroupFormat | Fp8Format) for name in _matrices(spec)
        ),
    )
    if not isinstance(checkpoint.format("embed"), GroupFormat):
        return formats
    if spec.tied_embeddings:
        return replace(formats, embedding="head")
    own = Slot("embed", ("embed",), stored("embed", _config_format(config), hidden)[0])
    return replace(formats, embedding="matrix", embedding_matrix=own)


def stored_label(checkpoint: Checkpoint) -> str:
    """For people: the format of most matrices that it stores as integers or float8; empty if there
    are none."""
    counts: Counter[str] = Counter()
    for name in _matrices(checkpoint.spec):
        found = checkpoint.format(name)
        if isinstance(found, Fp8Format):
            counts["fp8"] += 1
        elif isinstance(found, GroupFormat):
            counts[f"int{found.bits}-g{found.group_size}"] += 1
    return counts.most_common(1)[0][0] if counts else ""


def kernel_group(group_size: int) -> int:
    """The largest group of the kernels that divides a group of a checkpoint. ValueError if none
    does."""
    for size in KERNEL_GROUPS:
        if group_size % size == 0:
            return size
    raise ValueError(f"groups of {group_size} columns: the kernels need a multiple of 16")


def kernel_format(stored: GroupFormat, cols: int) -> KernelFormat:
    """In what a stored matrix of so many columns is held. ValueError if the kernels do not take
    it."""
    held: dict[int, HeldFormat] = {5: "int5", 6: "int6", 7: "int8", 8: "int8"}
    weights = held.get(stored.bits, "int4")
    whole_row = stored.group_size >= cols
    plain = stored.offset == "none" and stored.scale_type != "super"
    if whole_row and weights == "int8" and plain:
        return KernelFormat("int8", scales="f32")
    if stored.offset == "float" and stored.scale_type not in ("f16", "super"):
        raise ValueError(f"offsets beside scales of {stored.scale_type} are not supported")
    offsets: dict[str, OffsetFormat] = {"none": "none", "zero": "zero", "float": "offset"}
    scales: dict[str, ScaleFormat] = {"f16": "f16", "bf16": "bf16", "f32": "f32", "super": "supers"}
    group_size = KERNEL_GROUPS[0] if whole_row else kernel_group(stored.group_size)
    if stored.scale_type == "super" and group_size != stored.group_size:
        raise ValueError(f"super-scales over groups of {stored.group_size} are not supported")
    centre = float(1 << (stored.bits - 1)) if stored.offset == "float" else 0.0
    return KernelFormat(
        weights, group_size, scales[stored.scale_type], offsets[stored.offset], centre
    )


def fp8_format(stored: Fp8Format, cols: int) -> KernelFormat:
    """Likewise, of float8."""
    whole_row = stored.block_cols >= cols
    group_size = KERNEL_GROUPS[0] if whole_row else kernel_group(stored.block_cols)
    return KernelFormat("fp8", group_size, scales="f32")


def _config_format(config: ExecutorConfig) -> KernelFormat:
    return KernelFormat(config.weights, config.scale_group)


def _head_format(config: ExecutorConfig) -> KernelFormat:
    """int4 would cost the logits more than it saves: the head is int8 then. Beside fp8 it stays
    bf16, as in the float8 checkpoints that others make."""
    if config.weights == "fp8":
        return KernelFormat("bf16")
    return KernelFormat("int8") if config.weights == "int4" else _config_format(config)


def _table(config: ExecutorConfig) -> EmbeddingSource:
    """The embedding table is only looked up, so it stays bf16 unless everything is f32."""
    return "f32" if config.weights == "f32" else "bf16"


def _head_source(spec: ModelSpec) -> str:
    return "embed" if spec.tied_embeddings else "lm_head"


def _columns(spec: ModelSpec, name: str) -> int:
    return {"o": spec.num_heads * spec.head_dim, "down": spec.intermediate_size}.get(
        name, spec.hidden_size
    )


def _matrices(spec: ModelSpec) -> Iterable[str]:
    yield "embed"
    if not spec.tied_embeddings:
        yield "lm_head"
    for i in range(spec.num_layers):
        for _, parts in FUSED:
            yield from (f"layers.{i}.{part}" for part in parts)


def _round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit
