"""Qwen 3 (dense): Qwen 2 without the q, k, v biases, with a norm on each head of q and k."""

from __future__ import annotations

from dataclasses import replace

from trimtab.models.config_reader import ConfigReader
from trimtab.models.decoder import Conventions, decoder_tensors
from trimtab.models.family import Family
from trimtab.models.qwen2 import parse_windows
from trimtab.models.spec import ModelSpec


def parse(config: ConfigReader, max_context: int) -> ModelSpec:
    attention_bias = config.flag("attention_bias", False)
    return replace(
        parse_windows(config, max_context, Conventions(defaults={"head_dim": 128})),
        qk_norm=True,
        qkv_bias=attention_bias,
        output_bias=attention_bias,
    )


FAMILY = Family(parse, decoder_tensors)
