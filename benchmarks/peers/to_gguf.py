"""A Hugging Face checkpoint as GGUF for llama.cpp: `python to_gguf.py MODEL OUT FORMAT`.

Runs in llama.cpp's environment. Format: BF16, F32, or a quantized one of FILE_TYPES. Without a
vocabulary: the benchmarks speak token ids. Families Llama and Qwen3. llama.cpp rotates neighbouring
pairs for Llama, so that q and k rows are reordered for it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import gguf
import llama_cpp as api
import numpy as np

LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
FILE_TYPES = {"Q8_0": 7, "Q4_0": 2, "Q4_K_M": 15}  # llama_ftype


def gguf_name(name: str) -> str:
    outer = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }
    if name in outer:
        return outer[name]
    layer, _, rest = name.removeprefix("model.layers.").partition(".")
    return f"blk.{layer}.{LAYER_NAMES[rest.removesuffix('.weight')]}.weight"


def paired(rows: np.ndarray, num_heads: int) -> np.ndarray:
    """Rows of a head from (first halves, second halves) to pairs."""
    halves = rows.reshape(num_heads, 2, -1, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)


def rope_factors(scaling: dict[str, Any], theta: float, head_dim: int) -> np.ndarray:
    """What llama.cpp divides each frequency by, float32 [head_dim / 2]. Llama 3's scaling only:
    long waves by its factor, short ones by 1, those between by a mixture."""
    if scaling.get("rope_type") != "llama3":
        raise ValueError(f"rope scaling {scaling} is not known here")
    turns = theta ** (-np.arange(0, head_dim, 2) / head_dim) / (2 * np.pi)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    smooth = (scaling["original_max_position_embeddings"] * turns - low) / (high - low)
    smooth = np.clip(smooth, 0, 1)
    return (1 / ((1 - smooth) / scaling["factor"] + smooth)).astype(np.float32)


def stored_bf16(directory: Path) -> dict[str, np.ndarray]:
    """Every tensor as uint16 [shape], mapped. The files are those of make_model.py: all bf16."""
    tensors = {}
    for path in sorted(directory.glob("*.safetensors")):
        data = np.memmap(path, dtype=np.uint8, mode="r")
        length = int(data[:8].view("<u8")[0])
        header = json.loads(bytes(data[8 : 8 + length]))
        header.pop("__metadata__", None)
        for name, entry in header.items():
            if entry["dtype"] != "BF16":
                raise ValueError(f"{name} is {entry['dtype']}, not BF16")
            start, end = (8 + length + offset for offset in entry["data_offsets"])
            tensors[name] = data[start:end].view("<u2").reshape(entry["shape"])
    return tensors


def write(model: Path, out: Path, file_format: str) -> None:
    """The GGUF of the checkpoint's own values, in BF16 or F32."""
    config = json.loads((model / "config.json").read_text())
    arch = {"llama": "llama", "qwen3": "qwen3"}[config["model_type"]]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    writer = gguf.GGUFWriter(out, arch)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    scaling = config.get("rope_scaling")
    if scaling:
        factors = rope_factors(scaling, config["rope_theta"], head_dim)
        writer.add_tensor("rope_freqs.weight", factors)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    bf16 = file_format == "BF16"
    file_type = gguf.LlamaFileType.MOSTLY_BF16 if bf16 else gguf.LlamaFileType.ALL_F32
    writer.add_file_type(file_type)
    for name, values in stored_bf16(model).items():
        if arch == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            values = paired(values, heads if "q_proj" in name else kv_heads)
        if values.ndim == 1 or not bf16:
            wide = (values.astype(np.uint32) << 16).view(np.float32)
            writer.add_tensor(gguf_name(name), wide)
            continue
        raw = np.ascontiguousarray(values).view(np.uint8)
        writer.add_tensor(gguf_name(name), raw, raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    model, out, file_format = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    if file_format not in FILE_TYPES:
        write(model, out, file_format)
        return
    source = out.with_name("BF16.gguf")
    params = api.llama_model_quantize_default_params()
    params.ftype = FILE_TYPES[file_format]
    if api.llama_model_quantize(str(source).encode(), str(out).encode(), params) != 0:
        raise SystemExit(f"llama.cpp cannot quantize {source} to {file_format}")


if __name__ == "__main__":
    main()
