"""Llama 2 and 3.x: `LlamaForCausalLM`, and the many models that were saved under that name."""

from __future__ import annotations

from dataclasses import replace

from trimtab.models.config_reader import ConfigReader
from trimtab.models.decoder import decoder_tensors, read_decoder
from trimtab.models.family import Family
from trimtab.models.spec import ModelSpec


def parse(config: ConfigReader, max_context: int) -> ModelSpec:
    attention_bias = config.flag("attention_bias", False)
    return replace(
        read_decoder(config, max_context),
        qkv_bias=attention_bias,
        output_bias=attention_bias,
        mlp_bias=config.flag("mlp_bias", False),
    )


FAMILY = Family(parse, decoder_tensors)
