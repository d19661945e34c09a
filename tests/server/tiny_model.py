"""A real model directory, some kilobytes small: random weights, bytes as tokens, a template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from fake_engine import EOS, TEMPLATE, VOCAB_SIZE, byte_tokenizer
from safetensors.numpy import save_file

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 512,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
    "eos_token_id": EOS,
    "torch_dtype": "float32",
}


def write_tiny_model(
    directory: Path, chat_template: str | None = TEMPLATE, nan_token: int | None = None
) -> Path:
    """A prompt with `nan_token` in it gives logits that are not finite."""
    directory.mkdir(parents=True)
    generator = np.random.default_rng(7)
    hidden, inner = CONFIG["hidden_size"], CONFIG["intermediate_size"]

    def matrix(rows: int, columns: int) -> Any:
        return generator.standard_normal((rows, columns), dtype=np.float32) * 0.2

    ones = np.ones(hidden, np.float32)
    tensors = {"model.embed_tokens.weight": matrix(VOCAB_SIZE, hidden), "model.norm.weight": ones}
    for i in range(CONFIG["num_hidden_layers"]):
        name = f"model.layers.{i}"
        tensors[f"{name}.input_layernorm.weight"] = ones
        tensors[f"{name}.post_attention_layernorm.weight"] = ones
        for part in "qkvo":
            tensors[f"{name}.self_attn.{part}_proj.weight"] = matrix(hidden, hidden)
        tensors[f"{name}.mlp.gate_proj.weight"] = matrix(inner, hidden)
        tensors[f"{name}.mlp.up_proj.weight"] = matrix(inner, hidden)
        tensors[f"{name}.mlp.down_proj.weight"] = matrix(hidden, inner)
    config = CONFIG | {"tie_word_embeddings": nan_token is None}
    if nan_token is not None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
        tensors["model.embed_tokens.weight"][nan_token] = np.nan
    save_file(tensors, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(config))
    byte_tokenizer()._backend.save(str(directory / "tokenizer.json"))
    tokenizer_config = {"eos_token": "<eos>"}
    if chat_template is not None:
        tokenizer_config["chat_template"] = chat_template
    (directory / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
    return directory
