"""How the matrix of one module lies in a quantized checkpoint: what every format has to say.

A format is a `Quantization`, made of the checkpoint's quantization config. Asked for a module, it
gives a `StoredLayer`, whose constructor has checked the tensors that the module is stored in:
their presence, dtypes and shapes. All sizes follow from the model's own shape and the config, and
no memory is taken for a matrix before its tensors have been found to have them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from trimtab.checkpoints.base import StoredDtype, StoredTensor
from trimtab.checkpoints.safetensors_file import SafetensorsFile
from trimtab.errors import CheckpointError
from trimtab.numerics.stored import (
    Float32Array,
    Fp8Format,
    Fp8Matrix,
    GroupedMatrix,
    GroupFormat,
    Int32Array,
)

FLOATS = ("F16", "BF16", "F32")
LARGEST_SCALE = np.float32(2.0**118)  # times 448, the largest float8, float32 still holds
MAX_NAMES = 1 << 14  # in one list: each is compared with each module
WEIGHT_SUFFIXES = (".weight", ".weight_packed", ".qweight")


@dataclass(frozen=True)
class Module:
    """A matrix of the model that a quantization config can mean."""

    name: str  # as the files have it, without ".weight"
    kind: str  # "Linear" or "Embedding", the classes that configs target
    rows: int  # of the whole stored matrix, of fused ones too
    cols: int
    has_bias: bool

    @property
    def is_head(self) -> bool:
        return self.name.rpartition(".")[2] == "lm_head"


class StoredLayer(Protocol):
    """A module's matrix [rows, cols]; a range of its rows can be taken alone."""

    @property
    def tensor_names(self) -> frozenset[str]:
        """The stored tensors that belong to it."""
        ...

    def format(self, first_row: int, rows: int) -> GroupFormat | Fp8Format:
        """Of what `read` gives. Reads at most zero points and the order of columns."""
        ...

    def read(self, first_row: int, rows: int) -> GroupedMatrix | Fp8Matrix:
        """Raises CheckpointError for values that cannot be meant."""
        ...


class Quantization(Protocol):
    def layer(self, module: Module, tensors: StoredTensors) -> StoredLayer | None:
        """How `module` is stored; None: as floats, under its own name. Raises CheckpointError."""
        ...


class StoredTensors:
    """The tensors of a checkpoint by name; `check` goes before every other access."""

    def __init__(self, path: Path, files: Mapping[str, SafetensorsFile]) -> None:
        self.path = path
        self._files = files

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def dtype(self, name: str) -> str:
        """As the file calls it."""
        return self._files[name].entries[name].dtype

    def shape(self, name: str) -> tuple[int, ...]:
        return self._files[name].entries[name].shape

    def float_dtype(self, name: str) -> StoredDtype:
        """Of a tensor of floats."""
        return self._files[name].dtype(name)

    def check(self, name: str, dtypes: tuple[str, ...], *shapes: tuple[int, ...]) -> None:
        """Raises CheckpointError unless the tensor is there, in one of the dtypes and shapes."""
        file = self._files.get(name)
        if file is None:
            raise CheckpointError(f"{self.path}: tensor {name} is missing")
        entry = file.entries[name]
        if entry.shape not in shapes:
            wanted = " or ".join(str(list(shape)) for shape in shapes)
            raise CheckpointError(
                f"{file.path}: tensor {name} has shape {list(entry.shape)}, "
                f"the quantization config asks for {wanted}"
            )
        if entry.dtype not in dtypes:
            raise CheckpointError(
                f"{file.path}: tensor {name} is stored as {entry.dtype}, "
                f"it must be {' or '.join(dtypes)}"
            )

    def integers(self, name: str) -> np.ndarray:
        """A tensor of integers, or of float8 as its bit patterns, as a view of the file."""
        return self._files[name].integers(name)

    def floats(self, name: str) -> StoredTensor:
        return self._files[name].tensor(name)

    def scales(self, name: str) -> Float32Array:
        """Floats; one that is not finite, or makes elements that are not, damns its group."""
        scales: Float32Array = self.floats(name).to_float32()
        if not (np.abs(scales) < LARGEST_SCALE).all():
            raise self.error(name, "holds a scale that is not finite or overflows float32")
        return scales

    def error(self, name: str, text: str) -> CheckpointError:
        return CheckpointError(f"{self._files[name].path}: tensor {name} {text}")


@dataclass(frozen=True)
class ColumnOrder:
    """Columns sorted by their group: stored column k of a matrix multiplies input columns[k]."""

    columns: Int32Array | None = None  # None: they are in order
    name: str = ""  # equal for equal permutations


def column_order(tensors: StoredTensors, name: str, cols: int, group_size: int) -> ColumnOrder:
    """From g_idx, the group of every input column. Every group must have `group_size` columns,
    the last one what is left. Raises CheckpointError otherwise."""
    group_of = tensors.integers(name)
    groups = -(-cols // group_size)
    if group_of.min() < 0 or group_of.max() >= groups:
        raise tensors.error(name, f"names a group outside [0, {groups - 1}]")
    trivial = np.arange(cols, dtype=np.int32) // group_size
    if np.array_equal(group_of, trivial):
        return ColumnOrder()
    counts, expected = np.bincount(group_of, minlength=groups), np.bincount(trivial)
    if not np.array_equal(counts, expected):
        odd = int(np.flatnonzero(counts != expected)[0])
        raise tensors.error(
            name, f"gives group {odd} {counts[odd]} columns, not {expected[odd]}: not supported"
        )
    columns = np.argsort(group_of, kind="stable").astype(np.int32)
    return ColumnOrder(columns, hashlib.sha256(columns.astype("<i4").tobytes()).hexdigest()[:16])


def ordered(values: np.ndarray, order: ColumnOrder) -> np.ndarray:
    """[rows, cols], the columns of a file sorted by their group."""
    return values if order.columns is None else np.take(values, order.columns, axis=1)


def may_stay_float(module: Module, names: tuple[str, ...]) -> bool:
    """Whether a list such as modules_to_not_convert means the module. Programs read the names in
    such lists as parts of module names, as their ends or as patterns; where the loosest reading
    fits, the files themselves show what was meant."""
    return any(name in module.name for name in names)


def read_names(value: object, where: str) -> tuple[str, ...]:
    """A list of module names, or null."""
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(name, str) and name for name in value):
        raise CheckpointError(f"{where}: must be a list of names")
    if len(value) > MAX_NAMES:
        raise CheckpointError(f"{where}: has {len(value)} names: at most {MAX_NAMES}")
    return tuple(value)
