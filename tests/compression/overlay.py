"""A checkpoint with some of its tensors replaced, in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from trimtab.checkpoints.base import (
    Checkpoint,
    MatrixFormat,
    StoredMatrix,
    StoredTensor,
)
from trimtab.checkpoints.stored_file import StoredFile
from trimtab.models.spec import ModelSpec


class Overlay:
    """See `trimtab.checkpoints.base.Checkpoint`. Not a copy: `source` must stay open."""

    def __init__(self, source: Checkpoint, changes: Mapping[str, StoredMatrix]) -> None:
        self._source = source
        self._changes = dict(changes)

    @property
    def path(self) -> Path:
        return self._source.path

    @property
    def spec(self) -> ModelSpec:
        return self._source.spec

    @property
    def identity(self) -> str:
        digest = hashlib.sha256(self._source.identity.encode())
        for name, matrix in sorted(self._changes.items()):
            digest.update(name.encode())
            data = matrix.data if isinstance(matrix, StoredTensor) else matrix.to_float32()
            digest.update(np.ascontiguousarray(data).data)
        return digest.hexdigest()

    @property
    def weight_files(self) -> Sequence[StoredFile]:
        return []

    def names(self) -> Iterable[str]:
        return self._source.names()

    def tensor(self, name: str) -> StoredTensor:
        changed = self._changes.get(name)
        if changed is None:
            return self._source.tensor(name)
        if isinstance(changed, StoredTensor):
            return changed
        return StoredTensor(changed.to_float32(), "f32")

    def format(self, name: str) -> MatrixFormat:
        changed = self._changes.get(name)
        if changed is None:
            return self._source.format(name)
        return changed.dtype if isinstance(changed, StoredTensor) else changed.format

    def matrix(self, name: str) -> StoredMatrix:
        return self._changes.get(name) or self._source.matrix(name)

    def release(self) -> None:
        self._source.release()
