"""GGUF files of transformers models, written by the gguf package as llama.cpp's converter does."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "Phi3ForCausalLM": "phi3",
    "Gemma2ForCausalLM": "gemma2",
    "Gemma3ForCausalLM": "gemma3",
}
Quantization = gguf.GGMLQuantizationType


def paired(rows: np.ndarray, num_heads: int) -> np.ndarray:
    """Rows of a head from (first halves, second halves) to pairs."""
    halves = rows.reshape(num_heads, 2, -1, *rows.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows.shape)


def tensors(model: Any) -> Iterator[tuple[str, np.ndarray]]:
    """GGUF name -> float32, values changed where the format wants them so."""
    config = model.config
    architecture = ARCHITECTURES[type(model).__name__]
    kind = next(k for k, v in gguf.MODEL_ARCH_NAMES.items() if v == architecture)
    names = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
    tied = config.tie_word_embeddings
    for name, value in model.state_dict().items():
        if name == "lm_head.weight" and tied:
            continue
        place, _, suffix = name.rpartition(".")
        data = value.float().numpy()
        if architecture == "llama" and place.endswith((".q_proj", ".k_proj")):
            heads = config.num_attention_heads
            data = paired(data, heads if place.endswith("q_proj") else config.num_key_value_heads)
        if architecture.startswith("gemma") and place.endswith("norm"):
            data = data + np.float32(1)
        yield f"{names.get_name(place)}.{suffix}", data
    yield from rope_tensors(model)


def rope_tensors(model: Any) -> Iterator[tuple[str, np.ndarray]]:
    rope = getattr(model.config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "llama3":
        plain = 1 / rope["rope_theta"] ** (torch.arange(0, 8, 2).double() / 8)
        yield "rope_freqs.weight", (plain / model.model.rotary_emb.inv_freq).float().numpy()
    if rope.get("rope_type") == "longrope":
        for length in ("long", "short"):
            factors = np.array(rope[f"{length}_factor"], np.float32)
            yield f"rope_factors_{length}.weight", factors


def head_dim(model: Any) -> int:
    return int(model.model.layers[0].self_attn.head_dim)


def add_metadata(writer: gguf.GGUFWriter, model: Any) -> None:
    config = model.config
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_key_length(head_dim(model))
    writer.add_value_length(head_dim(model))
    writer.add_file_type(0)
    writer.add_quantization_version(2)
    if getattr(config, "sliding_window", None) and not hasattr(config, "use_sliding_window"):
        writer.add_sliding_window(config.sliding_window)
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        if getattr(config, name, None):
            getattr(writer, f"add_{name}")(getattr(config, name))
    add_rope(writer, model)


def add_rope(writer: gguf.GGUFWriter, model: Any) -> None:
    config = model.config
    rope = config.rope_parameters
    if "full_attention" in rope:
        writer.add_rope_freq_base_swa(rope["sliding_attention"]["rope_theta"])
        rope = rope["full_attention"]
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_rope_dimension_count(int(head_dim(model) * rope.get("partial_rotary_factor", 1)))
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        writer.add_rope_scaling_yarn_beta_fast(rope["beta_fast"])
    if rope["rope_type"] == "longrope":
        original = rope.get("original_max_position_embeddings", 64)
        factor = config.max_position_embeddings / original
        writer.add_rope_scaling_orig_ctx_len(original)
        writer.add_rope_scaling_attn_factors(math.sqrt(1 + math.log(factor) / math.log(original)))


def no_vocabulary(writer: gguf.GGUFWriter, config: Any) -> None:
    writer.add_tokenizer_model("no_vocab")
    writer.add_bos_token_id(config.bos_token_id)
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    for add, end in zip((writer.add_eos_token_id, writer.add_eot_token_id), ends, strict=False):
        add(end)


def attention_scale(writer: gguf.GGUFWriter, config: Any) -> None:
    """Of models whose scale does not follow from their sizes: llama.cpp knows none."""
    if hasattr(config, "query_pre_attn_scalar"):
        writer.add_attention_scale(config.query_pre_attn_scalar**-0.5)


def write(
    model: Any,
    path: Path,
    kind: str = "F32",
    parts: int = 1,
    add_vocabulary: Callable[[gguf.GGUFWriter, Any], None] = no_vocabulary,
    add_more: Callable[[gguf.GGUFWriter, Any], None] = attention_scale,
) -> Path:
    """Matrices as `kind` as far as their columns allow, vectors as F32. Of several parts, the path
    of the first."""
    items = list(tensors(model))
    limit = -(-len(items) // parts) if parts > 1 else 0
    name = ARCHITECTURES[type(model).__name__]
    writer = gguf.GGUFWriter(path, name, split_max_tensors=limit)
    add_metadata(writer, model)
    add_vocabulary(writer, model.config)
    add_more(writer, model.config)
    block, _ = gguf.GGML_QUANT_SIZES[Quantization[kind]]
    for tensor_name, data in items:
        fits = data.ndim == 2 and data.shape[1] % block == 0
        stored = Quantization[kind] if fits else Quantization.F32
        writer.add_tensor(tensor_name, gguf.quants.quantize(data, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path if parts == 1 else path.with_name(f"{path.stem}-00001-of-{parts:05}.gguf")
