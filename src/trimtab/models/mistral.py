"""Mistral: Llama with a sliding window on every layer (v0.1), or none (`null`, later ones)."""

from __future__ import annotations

from dataclasses import replace

from trimtab.models.config_reader import ConfigReader
from trimtab.models.decoder import decoder_tensors, read_decoder, uniform_layers
from trimtab.models.family import Family
from trimtab.models.spec import ModelSpec


def parse(config: ConfigReader, max_context: int) -> ModelSpec:
    if config.raw("num_key_value_heads") is None:
        raise config.error("num_key_value_heads is missing")
    spec = read_decoder(config, max_context)
    window = config.optional_integer("sliding_window", default=4096)
    return replace(spec, layers=uniform_layers(spec, window))


FAMILY = Family(parse, decoder_tensors)
