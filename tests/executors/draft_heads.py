"""Random draft heads in the published layout, on disk, and what they compute in plain torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from trimtab.models.spec import ModelSpec

HEADS, KV_HEADS, HEAD_DIM, INNER = 4, 2, 16, 72
THETA, EPS = 10_000.0, 1e-5


def config_of(target: ModelSpec, hidden: int, draft_vocab: int, **changes: Any) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLMEagle3"],
        "model_type": "llama",
        "hidden_size": hidden,
        "target_hidden_size": target.hidden_size,
        "intermediate_size": INNER,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "num_hidden_layers": 1,
        "hidden_act": "silu",
        "rms_norm_eps": EPS,
        "rope_theta": THETA,
        "max_position_embeddings": 2048,
        "vocab_size": target.vocab_size,
        "draft_vocab_size": draft_vocab,
        "tie_word_embeddings": False,
        "eagle_aux_hidden_state_layer_ids": [0, 1, 2],
    } | changes


def tensors_of(config: dict[str, Any], embeddings: bool, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def matrix(rows: int, cols: int, scale: float = 1.0) -> Tensor:
        return torch.randn(rows, cols, generator=generator) * (scale * cols**-0.5)

    def norm() -> Tensor:
        return 1 + torch.randn(hidden, generator=generator) / 5

    hidden, vocab, count = config["hidden_size"], config["vocab_size"], config["draft_vocab_size"]
    width, kv_width = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    features = 3 * config["target_hidden_size"]
    tensors = {
        "fc.weight": matrix(hidden, features),
        "midlayer.hidden_norm.weight": norm(),
        "midlayer.input_layernorm.weight": norm(),
        "midlayer.post_attention_layernorm.weight": norm(),
        "midlayer.self_attn.q_proj.weight": matrix(width, 2 * hidden),
        "midlayer.self_attn.k_proj.weight": matrix(kv_width, 2 * hidden),
        "midlayer.self_attn.v_proj.weight": matrix(kv_width, 2 * hidden),
        "midlayer.self_attn.o_proj.weight": matrix(hidden, width),
        "midlayer.mlp.gate_proj.weight": matrix(INNER, hidden),
        "midlayer.mlp.up_proj.weight": matrix(INNER, hidden),
        "midlayer.mlp.down_proj.weight": matrix(hidden, INNER),
        "norm.weight": norm(),
        "lm_head.weight": matrix(count, hidden, scale=8.0),
    }
    if embeddings:
        tensors["embed_tokens.weight"] = torch.randn(vocab, hidden, generator=generator)
    if count != vocab:
        chosen = torch.randperm(vocab, generator=generator)[:count].sort().values
        tensors["d2t"] = chosen - torch.arange(count)
        mask = torch.zeros(vocab, dtype=torch.bool)
        mask[chosen] = True
        tensors["t2d"] = mask
    return tensors


def write_head(directory: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    save_file(
        {name: t.contiguous() for name, t in tensors.items()}, directory / "model.safetensors"
    )
    return directory


class ReferenceHead:
    """One sequence, float32, every key and value kept."""

    def __init__(self, config: dict[str, Any], tensors: dict[str, Tensor], embeds: Tensor) -> None:
        self.config, self.tensors = config, tensors
        self.embeds = tensors.get("embed_tokens.weight", embeds)
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []

    def norm(self, x: Tensor, name: str) -> Tensor:
        weight = self.tensors[f"{name}.weight"]
        return F.rms_norm(x, weight.shape, weight, EPS)

    def rotate(self, x: Tensor, position: int) -> Tensor:
        half = HEAD_DIM // 2
        angles = position * THETA ** (-torch.arange(half, dtype=torch.float64) / half)
        cos, sin = angles.cos().float(), angles.sin().float()
        first, second = x[..., :half], x[..., half:]
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)

    def step(self, token: int, given: Tensor) -> tuple[Tensor, Tensor]:
        """Logits over the target's vocabulary, and the hidden state, at the next position; `given`
        is features or a hidden state. Positions below it are those of the steps before."""
        w = {name.removesuffix(".weight"): tensor for name, tensor in self.tensors.items()}
        position = len(self.keys)
        x = w["fc"] @ given if len(given) == w["fc"].shape[1] else given
        normed = self.norm(x, "midlayer.hidden_norm")
        if self.config.get("norm_before_residual"):
            x = normed
        both = torch.cat([self.norm(self.embeds[token], "midlayer.input_layernorm"), normed])
        q, k, v = (
            (w[f"midlayer.self_attn.{name}_proj"] @ both).view(-1, HEAD_DIM) for name in "qkv"
        )
        self.keys.append(self.rotate(k, position))
        self.values.append(v)
        keys, values = torch.stack(self.keys), torch.stack(self.values)
        outs = []
        for head, query in enumerate(self.rotate(q, position)):
            own = head * KV_HEADS // HEADS
            weights = (keys[:, own] @ query * HEAD_DIM**-0.5).softmax(0)
            outs.append(weights @ values[:, own])
        x = x + w["midlayer.self_attn.o_proj"] @ torch.cat(outs)
        m = self.norm(x, "midlayer.post_attention_layernorm")
        m = F.silu(w["midlayer.mlp.gate_proj"] @ m) * (w["midlayer.mlp.up_proj"] @ m)
        x = x + w["midlayer.mlp.down_proj"] @ m
        own = w["lm_head"] @ self.norm(x, "norm")
        if "d2t" not in self.tensors:
            return own, x
        logits = torch.full((self.config["vocab_size"],), float("-inf"))
        logits[torch.arange(len(own)) + self.tensors["d2t"]] = own
        return logits, x

    def forget(self, position: int) -> None:
        """Keep positions below it."""
        del self.keys[position:], self.values[position:]

    def run(self, tokens: Sequence[int], given: Tensor) -> tuple[Tensor, Tensor]:
        steps = [self.step(token, row) for token, row in zip(tokens, given, strict=True)]
        return torch.stack([s[0] for s in steps]), torch.stack([s[1] for s in steps])
