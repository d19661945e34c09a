"""A model made larger without a change to the function that it computes.

Random weights have no honest acceptance rate for speculative decoding, and a small trained model
has no honest cost. An inflated model has both: the answers of the small one, the work of a large
one.

    hidden size      times 4 or 16; the residual stream's new columns stay exactly zero. RMSNorm
                     divides by the mean square over all columns: its weights are divided by 2 or
                     4 (exact in bf16), its epsilon by 4 or 16
    layers           new ones between the old ones; what they add to the stream is exactly zero
    KV heads         new ones, each with a group of query heads as large as the old ones': their
                     values are exactly zero, so their outputs are
    FFN columns      new ones: the up projection gives exactly zero

Where a matrix reads a zero, its weights are random, so that they look like weights; they are
zeros only where what they read is not. The largest magnitude of a row of old weights is what it
was, and that of every row of activations too, so the function is kept under int8 (weights by
channel, activations by token) as it is under bf16.

     from:   stream | new stream      heads (o) or FFN (down): old | new (zero)
    q k gate   old  |  small        old rows of o and down:    old | small
       new    random | random       new rows:                   0  | random
    v up       old  |  small        an added layer's old rows:  0  | random
       new      0   | random        "small": at most half of the row's largest magnitude
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from checkpoint_writer import (
    MAX_SHARD_BYTES,
    TOKENIZER_FILES,
    copy_files,
    generator,
    write_json,
    write_tensors,
)
from trimtab.checkpoints import open_checkpoint
from trimtab.checkpoints.base import Checkpoint
from trimtab.checkpoints.json_file import read_json_object
from trimtab.errors import CheckpointError
from trimtab.models.spec import ModelSpec

PIECE_ELEMENTS = 4 << 20
RANDOM_BOUND = 0.08  # of new weights that face a norm's output: uniform, so products are about 1
FFN_MULTIPLE = 64
MAX_LAYERS = 32
STORED_NAMES = {
    "embed": "model.embed_tokens.weight",
    "final_norm": "model.norm.weight",
    "attn_norm": "model.layers.{}.input_layernorm.weight",
    "mlp_norm": "model.layers.{}.post_attention_layernorm.weight",
    **{part: f"model.layers.{{}}.self_attn.{part}_proj.weight" for part in "qkvo"},
    **{part: f"model.layers.{{}}.mlp.{part}_proj.weight" for part in ("gate", "up", "down")},
}


@dataclass(frozen=True)
class Sizes:
    """Of a Llama with tied embeddings."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int

    @staticmethod
    def of(spec: ModelSpec) -> Sizes:
        return Sizes(
            spec.hidden_size,
            spec.num_layers,
            spec.num_heads,
            spec.num_kv_heads,
            spec.head_dim,
            spec.intermediate_size,
            spec.vocab_size,
        )

    @property
    def num_parameters(self) -> int:
        """Embeddings once, as they are tied."""
        return (self.vocab + 1) * self.hidden + self.layers * self.layer_parameters

    @property
    def layer_parameters(self) -> int:
        attention = 2 * (self.heads + self.kv_heads) * self.head_dim
        return self.hidden * (attention + 3 * self.ffn + 2)


def wider(old: Sizes, parameters: int) -> Sizes:
    """Hidden size and heads for a model of so many parameters; layers and FFN are the old ones.

    The factor is a power of 4, so that norm weights are divided by a power of 2.
    """
    chosen = old
    for factor in (4, 16):
        sizes = Sizes(
            old.hidden * factor,
            old.layers,
            old.heads * factor,
            old.kv_heads * factor,
            old.head_dim,
            old.ffn,
            old.vocab,
        )
        least = sizes.num_parameters if factor == 4 else 3 * sizes.num_parameters
        if parameters >= least:
            chosen = sizes
    return chosen


def choose_sizes(old: Sizes, parameters: int) -> Sizes:
    """The sizes that come closest to `parameters`, with the proportions of the old model.

    Raises CheckpointError where the old model is larger than that.
    """
    if parameters < old.num_parameters:
        raise CheckpointError(
            f"{parameters:,} parameters are fewer than the model's own {old.num_parameters:,}"
        )
    base = wider(old, parameters)
    factor = base.hidden // old.hidden

    def sizes(layers: int, ffn: int) -> Sizes:
        return Sizes(base.hidden, layers, base.heads, base.kv_heads, base.head_dim, ffn, base.vocab)

    left = parameters - (base.vocab + 1) * base.hidden
    proportional = round(left / sizes(1, old.ffn * factor).layer_parameters)
    middle = min(max(proportional, old.layers), max(MAX_LAYERS, old.layers))
    fixed = sizes(1, 0).layer_parameters
    candidates = []
    for layers in range(max(old.layers, middle - 1), middle + 2):
        ffn = (left / layers - fixed) / (3 * base.hidden)
        columns = max(round(ffn / FFN_MULTIPLE) * FFN_MULTIPLE, old.ffn)
        candidates.append(sizes(layers, columns))
    return min(candidates, key=lambda found: abs(found.num_parameters - parameters))


@dataclass(frozen=True)
class InflatedTensor:
    """A stored matrix or vector; all of it is random, but

    - its upper left corner is `corner` [r, c], which bounds the random elements beside it: they
      are at most half of the row's largest magnitude (RANDOM_BOUND where that is zero);
    - rows from `silent_from` on have zeros in the first c columns;
    - with `silent_columns` all columns from c on are zeros.
    """

    name: str
    shape: tuple[int, ...]
    corner: npt.NDArray[np.float32]
    silent_from: int | None = None
    silent_columns: bool = False

    @property
    def num_bytes(self) -> int:
        return 2 * int(np.prod(self.shape, dtype=np.int64))

    def pieces(self, seed: int) -> Iterator[npt.NDArray[np.float32]]:
        random = generator(self.name, seed)
        rows, columns = (1, *self.shape)[-2:]
        given_columns = self.corner.shape[1]
        silent_from = rows if self.silent_from is None else self.silent_from
        step = max(1, PIECE_ELEMENTS // columns)
        for first in range(0, rows, step):
            count = min(step, rows - first)
            given = self.corner[first : first + count]
            piece = random.random((count, columns), dtype=np.float32)
            piece -= np.float32(0.5)
            piece *= _widths(given, count)
            piece[: len(given), :given_columns] = given
            piece[max(silent_from - first, 0) :, :given_columns] = 0.0
            if self.silent_columns:
                piece[:, given_columns:] = 0.0
            yield piece.reshape(-1)


def _widths(given: npt.NDArray[np.float32], count: int) -> npt.NDArray[np.float32]:
    """[count, 1]: of the intervals around zero in which the rows' random elements lie."""
    widths = np.full((count, 1), 2 * RANDOM_BOUND, np.float32)
    largest = np.abs(given).max(1, keepdims=True, initial=0.0)
    widths[: len(given)] = np.where(largest > 0, largest, widths[: len(given)])
    return widths


@dataclass(frozen=True)
class Inflation:
    """Of an open checkpoint, to the sizes `new`."""

    checkpoint: Checkpoint
    new: Sizes

    def tensors(self) -> Iterator[InflatedTensor]:
        """Every stored tensor. The old layers lie evenly among the added ones, in order."""
        yield self._tensor("embed", "embed", silent_columns=True)
        layers, old_layers = self.new.layers, self.checkpoint.spec.num_layers
        places = {new_place(index, old_layers, layers): index for index in range(old_layers)}
        for layer in range(layers):
            yield from self._layer(layer, places.get(layer))
        yield self._tensor("final_norm", "final_norm")

    def _layer(self, layer: int, old: int | None) -> Iterator[InflatedTensor]:
        """Layer `old` of the model; None: an added one."""
        spec = self.checkpoint.spec
        silent = {
            "v": spec.num_kv_heads * spec.head_dim,
            "up": spec.intermediate_size,
            "o": spec.hidden_size,
            "down": spec.hidden_size,
        }
        for part in ("attn_norm", "q", "k", "v", "o", "mlp_norm", "gate", "up", "down"):
            source = None if old is None else f"layers.{old}.{part}"
            yield self._tensor(f"layers.{layer}.{part}", source, silent.get(part))

    def _tensor(
        self,
        name: str,
        source: str | None,
        silent_from: int | None = None,
        silent_columns: bool = False,
    ) -> InflatedTensor:
        spec, part = self.checkpoint.spec, name.rsplit(".", 1)[-1]
        if source is not None:
            corner = self.checkpoint.tensor(source).to_float32().reshape(-1, self._columns(part))
        elif part.endswith("norm"):
            corner = np.ones((1, spec.hidden_size), np.float32)
        elif part in ("o", "down"):
            corner = np.zeros((spec.hidden_size, self._columns(part)), np.float32)
        else:
            corner = np.empty((0, self._columns(part)), np.float32)
        if part.endswith("norm"):
            corner = corner * np.float32((spec.hidden_size / self.new.hidden) ** 0.5)
        stored = STORED_NAMES[part].format(name.split(".")[1] if "." in name else "")
        return InflatedTensor(stored, self._shape(part), corner, silent_from, silent_columns)

    def _columns(self, part: str) -> int:
        """Of the old model's matrix."""
        spec = self.checkpoint.spec
        widths = {"o": spec.num_heads * spec.head_dim, "down": spec.intermediate_size}
        return widths.get(part, spec.hidden_size)

    def _shape(self, part: str) -> tuple[int, ...]:
        new = self.new
        query, key, hidden = new.heads * new.head_dim, new.kv_heads * new.head_dim, new.hidden
        shapes: dict[str, tuple[int, ...]] = {
            "embed": (new.vocab, hidden),
            "q": (query, hidden),
            "k": (key, hidden),
            "v": (key, hidden),
            "o": (hidden, query),
            "gate": (new.ffn, hidden),
            "up": (new.ffn, hidden),
            "down": (hidden, new.ffn),
        }
        return shapes.get(part, (hidden,))

    def config(self, old: dict[str, Any]) -> dict[str, Any]:
        """The old config.json with the new sizes."""
        shrinking = self.checkpoint.spec.hidden_size / self.new.hidden
        return {
            **old,
            "hidden_size": self.new.hidden,
            "intermediate_size": self.new.ffn,
            "num_hidden_layers": self.new.layers,
            "num_attention_heads": self.new.heads,
            "num_key_value_heads": self.new.kv_heads,
            "head_dim": self.new.head_dim,
            "rms_norm_eps": self.checkpoint.spec.norm_eps * shrinking,
            "torch_dtype": "bfloat16",
        }


def new_place(layer: int, old_layers: int, new_layers: int) -> int:
    """Which of the new layers an old one becomes; the number of layers stands for the end."""
    return layer * new_layers // old_layers


def inflate(
    model: Path, parameters: int, directory: Path, seed: int = 0, max_bytes: int = MAX_SHARD_BYTES
) -> Sizes:
    """Write the checkpoint; config.json comes last, so that half a model is none.

    Raises CheckpointError for a model that is larger, or not a Llama with tied embeddings and
    without biases, and if `directory` already holds something.
    """
    checkpoint = open_checkpoint(model)
    spec = checkpoint.spec
    biases = spec.qkv_bias or spec.output_bias or spec.mlp_bias
    if spec.architecture != "LlamaForCausalLM" or biases or not spec.tied_embeddings:
        raise CheckpointError(
            f"{model}: only a Llama with tied embeddings and without biases can be inflated"
        )
    config = read_json_object(model / "config.json")
    inflation = Inflation(checkpoint, choose_sizes(Sizes.of(spec), parameters))
    write_tensors(list(inflation.tensors()), directory, seed, max_bytes)
    copy_files(model, directory, (*TOKENIZER_FILES, "generation_config.json"))
    write_json(directory / "config.json", inflation.config(config))
    return inflation.new
