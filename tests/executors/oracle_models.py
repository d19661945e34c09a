"""Random transformers models of every family, in shapes that try the CPU executor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import transformers
from transformers.utils import logging

from trimtab.checkpoints import open_checkpoint
from trimtab.checkpoints.base import Checkpoint

logging.set_verbosity_error()
logging.disable_progress_bar()

SIZES: dict[str, Any] = {
    "vocab_size": 131,
    "hidden_size": 60,
    "intermediate_size": 88,
    "num_hidden_layers": 2,
    "max_position_embeddings": 4096,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 512,
}


def heads(query: int, kv: int, dim: int) -> dict[str, int]:
    return {"num_attention_heads": query, "num_key_value_heads": kv, "head_dim": dim}


FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", heads(3, 1, 64)),
    "llama-3.1": ("Llama", {**heads(5, 5, 80), "rope_parameters": LLAMA3_ROPE}),
    "llama-biases": ("Llama", {**heads(3, 3, 96), "attention_bias": True, "mlp_bias": True}),
    "mistral": ("Mistral", {**heads(6, 3, 96), "sliding_window": 40}),
    "qwen2": ("Qwen2", {**heads(4, 1, 80), "tie_word_embeddings": True}),
    "qwen3": ("Qwen3", heads(10, 5, 128)),
    # Phi-3 has no head_dim of its own; three quarters of a head turn.
    "phi3": (
        "Phi3",
        {
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
            "hidden_size": 240,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10_000.0,
                "partial_rotary_factor": 0.75,
            },
        },
    ),
    "gemma2": (
        "Gemma2",
        {**heads(2, 1, 256), "sliding_window": 30, "query_pre_attn_scalar": 144},
    ),
    "gemma3": (
        "Gemma3",
        {
            **heads(3, 3, 64),
            "sliding_window": 30,
            "num_hidden_layers": 7,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        },
    ),
}


def build(name: str) -> Any:
    """Every parameter random: matrices by their fan-in, norms around one, biases small."""
    family, own = FAMILIES[name]
    config_name = "Gemma3TextConfig" if family == "Gemma3" else f"{family}Config"
    config = getattr(transformers, config_name)(**{**SIZES, **own}, attn_implementation="eager")
    torch.manual_seed(len(name))
    model = getattr(transformers, f"{family}ForCausalLM")(config)
    center = 0.0 if family.startswith("Gemma") else 1.0  # Gemma stores weight - 1
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.ndim == 1:
                is_norm = "norm" in key
                parameter.normal_(center if is_norm else 0.0, 0.2)
            else:
                parameter.normal_(0, 1 if "embed" in key else parameter.shape[1] ** -0.5)
    return model.float().eval()


def open_model(model: Any, directory: Path) -> Checkpoint:
    model.save_pretrained(directory)
    return open_checkpoint(directory)


def logits_of(model: Any, tokens: list[int]) -> npt.NDArray[np.float32]:
    with torch.inference_mode():
        return model(torch.tensor([tokens])).logits[0].float().numpy()


def hidden_of(model: Any, tokens: list[int]) -> npt.NDArray[np.float32]:
    with torch.inference_mode():
        return model.model(torch.tensor([tokens])).last_hidden_state[0].float().numpy()


def random_tokens(seed: int, length: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, SIZES["vocab_size"], size=length).tolist()
