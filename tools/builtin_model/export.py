"""Write a trained model as a directory that Hugging Face transformers, and trimtab, can load."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from model import Llama
from safetensors.torch import save_file
from tokenizer import (
    BOS,
    BOS_ID,
    CHAT_TEMPLATE,
    END,
    END_ID,
    PAD,
    PAD_ID,
    SPECIAL_TOKENS,
)


def config_of(model: Llama) -> dict:
    """The ``config.json`` of a LlamaForCausalLM of the model's shape."""
    shape = model.shape
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.ffn_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": shape.max_positions,
        "rope_theta": shape.rope_theta,
        "rope_scaling": None,
        "rms_norm_eps": shape.norm_eps,
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "tie_word_embeddings": True,
        "bos_token_id": BOS_ID,
        "eos_token_id": END_ID,
        "pad_token_id": PAD_ID,
        "torch_dtype": "bfloat16",
        "use_cache": True,
    }


def tokenizer_config(max_positions: int) -> dict:
    special = {"bos_token": BOS, "eos_token": END, "pad_token": PAD}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **special,
        "additional_special_tokens": [t for t in SPECIAL_TOKENS if t not in special.values()],
        "added_tokens_decoder": {
            str(index): {
                "content": token,
                "lstrip": False,
                "normalized": False,
                "rstrip": False,
                "single_word": False,
                "special": True,
            }
            for index, token in enumerate(SPECIAL_TOKENS)
        },
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_positions,
        "add_bos_token": True,
    }


def write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def export_model(model: Llama, work: Path, out: Path) -> None:
    """Write config, bf16 weights and tokenizer files to ``out``."""
    out.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: tensor.detach().to(torch.bfloat16).contiguous()
        for name, tensor in model.state_dict().items()
    }
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    write_json(out / "config.json", config_of(model))
    write_json(out / "tokenizer_config.json", tokenizer_config(model.shape.max_positions))
    write_json(
        out / "generation_config.json",
        {
            "bos_token_id": BOS_ID,
            "eos_token_id": END_ID,
            "pad_token_id": PAD_ID,
            "do_sample": False,
        },
    )
    write_json(
        out / "special_tokens_map.json", {"bos_token": BOS, "eos_token": END, "pad_token": PAD}
    )
    shutil.copyfile(work / "tokenizer.json", out / "tokenizer.json")


def export_data(work: Path, out: Path) -> None:
    """Copy the held-out text and the task file."""
    out.mkdir(parents=True, exist_ok=True)
    for name in ("heldout.txt", "tasks.jsonl"):
        shutil.copyfile(work / name, out / name)
