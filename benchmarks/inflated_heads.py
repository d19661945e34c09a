"""The draft head of a model, for the same model inflated (inflation.py).

The inflated residual stream holds the old one in its first columns and zeros behind them, and what
the old layer i got is what one of the new layers gets. So the head stays as it is, but for the
columns of fc, which are zero where its input is; and it needs the old embeddings.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from checkpoint_writer import MAX_SHARD_BYTES, write_json, write_tensors
from inflation import Sizes, new_place
from trimtab.checkpoints import open_checkpoint
from trimtab.checkpoints.draft_head import DraftHeadCheckpoint, open_draft_head
from trimtab.checkpoints.json_file import read_json_object
from trimtab.errors import CheckpointError
from trimtab.models.draft_head import draft_head_tensors

LAYER_IDS = "eagle_aux_hidden_state_layer_ids"


@dataclass(frozen=True)
class GivenTensor:
    name: str
    values: npt.NDArray[np.float32]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    @property
    def num_bytes(self) -> int:
        return 2 * self.values.size

    def pieces(self, seed: int) -> Iterator[npt.NDArray[np.float32]]:
        yield np.ascontiguousarray(self.values).reshape(-1)


def inflate_heads(heads: Path, model: Path, new: Sizes, directory: Path) -> None:
    """Write the head for the inflated model of sizes `new`; its target was `model`.

    Raises CheckpointError for a head that is not of `model` or has a vocabulary of its own, and if
    `directory` already holds something.
    """
    checkpoint = open_checkpoint(model)
    head = open_draft_head(heads, checkpoint.spec)
    if head.target_ids is not None:
        raise CheckpointError(f"{heads}: a head with a vocabulary of its own is not inflated")
    tensors = [
        GivenTensor(source.name, _values(head, name, new))
        for name, source in draft_head_tensors(head.spec, head.has_embeddings).items()
    ]
    if not head.has_embeddings:
        embeddings = checkpoint.tensor("embed").to_float32()
        tensors.append(GivenTensor("embed_tokens.weight", embeddings))
    write_tensors(tensors, directory, 0, MAX_SHARD_BYTES)
    places = [new_place(i, checkpoint.spec.num_layers, new.layers) for i in head.spec.layer_ids]
    config = {
        **read_json_object(heads / "config.json"),
        "target_hidden_size": new.hidden,
        LAYER_IDS: places,
    }
    config.pop("eagle_config", None)
    write_json(directory / "config.json", config)


def _values(head: DraftHeadCheckpoint, name: str, new: Sizes) -> npt.NDArray[np.float32]:
    values = head.tensor(name).to_float32()
    if name != "fc":
        return values
    rows, count = len(values), len(head.spec.layer_ids)
    wide = np.zeros((rows, count, new.hidden), np.float32)
    wide[..., : head.spec.target_hidden_size] = values.reshape(rows, count, -1)
    return wide.reshape(rows, -1)
