"""Every family, as transformers saves it: the spec, and every tensor bit for bit."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch

from trimtab.checkpoints import open_checkpoint
from trimtab.checkpoints.base import StoredTensor

DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}

PROJECTIONS = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
LLAMA_NORMS = {"attn_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
GEMMA_NORMS = {
    "attn_norm": "input_layernorm",
    "post_attn_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "post_mlp_norm": "post_feedforward_layernorm",
}


def expected_tensors(name: str, model: Any) -> dict[str, torch.Tensor]:
    """Canonical name -> the model's own parameter, written out independently of the tables."""
    state, config = model.state_dict(), model.config
    result = {"embed": state["model.embed_tokens.weight"], "final_norm": state["model.norm.weight"]}
    if not config.tie_word_embeddings:
        result["lm_head"] = state["lm_head.weight"]
    norms = GEMMA_NORMS if name.startswith("gemma") else LLAMA_NORMS
    for i in range(config.num_hidden_layers):
        theirs, ours = f"model.layers.{i}.", f"layers.{i}."
        for norm, stored in norms.items():
            result[ours + norm] = state[f"{theirs}{stored}.weight"]
        for norm in ("q_norm", "k_norm"):
            if f"{theirs}self_attn.{norm}.weight" in state:
                result[ours + norm] = state[f"{theirs}self_attn.{norm}.weight"]
        if name.startswith("phi3"):
            result.update(_phi3_layer(state, config, theirs, ours))
            continue
        for projection, stored in PROJECTIONS.items():
            result[ours + projection] = state[f"{theirs}{stored}.weight"]
            if f"{theirs}{stored}.bias" in state:
                result[f"{ours}{projection}_bias"] = state[f"{theirs}{stored}.bias"]
    return result


def _phi3_layer(
    state: dict[str, torch.Tensor], config: Any, theirs: str, ours: str
) -> dict[str, torch.Tensor]:
    kv = config.num_key_value_heads * config.hidden_size // config.num_attention_heads
    parts = state[f"{theirs}self_attn.qkv_proj.weight"].split([config.hidden_size, kv, kv])
    gate, up = state[f"{theirs}mlp.gate_up_proj.weight"].chunk(2)
    o, down = state[f"{theirs}self_attn.o_proj.weight"], state[f"{theirs}mlp.down_proj.weight"]
    values = [*parts, o, gate, up, down]
    names = ("q", "k", "v", "o", "gate", "up", "down")
    return {ours + name: value for name, value in zip(names, values, strict=True)}


def as_stored(tensor: torch.Tensor) -> np.ndarray:
    if tensor.dtype == torch.bfloat16:
        return tensor.contiguous().view(torch.int16).numpy().view(np.uint16)
    return tensor.numpy()


def assert_same(ours: StoredTensor, theirs: torch.Tensor, dtype: str) -> None:
    expected = as_stored(theirs)
    assert ours.dtype == dtype
    assert ours.data.dtype == expected.dtype
    assert ours.data.shape == expected.shape
    assert ours.data.tobytes() == np.ascontiguousarray(expected).tobytes()
    assert ours.data.flags.c_contiguous
    assert ours.data.flags.aligned
    assert not ours.data.flags.writeable
    assert np.array_equal(ours.to_float32(), theirs.float().numpy())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", tiny_models.FAMILIES)
def test_every_tensor_is_the_models_own(name: str, dtype: str, tmp_path: Path) -> None:
    shard = {"f32": "1GB", "f16": "40KB", "bf16": "25KB"}[dtype]
    model = tiny_models.build(name, DTYPES[dtype])
    checkpoint = open_checkpoint(tiny_models.save(model, tmp_path, shard))
    assert (tmp_path / "model.safetensors.index.json").exists() == (dtype != "f32")
    expected = expected_tensors(name, model)
    assert set(checkpoint.names()) == set(expected)
    for tensor_name, theirs in expected.items():
        assert_same(checkpoint.tensor(tensor_name), theirs, dtype)


@pytest.mark.parametrize("name", ["llama", "phi3", "gemma2", "gemma3"])
@pytest.mark.parametrize("tied", [True, False])
def test_tied_and_untied_embeddings(name: str, tied: bool, tmp_path: Path) -> None:
    model = tiny_models.build(name, tie_word_embeddings=tied)
    checkpoint = open_checkpoint(tiny_models.save(model, tmp_path))
    assert checkpoint.spec.tied_embeddings == tied
    assert ("lm_head" in checkpoint.names()) == (not tied)
    if not tied:
        assert_same(checkpoint.tensor("lm_head"), model.lm_head.weight.detach(), "f32")


@pytest.mark.parametrize("name", tiny_models.FAMILIES)
def test_the_spec_says_what_the_model_is(name: str, tmp_path: Path) -> None:
    model = tiny_models.build(name)
    spec = open_checkpoint(tiny_models.save(model, tmp_path)).spec
    config, attention = model.config, model.model.layers[0].self_attn
    assert spec.architecture == type(model).__name__
    assert spec.vocab_size == config.vocab_size
    assert spec.hidden_size == config.hidden_size
    assert spec.intermediate_size == config.intermediate_size
    assert spec.num_heads == config.num_attention_heads
    assert spec.num_kv_heads == config.num_key_value_heads
    assert spec.head_dim == attention.head_dim
    assert spec.num_layers == config.num_hidden_layers
    assert spec.norm_eps == config.rms_norm_eps
    assert spec.max_context == config.max_position_embeddings
    assert spec.attention_scale == pytest.approx(attention.scaling, rel=1e-12)
    assert spec.tied_embeddings == config.tie_word_embeddings
    assert spec.bos_token_id == 1
    assert spec.eos_token_ids == ((2, 5) if name == "llama-3.1" else (2,))
    assert [layer.sliding_window for layer in spec.layers] == expected_windows(config)
    gemma = name.startswith("gemma")
    assert spec.activation == ("gelu_tanh" if gemma else "silu")
    assert spec.norm_weight_offset == (1.0 if gemma else 0.0)
    assert spec.post_norms == gemma
    assert spec.embedding_scale == (math.sqrt(48) if gemma else 1.0)
    assert spec.attention_softcap == (50.0 if name == "gemma2" else 0.0)
    assert spec.logits_softcap == (30.0 if name == "gemma2" else 0.0)
    assert spec.qk_norm == (name in ("qwen3", "gemma3"))
    assert spec.qkv_bias == (name in ("llama-biases", "qwen2", "qwen2-windows"))
    assert spec.output_bias == spec.mlp_bias == (name == "llama-biases")


def expected_windows(config: Any) -> list[int]:
    window = getattr(config, "sliding_window", None) or 0
    types = getattr(config, "layer_types", None)
    if types is None:
        return [window] * config.num_hidden_layers
    return [window if kind == "sliding_attention" else 0 for kind in types]


@pytest.mark.parametrize("name", tiny_models.FAMILIES)
def test_ropes_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    model = tiny_models.build(name)
    checkpoint = open_checkpoint(
        tiny_models.save(model, tmp_path), max_context=64 if name == "phi3-longrope" else 0
    )
    spec, module = checkpoint.spec, model.model.rotary_emb
    kinds = getattr(model.config, "layer_types", None) or [None] * spec.num_layers
    for layer, kind in zip(spec.layers, kinds, strict=True):
        rope = spec.ropes[layer.rope]
        prefix = f"{kind}_" if name == "gemma3" else ""
        inv_freq = getattr(module, f"{prefix}inv_freq").double().numpy()
        np.testing.assert_allclose(rope.inv_freq, inv_freq, rtol=5e-7)
        assert rope.amplitude == pytest.approx(getattr(module, f"{prefix}attention_scaling"))


def test_longrope_is_chosen_by_the_context_that_is_served(tmp_path: Path) -> None:
    model = tiny_models.build("phi3-longrope")
    tiny_models.save(model, tmp_path)
    module = model.model.rotary_emb
    x = torch.zeros(1, 1, 8)
    for max_context, longest in ((0, 256), (256, 256), (65, 65), (64, 64), (10, 10)):
        spec = open_checkpoint(tmp_path, max_context).spec
        module(x, torch.tensor([[longest - 1]]))  # lets transformers choose for that length
        np.testing.assert_allclose(spec.ropes[0].inv_freq, module.inv_freq.numpy(), rtol=5e-7)
        assert spec.max_context == longest
        assert spec.ropes[0].rotary_dim == 6
        assert spec.ropes[0].amplitude == pytest.approx(module.attention_scaling)


def test_multimodal_gemma_3_gives_its_text_model(tmp_path: Path) -> None:
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    text = tiny_models.build("gemma3")
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    vision.update(num_attention_heads=2, image_size=28, patch_size=14)
    config = Gemma3Config(
        text_config=text.config.to_dict(), vision_config=vision, mm_tokens_per_image=4
    )
    config.eos_token_id = [1, 99]
    model = Gemma3ForConditionalGeneration(config)
    model.model.language_model.load_state_dict(text.model.state_dict())
    checkpoint = open_checkpoint(tiny_models.save(model, tmp_path))
    assert checkpoint.spec.architecture == "Gemma3ForConditionalGeneration"
    assert set(checkpoint.spec.eos_token_ids) >= {1, 99}
    for name, theirs in expected_tensors("gemma3", text).items():
        assert_same(checkpoint.tensor(name), theirs, "f32")
