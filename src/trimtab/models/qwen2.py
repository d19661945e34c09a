"""Qwen 2 and 2.5: Llama with biases on q, k, v, and a sliding window on the upper layers."""

from __future__ import annotations

from dataclasses import replace

from trimtab.models.config_reader import ConfigReader
from trimtab.models.decoder import Conventions, decoder_tensors, read_decoder, typed_layers
from trimtab.models.family import Family
from trimtab.models.spec import ModelSpec


def parse(config: ConfigReader, max_context: int) -> ModelSpec:
    return replace(parse_windows(config, max_context), qkv_bias=True)


def parse_windows(
    config: ConfigReader, max_context: int, conventions: Conventions | None = None
) -> ModelSpec:
    """What Qwen 2 and Qwen 3 share: with `use_sliding_window`, layers from `max_window_layers`
    on see only the window; `layer_types`, where given, says so layer by layer."""
    spec = read_decoder(config, max_context, conventions)
    window = config.optional_integer("sliding_window", default=4096)
    if not config.flag("use_sliding_window", False):
        window = None
    first = config.integer("max_window_layers", default=28, minimum=0)
    pattern = [
        "sliding_attention" if window is not None and i >= first else "full_attention"
        for i in range(spec.num_layers)
    ]
    layers, _ = typed_layers(config, spec, window, pattern)
    return replace(spec, layers=layers)


FAMILY = Family(parse, decoder_tensors)
