"""Checkpoint: a stored model, opened and validated, its tensors mapped and not yet read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from trimtab.checkpoints.stored_file import StoredFile
from trimtab.models.spec import ModelSpec
from trimtab.numerics.stored import Fp8Format, Fp8Matrix, GroupedMatrix, GroupFormat

StoredDtype = Literal["f32", "f16", "bf16"]


@dataclass(frozen=True)
class StoredTensor:
    """A read-only, C-contiguous view of a mapped file. bf16 is held as its uint16 bit patterns."""

    data: npt.NDArray[Any]  # float32, float16 or uint16
    dtype: StoredDtype

    def to_float32(self) -> npt.NDArray[np.float32]:
        """A float32 copy (of bf16: exact)."""
        if self.dtype != "bf16":
            return self.data.astype(np.float32)
        wide: npt.NDArray[np.uint32] = self.data.astype(np.uint32) << np.uint32(16)
        return wide.view(np.float32)


StoredMatrix = StoredTensor | GroupedMatrix | Fp8Matrix
MatrixFormat = StoredDtype | GroupFormat | Fp8Format


class Checkpoint(Protocol):
    @property
    def path(self) -> Path: ...

    @property
    def spec(self) -> ModelSpec: ...

    @property
    def identity(self) -> str:
        """Hex digest that changes when the config or any weight does."""
        ...

    @property
    def weight_files(self) -> Sequence[StoredFile]:
        """The files whose bytes, with the config, are the model; empty if it is in no file."""
        ...

    def names(self) -> Iterable[str]:
        """The canonical tensor names (see models/spec.py) that this model has."""
        ...

    def tensor(self, name: str) -> StoredTensor:
        """By canonical name; rows of fused tensors already cut out; what is stored as integers or
        float8 comes as float32. Raises CheckpointError."""
        ...

    def format(self, name: str) -> MatrixFormat:
        """In what format `matrix` will give it; no weights are read for it."""
        ...

    def matrix(self, name: str) -> StoredMatrix:
        """As `tensor`, in the format in which it is stored. Raises CheckpointError."""
        ...

    def release(self) -> None:
        """Gives back the memory of what has been read; tensors stay valid and are read again."""
        ...
