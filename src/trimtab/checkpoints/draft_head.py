"""Published draft heads: config.json beside safetensors, in the layout of EAGLE-3's own release.

Names are those of `draft_head_tensors`, with or without `model.` in front; `layers.0.` stands for
`midlayer.` in some. `d2t` [draft vocab] holds, of each row of lm_head, the target's id less the
row's own number; `t2d`, its inverse as a mask, is not needed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from trimtab.checkpoints.base import StoredTensor
from trimtab.checkpoints.json_file import read_json_object
from trimtab.checkpoints.safetensors_file import SafetensorsFile
from trimtab.checkpoints.shards import open_shards
from trimtab.errors import CheckpointError
from trimtab.models.config_reader import show
from trimtab.models.draft_head import DraftHeadSpec, draft_head_tensors, read_draft_head
from trimtab.models.spec import ModelSpec


class DraftHeadCheckpoint:
    """An opened head; every tensor is there in its shape. Its tensors have canonical names."""

    def __init__(
        self,
        path: Path,
        spec: DraftHeadSpec,
        files: Mapping[str, SafetensorsFile],
        target: ModelSpec,
    ) -> None:
        self.path, self.spec = path, spec
        self._files = {_published_name(name): (name, file) for name, file in files.items()}
        if len(self._files) != len(files):
            raise CheckpointError(f"{path}: some tensor is there under two names")
        self.has_embeddings = "embed_tokens.weight" in self._files
        if not self.has_embeddings and spec.decoder.hidden_size != target.hidden_size:
            raise CheckpointError(
                f"{path}: tensor embed_tokens.weight is missing, and the target's embeddings have "
                f"{target.hidden_size} values, not {spec.decoder.hidden_size}"
            )
        self._sources = draft_head_tensors(spec, self.has_embeddings)
        for source in self._sources.values():
            self._check(source.name, source.shape)
        self.target_ids = self._read_target_ids()
        known = {source.name for source in self._sources.values()} | {"d2t", "t2d"}
        for name in sorted(self._files.keys() - known):
            raise CheckpointError(f"{path}: tensor {show(name)}: a head has no place for it")

    def names(self) -> Iterable[str]:
        return self._sources.keys()

    def tensor(self, name: str) -> StoredTensor:
        stored, file = self._files[self._sources[name].name]
        return file.tensor(stored)

    def matrix(self, name: str) -> StoredTensor:
        return self.tensor(name)

    def release(self) -> None:
        for _, file in self._files.values():
            file.release()

    def _check(self, name: str, shape: tuple[int, ...]) -> None:
        if name not in self._files:
            raise CheckpointError(f"{self.path}: tensor {name} is missing")
        stored, file = self._files[name]
        entry = file.entries[stored]
        if entry.shape != shape:
            raise CheckpointError(
                f"{file.path}: tensor {stored} has shape {list(entry.shape)}, "
                f"config.json asks for {list(shape)}"
            )
        if not file.is_readable(stored):
            raise CheckpointError(
                f"{file.path}: tensor {stored} is stored as {entry.dtype}: "
                "only F32, F16 and BF16 are supported"
            )

    def _read_target_ids(self) -> npt.NDArray[np.int32] | None:
        """[draft vocab] None: the head's ids are the target's."""
        count, vocab = self.spec.draft_vocab_size, self.spec.decoder.vocab_size
        if "d2t" not in self._files:
            if count != vocab:
                raise CheckpointError(f"{self.path}: tensor d2t is missing")
            return None
        stored, file = self._files["d2t"]
        entry = file.entries[stored]
        if entry.shape != (count,) or entry.dtype not in ("I64", "I32"):
            raise CheckpointError(
                f"{file.path}: tensor d2t is {entry.dtype} {list(entry.shape)}, must be {count} "
                "integers"
            )
        ids = file.integers(stored).astype(np.int64) + np.arange(count)
        if ids.min() < 0 or ids.max() >= vocab or len(np.unique(ids)) != count:
            raise CheckpointError(
                f"{file.path}: tensor d2t does not give each draft id a token of its own"
            )
        return None if count == vocab and (np.diff(ids) == 1).all() else ids.astype(np.int32)


def open_draft_head(path: str | Path, target: ModelSpec) -> DraftHeadCheckpoint:
    """Open and validate the head in a directory, for this target; no weight is read yet.

    Raises CheckpointError, one line naming what is missing, damaged, not supported, or made for
    another target.
    """
    path = Path(path)
    try:
        if not path.is_dir():
            raise CheckpointError(f"{path}: no such directory: a draft head is one")
        if not (path / "config.json").exists():
            raise CheckpointError(f"{path}: no config.json: not a draft head")
        config = read_json_object(path / "config.json")
        spec = read_draft_head(config, target, str(path / "config.json"))
        return DraftHeadCheckpoint(path, spec, open_shards(path), target)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None


def _published_name(name: str) -> str:
    name = name.removeprefix("model.")
    return f"midlayer.{name[9:]}" if name.startswith("layers.0.") else name
