"""transformers models of the measured shapes, made on the device without any file."""

from __future__ import annotations

import importlib.util
import os
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is to be fetched, kernels included
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
import transformers
from transformers.utils import logging

from gpu.shapes import config_of

logging.set_verbosity_error()
logging.disable_progress_bar()


def make_model(shape: str, tiny: bool, device: str, dtype: torch.dtype, attention: str) -> Any:
    """In eval mode, weights random, end tokens none."""
    values = config_of(shape, tiny)
    kind = values.pop("model_type")
    for name in ("transformers_version", "torch_dtype", "eos_token_id", "bos_token_id"):
        values.pop(name, None)
    config = transformers.AutoConfig.for_model(
        kind, **values, eos_token_id=None, bos_token_id=None, pad_token_id=None
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = transformers.AutoModelForCausalLM.from_config(
                config, attn_implementation=attention
            )
    finally:
        torch.set_default_dtype(before)
    return model.to(device=device, dtype=dtype).eval()


def attention_kinds(device: str) -> list[str]:
    """What continuous batching takes here, the fastest first. Names of old versions come last."""
    kinds = []
    if device == "cuda":
        for package, kind in (
            ("flash_attn_3", "3"),
            ("flash_attn_interface", "3"),
            ("flash_attn", "2"),
        ):
            if importlib.util.find_spec(package) is not None:
                kinds.append(f"flash_attention_{kind}")
    return [*dict.fromkeys(kinds), "sdpa", "sdpa_paged"]


def about() -> str:
    return f"transformers {transformers.__version__}, torch {torch.__version__}"
