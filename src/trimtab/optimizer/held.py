"""In which formats an executor holds the matrices of a variant."""

from __future__ import annotations

from dataclasses import replace

from trimtab.checkpoints.base import Checkpoint
from trimtab.config import ExecutorConfig
from trimtab.errors import CheckpointError
from trimtab.executors.formats import ModelFormats, choose_formats, formats_of_config
from trimtab.optimizer.variants import Variant


def formats_held(
    variant: Variant,
    checkpoint: Checkpoint,
    config: ExecutorConfig,
    built: Checkpoint | None = None,
) -> ModelFormats:
    """`checkpoint`: the unmodified model; `built`: what was made of it, for a variant that needs
    it. Before that, a mixed one is taken to be as narrow as it can get. Raises CheckpointError for
    integers that the CPU's kernels do not take."""
    spec = checkpoint.spec
    if variant.weights == "stored" or built is not None:
        try:
            return choose_formats(built or checkpoint, config)
        except CheckpointError:
            if config.device == "cpu":
                raise
    formats = formats_of_config(spec, config)
    if variant.needs_build and variant.weights != "stored":
        narrow = replace(config, weights=variant.weights, group_size=variant.group_size)
        formats = replace(formats, layers=formats_of_config(spec, narrow).layers)
    return formats
