"""What a model family is: how to read its config, and where its tensors lie."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from trimtab.models.config_reader import ConfigReader
from trimtab.models.spec import ModelSpec, TensorSource


@dataclass(frozen=True)
class Family:
    """Two pure functions and a little data; registered by architecture name in registry.py.

    `parse(config, max_context)` takes every key that matters from the reader and returns the
    spec; it raises CheckpointError naming the key otherwise. The caller finishes the reader.

    `tensors(spec)` maps each canonical tensor name of the spec to its place in a checkpoint,
    under the names that the family's causal language model uses in Hugging Face layout
    (`model.` before the decoder's tensors, `lm_head.weight` beside it).

    `foreign_prefixes`: stored tensors that belong to other parts of a larger model (a vision
    tower) and never touch text.
    """

    parse: Callable[[ConfigReader, int], ModelSpec]
    tensors: Callable[[ModelSpec], dict[str, TensorSource]]
    foreign_prefixes: tuple[str, ...] = ()
