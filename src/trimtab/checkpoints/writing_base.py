"""What every writer of checkpoints shares: a place beside the target, read-back, publication.

    open_writer -> `.NAME.partial-PID` beside the target -> add, add, ... -> finish:
    the rest is copied, everything is synced, read back and compared -> rename to NAME

Whatever goes wrong before the rename leaves nothing behind but what was there before.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from trimtab.checkpoints.base import Checkpoint, StoredMatrix, StoredTensor
from trimtab.errors import CheckpointError
from trimtab.models.config_reader import show
from trimtab.numerics.stored import GroupedMatrix

PIECE_ELEMENTS = 1 << 24

# Called after each tensor: its canonical name, how many are written, how many there are.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class WriteReport:
    """What a finished writer has published."""

    path: Path
    files: tuple[Path, ...]  # those that hold weights
    total_bytes: int  # of these files
    quantized: tuple[str, ...]  # canonical names stored as integers
    copied: tuple[str, ...]  # canonical names taken over from the source
    notes: tuple[str, ...] = field(default=())  # what other programs make of it, one line each


class CheckpointWriter(ABC):
    """A context manager; leaving it without `finish` removes everything that was written.

    `add` and `finish` raise CheckpointError, one line, for what the container cannot hold and for
    what the file system refuses; after an error the writer is good for nothing but being left.
    """

    def __init__(self, source: Checkpoint, out: Path, suffix: str = "") -> None:
        self.source = source
        self.out = out
        self._staging = out.with_name(f".{out.name}.partial-{os.getpid()}{suffix}")
        self._prints: dict[str, str] = {}  # canonical name -> fingerprint of what was added
        self._shape_of = {name: source_shape(source, name) for name in source.names()}
        self._quantized_names: list[str] = []
        self._finished = False

    def __enter__(self) -> CheckpointWriter:
        with self.writing():
            self._remove_staging()
            self._create()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._finished:
            self._abandon()
            self._remove_staging()

    def add(self, name: str, tensor: GroupedMatrix | StoredTensor) -> None:
        """Store `tensor` under its canonical name; each name once, in any order."""
        if name not in self._shape_of:
            raise CheckpointError(f"{self.out}: this model has no tensor {show(name)}")
        if name in self._prints:
            raise CheckpointError(f"{self.out}: tensor {name} was added twice")
        shape = tensor.data.shape if isinstance(tensor, StoredTensor) else tensor.shape
        if tuple(shape) != self._shape_of[name]:
            raise CheckpointError(
                f"{self.out}: tensor {name} has shape {list(shape)}, "
                f"the model asks for {list(self._shape_of[name])}"
            )
        if isinstance(tensor, GroupedMatrix):
            check_grouped(name, tensor)
        with self.writing():
            self._prints[name] = self._write(name, tensor)
        if isinstance(tensor, GroupedMatrix):
            self._quantized_names.append(name)

    def finish(self, progress: Progress | None = None) -> WriteReport:
        """Copy what was not added, read everything back, compare, publish."""
        copied = [name for name in self._shape_of if name not in self._prints]
        for name in copied:
            self.add(name, self._from_source(name))
            self.source.release()
            if progress is not None:
                progress(name, len(self._prints), len(self._shape_of))
        with self.writing():
            files = self._complete()
            self._read_back()
            total = sum(file.stat().st_size for file in files)
            self._publish()
        self._finished = True
        return WriteReport(
            path=self.out,
            files=tuple(self.out / file.name if self.out.is_dir() else self.out for file in files),
            total_bytes=total,
            quantized=tuple(sorted(self._quantized_names)),
            copied=tuple(copied),
            notes=tuple(self._notes()),
        )

    @abstractmethod
    def _create(self) -> None:
        """Make the staging place."""

    @abstractmethod
    def _write(self, name: str, tensor: GroupedMatrix | StoredTensor) -> str:
        """Store it and give the `fingerprint` that the read-back must have."""

    @abstractmethod
    def _complete(self) -> list[Path]:
        """Write what comes last and sync; gives the files that hold weights."""

    @abstractmethod
    def _open_staged(self) -> Checkpoint:
        """What was written, through the reader."""

    @abstractmethod
    def _publish(self) -> None:
        """Rename the staging place."""

    def _abandon(self) -> None:  # noqa: B027
        """Close what is open, if anything is."""

    def _notes(self) -> list[str]:
        return []

    def _from_source(self, name: str) -> GroupedMatrix | StoredTensor:
        """What is copied of a tensor that was not added: as stored where the container can."""
        tensor = self.source.matrix(name)
        if isinstance(tensor, GroupedMatrix | StoredTensor):
            return tensor
        return StoredTensor(tensor.to_float32(), "f32")

    def _read_back(self) -> None:
        """Every tensor, through the reader that will open the file, bit for bit."""
        checkpoint = self._open_staged()
        if set(checkpoint.names()) != set(self._prints):
            odd = sorted(set(checkpoint.names()) ^ set(self._prints))
            raise CheckpointError(f"{self.out}: not written: {odd[0]} is lost in reading it back")
        for name, expected in self._prints.items():
            if fingerprint(checkpoint.matrix(name)) != expected:
                raise CheckpointError(
                    f"{self.out}: not written: tensor {name} differs when it is read back "
                    "(faulty disk or memory?)"
                )
            checkpoint.release()

    def _remove_staging(self) -> None:
        if self._staging.is_dir():
            shutil.rmtree(self._staging, ignore_errors=True)
        else:
            self._staging.unlink(missing_ok=True)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Turns what the file system refuses into one line."""
        try:
            yield
        except OSError as error:
            raise CheckpointError(
                f"{self.out}: cannot be written: {error.strerror or error}"
            ) from None


def source_shape(source: Checkpoint, name: str) -> tuple[int, ...]:
    """Of a canonical tensor, from the model's spec: nothing is read."""
    from trimtab.models.decoder import projections

    spec = source.spec
    if name in ("embed", "lm_head"):
        return (spec.vocab_size, spec.hidden_size)
    kind = name.rsplit(".", 1)[-1]
    for matrix, _, shape, _ in projections(spec):
        if kind == matrix:
            return shape
        if kind == f"{matrix}_bias":
            return shape[:1]
    return (spec.head_dim,) if kind in ("q_norm", "k_norm") else (spec.hidden_size,)


def check_grouped(name: str, matrix: GroupedMatrix) -> None:
    """That the arrays of a GroupedMatrix fit together and stay in range: a value beyond its bits
    would leak into its neighbour. Raises CheckpointError."""
    rows, cols = matrix.shape
    low, high = -(1 << (matrix.bits - 1)), (1 << (matrix.bits - 1)) - 1
    groups = (rows, -(-cols // matrix.group_size))
    arrays: list[Any] = [matrix.scales, matrix.zeros, matrix.offsets]
    if any(array is not None and array.shape != groups for array in arrays):
        raise CheckpointError(f"tensor {name}: scales or zeros are not of shape {list(groups)}")
    for array in (matrix.values, matrix.zeros):
        if array is not None and array.size and not low <= array.min() <= array.max() <= high:
            raise CheckpointError(f"tensor {name}: integers outside [{low}, {high}]")
    if not np.isfinite(matrix.scales).all():
        raise CheckpointError(f"tensor {name}: scales that are not finite")


def fingerprint(tensor: StoredMatrix) -> str:
    """A digest of all that a stored tensor means: of floats their bits, of integers both the
    integers in the order of the inputs and the floats that they stand for."""
    digest = hashlib.sha256()
    if isinstance(tensor, StoredTensor):
        digest.update(f"{tensor.dtype} {tensor.data.shape}".encode())
        digest.update(np.ascontiguousarray(tensor.data).data)
        return digest.hexdigest()
    digest.update(f"{type(tensor).__name__} {tensor.shape}".encode())
    values = tensor.values
    if not isinstance(tensor, GroupedMatrix):
        digest.update(np.ascontiguousarray(values).data)
        digest.update(np.ascontiguousarray(tensor.to_float32()).data)
        return digest.hexdigest()
    if tensor.columns is not None:
        values = np.empty_like(values)
        values[:, tensor.columns] = tensor.values
    digest.update(np.ascontiguousarray(values).data)
    for piece in row_pieces(tensor.shape):
        part = replace(tensor, **{name: array[piece] for name, array in _by_row(tensor).items()})
        digest.update(np.ascontiguousarray(part.to_float32()).data)
    return digest.hexdigest()


def row_pieces(shape: tuple[int, ...]) -> Iterator[slice]:
    """All rows, in pieces whose floats take 64 MiB and not gigabytes."""
    step = max(1, PIECE_ELEMENTS // max(shape[1], 1))
    for first in range(0, shape[0], step):
        yield slice(first, first + step)


def _by_row(matrix: GroupedMatrix) -> dict[str, Any]:
    """What has a row for each row of the matrix; the two levels of its scales do not matter."""
    arrays = {name: getattr(matrix, name) for name in ("values", "scales", "zeros", "offsets")}
    return {name: array for name, array in arrays.items() if array is not None}


def sync(path: Path) -> None:
    """Have the system put a file's, or a directory's, content on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
