"""config.json as the publishers wrote it (transformers 4), and every way to get it wrong."""

from __future__ import annotations

import math
from typing import Any

import pytest

from trimtab.errors import CheckpointError
from trimtab.models.registry import FAMILIES, model_spec
from trimtab.models.spec import LayerSpec

LLAMA_31_8B: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009],
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 14336,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.42.3",
    "use_cache": True,
    "vocab_size": 128256,
}
MISTRAL_7B_V01: dict[str, Any] = {
    "architectures": ["MistralForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "model_type": "mistral",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.34.0.dev0",
    "use_cache": True,
    "vocab_size": 32000,
}
QWEN25_7B: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "hidden_act": "silu",
    "hidden_size": 3584,
    "initializer_range": 0.02,
    "intermediate_size": 18944,
    "max_position_embeddings": 32768,
    "max_window_layers": 28,
    "model_type": "qwen2",
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 131072,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.43.1",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 152064,
}
PHI_35_MINI: dict[str, Any] = {
    "_name_or_path": "Phi-3.5-mini-instruct",
    "architectures": ["Phi3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"},
    "bos_token_id": 1,
    "embd_pdrop": 0.0,
    "eos_token_id": 32000,
    "hidden_act": "silu",
    "hidden_size": 3072,
    "initializer_range": 0.02,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "model_type": "phi3",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "original_max_position_embeddings": 4096,
    "pad_token_id": 32000,
    "resid_pdrop": 0.0,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "long_factor": [1.0 + i for i in range(48)],
        "short_factor": [1.0] * 48,
        "type": "longrope",
    },
    "rope_theta": 10000.0,
    "sliding_window": 262144,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.43.3",
    "use_cache": True,
    "vocab_size": 32064,
}
GEMMA2_2B: dict[str, Any] = {
    "architectures": ["Gemma2ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attn_logit_softcapping": 50.0,
    "bos_token_id": 2,
    "cache_implementation": "hybrid",
    "eos_token_id": 1,
    "final_logit_softcapping": 30.0,
    "head_dim": 256,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 2304,
    "initializer_range": 0.02,
    "intermediate_size": 9216,
    "max_position_embeddings": 8192,
    "model_type": "gemma2",
    "num_attention_heads": 8,
    "num_hidden_layers": 26,
    "num_key_value_heads": 4,
    "pad_token_id": 0,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-06,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "torch_dtype": "float32",
    "transformers_version": "4.42.4",
    "use_cache": True,
    "vocab_size": 256000,
}
GEMMA3_4B: dict[str, Any] = {
    "architectures": ["Gemma3ForConditionalGeneration"],
    "boi_token_index": 255999,
    "eoi_token_index": 256000,
    "eos_token_id": [1, 106],
    "image_token_index": 262144,
    "initializer_range": 0.02,
    "mm_tokens_per_image": 256,
    "model_type": "gemma3",
    "text_config": {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    },
    "torch_dtype": "bfloat16",
    "transformers_version": "4.50.0.dev0",
    "vision_config": {"hidden_size": 1152, "model_type": "siglip_vision_model"},
}
PUBLISHED = [LLAMA_31_8B, MISTRAL_7B_V01, QWEN25_7B, PHI_35_MINI, GEMMA2_2B, GEMMA3_4B]


def test_llama_3_1() -> None:
    spec = model_spec(LLAMA_31_8B)
    assert spec.head_dim == 128
    assert spec.max_context == 131072
    assert spec.eos_token_ids == (128001, 128008, 128009)
    fast, slow = spec.ropes[0].inv_freq[0], spec.ropes[0].inv_freq[-1]
    assert fast == 1.0  # short wavelengths are kept, the longest are stretched by the factor
    assert slow == pytest.approx(500000 ** (-126 / 128) / 8, rel=1e-12)


def test_mistral_window_and_null_window() -> None:
    assert model_spec(MISTRAL_7B_V01).layers == (LayerSpec(sliding_window=4096),) * 32
    without = {**MISTRAL_7B_V01, "sliding_window": None}
    assert model_spec(without).layers == (LayerSpec(),) * 32
    absent = {k: v for k, v in MISTRAL_7B_V01.items() if k != "sliding_window"}
    assert model_spec(absent).layers[0].sliding_window == 4096
    assert model_spec(MISTRAL_7B_V01, max_context=4096).layers[0].sliding_window == 0


def test_qwen_2_5_windows() -> None:
    assert model_spec(QWEN25_7B).layers == (LayerSpec(),) * 28
    windows = {"use_sliding_window": True, "sliding_window": 8192, "max_window_layers": 20}
    layers = model_spec({**QWEN25_7B, **windows}).layers
    assert [layer.sliding_window for layer in layers] == [0] * 20 + [8192] * 8
    explicit = ["sliding_attention"] + ["full_attention"] * 27
    layers = model_spec({**QWEN25_7B, **windows, "layer_types": explicit}).layers
    assert [layer.sliding_window for layer in layers] == [8192] + [0] * 27
    with pytest.raises(CheckpointError, match=r"layer_types\[0\] is sliding_attention, but"):
        model_spec({**QWEN25_7B, "layer_types": explicit})


def test_phi_3_5_has_two_ropes_and_the_context_decides() -> None:
    long, short = model_spec(PHI_35_MINI), model_spec(PHI_35_MINI, max_context=4096)
    base = [10000.0 ** (-i / 48) for i in range(48)]
    assert short.ropes[0].inv_freq == pytest.approx(base)
    assert long.ropes[0].inv_freq == pytest.approx([f / (1 + i) for i, f in enumerate(base)])
    amplitude = math.sqrt(1 + math.log(32) / math.log(4096))
    assert long.ropes[0].amplitude == short.ropes[0].amplitude == pytest.approx(amplitude)
    assert (long.max_context, short.max_context) == (131072, 4096)
    assert long.layers[0].sliding_window == 0  # wider than the context
    for older_name in ("su", "yarn"):
        scaling = {**PHI_35_MINI["rope_scaling"], "type": older_name}
        assert model_spec({**PHI_35_MINI, "rope_scaling": scaling}).ropes == long.ropes


def test_gemma_2() -> None:
    spec = model_spec(GEMMA2_2B)
    assert [layer.sliding_window for layer in spec.layers] == [4096, 0] * 13
    assert (spec.attention_softcap, spec.logits_softcap) == (50.0, 30.0)
    assert spec.attention_scale == 1 / 16
    assert spec.tied_embeddings
    assert spec.activation == "gelu_tanh"
    off = model_spec({**GEMMA2_2B, "attn_logit_softcapping": None})
    assert (off.attention_softcap, off.logits_softcap) == (0.0, 30.0)


def test_gemma_3_multimodal_leaves_much_unsaid() -> None:
    spec = model_spec(GEMMA3_4B)
    assert (spec.hidden_size, spec.num_heads, spec.num_kv_heads, spec.head_dim) == (2560, 8, 4, 256)
    assert spec.vocab_size == 262208
    assert [bool(layer.sliding_window) for layer in spec.layers[:7]] == [True] * 5 + [False, True]
    assert [layer.rope for layer in spec.layers[:7]] == [1] * 5 + [0, 1]
    assert spec.ropes[0].inv_freq[0] == 1 / 8
    assert spec.ropes[1].inv_freq[:2] == (1.0, pytest.approx(10000 ** (-1 / 128)))
    assert spec.eos_token_ids == (1, 106)
    text = {**GEMMA3_4B["text_config"], "sliding_window_pattern": 2, "rope_local_base_freq": 5e3}
    spec = model_spec({**GEMMA3_4B, "text_config": text})
    assert [layer.rope for layer in spec.layers] == [1, 0] * 17
    assert spec.ropes[1].inv_freq[1] == pytest.approx(5000 ** (-1 / 128))


@pytest.mark.parametrize(
    "missing",
    [
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "rms_norm_eps",
        "max_position_embeddings",
        "architectures",
    ],
)
@pytest.mark.parametrize("config", PUBLISHED[:-1], ids=lambda c: c["model_type"])
def test_a_missing_key_is_named(config: dict[str, Any], missing: str) -> None:
    with pytest.raises(CheckpointError, match=f"^config.json: {missing} is missing$"):
        model_spec({k: v for k, v in config.items() if k != missing})


@pytest.mark.parametrize(
    ("changes", "culprit"),
    [
        ({"architectures": ["MixtralForCausalLM"]}, "unknown architecture 'MixtralForCausalLM'"),
        ({"architectures": []}, "architectures = []"),
        ({"architectures": "LlamaForCausalLM"}, "architectures = 'LlamaForCausalLM'"),
        ({"architectures": [None]}, "architectures = [None]"),
        ({"hidden_size": "4096"}, "hidden_size = '4096'"),
        ({"hidden_size": 0}, "hidden_size = 0"),
        ({"hidden_size": -4096}, "hidden_size = -4096"),
        ({"hidden_size": True}, "hidden_size = True"),
        ({"hidden_size": 4096.5}, "hidden_size = 4096.5"),
        ({"hidden_size": 10**30}, "hidden_size = 1000"),
        ({"hidden_size": 4095}, "hidden_size = 4095"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers = 1000000000"),
        ({"num_key_value_heads": 5}, "num_key_value_heads = 5"),
        ({"num_key_value_heads": 64}, "num_key_value_heads = 64"),
        ({"head_dim": 127}, "head_dim = 127"),
        ({"rms_norm_eps": 0}, "rms_norm_eps = 0"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps = nan"),
        ({"rms_norm_eps": 10**400}, "rms_norm_eps = 1000"),
        ({"hidden_act": "relu2"}, "hidden_act = 'relu2'"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ({"attention_bias": 1}, "attention_bias = 1"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings = 'yes'"),
        ({"eos_token_id": "</s>"}, "eos_token_id = '</s>'"),
        ({"num_local_experts": 8}, "'num_local_experts' = 8"),
        ({"attn_logit_softcapping": 50.0}, "'attn_logit_softcapping' = 50.0"),
        ({"logit_scale": 0.0625}, "'logit_scale' = 0.0625"),
        ({"attention_multiplier": 0.5}, "'attention_multiplier' = 0.5"),
        ({"sliding_window": 4096}, "'sliding_window' = 4096"),
        ({"evil\nkey": "x" * 10_000}, "'evil\\nkey' = 'xxx"),
        ({"compression_config": {"quant_method": "compressed-tensors"}}, "compressed-tensors"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_cannot_be_served_is_named(changes: dict[str, Any], culprit: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        model_spec({**LLAMA_31_8B, **changes})
    message = str(caught.value)
    assert culprit in message
    assert message.startswith("config.json: ")
    assert "\n" not in message
    assert len(message) < 400


@pytest.mark.parametrize(
    ("config", "changes", "culprit"),
    [
        (MISTRAL_7B_V01, {"num_key_value_heads": None}, "num_key_value_heads is missing"),
        (MISTRAL_7B_V01, {"sliding_window": 0}, "sliding_window = 0"),
        (MISTRAL_7B_V01, {"layer_types": ["full_attention"] * 32}, "'layer_types'"),
        (QWEN25_7B, {"layer_types": ["full_attention"] * 27}, "layer_types has 27 entries"),
        (QWEN25_7B, {"layer_types": ["chunked_attention"] * 28}, "'chunked_attention'"),
        (QWEN25_7B, {"layer_types": "full_attention"}, "layer_types = 'full_attention'"),
        (QWEN25_7B, {"dual_chunk_attention_config": {"chunk_size": 1}}, "dual_chunk"),
        (PHI_35_MINI, {"interpolate_factor": 2}, "interpolate_factor = 2"),
        (PHI_35_MINI, {"partial_rotary_factor": 0.7}, "rotary dimension of 67"),
        (PHI_35_MINI, {"partial_rotary_factor": 1.5}, "rotary dimension of 144"),
        (GEMMA2_2B, {"query_pre_attn_scalar": None}, "query_pre_attn_scalar is missing"),
        (GEMMA2_2B, {"hidden_act": "relu"}, "hidden_act = 'relu'"),
        (GEMMA2_2B, {"hidden_activation": "gelu"}, "hidden_activation = 'gelu'"),
        (GEMMA2_2B, {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        (GEMMA2_2B, {"sliding_window": None}, "there is no sliding_window"),
        (GEMMA3_4B, {"text_config": None}, "text_config is missing"),
        (GEMMA3_4B, {"text_config": []}, "text_config = []"),
        (GEMMA3_4B, {"text_config": {"depth": 9}}, "text_config: 'depth' = 9"),
        (GEMMA3_4B, {"audio_config": {"depth": 9}}, "'audio_config'"),
    ],
    ids=lambda value: str(value)[:40] if not isinstance(value, dict) or len(value) < 3 else "",
)
def test_what_one_family_cannot_serve_is_named(
    config: dict[str, Any], changes: dict[str, Any], culprit: str
) -> None:
    with pytest.raises(CheckpointError) as caught:
        model_spec({**config, **changes})
    assert culprit in str(caught.value)
    assert "\n" not in str(caught.value)


def test_keys_that_are_switched_off_pass() -> None:
    off = {"num_experts": None, "use_mup": False, "moe": {}, "unsloth_version": "2026.1"}
    assert model_spec({**LLAMA_31_8B, **off}) == model_spec(LLAMA_31_8B)


def test_token_ids_beyond_the_vocabulary_are_left_out() -> None:
    spec = model_spec({**MISTRAL_7B_V01, "eos_token_id": [2, -1, 99_999], "bos_token_id": -1})
    assert spec.eos_token_ids == (2,)
    assert spec.bos_token_id is None


@pytest.mark.parametrize("config", PUBLISHED, ids=lambda c: c["architectures"][0])
def test_tables_hold_every_tensor_of_the_spec_once(config: dict[str, Any]) -> None:
    """Rows of fused tensors tile them; nothing else shares a stored tensor."""
    spec = model_spec(config)
    table = FAMILIES[spec.architecture].tensors(spec)
    by_stored: dict[str, list[tuple[int, int, int | None]]] = {}
    for source in table.values():
        rows = (source.first_row, source.first_row + source.shape[0], source.fused_rows)
        by_stored.setdefault(source.name, []).append(rows)
    for parts in by_stored.values():
        position = 0
        for first, last, total in sorted(parts):
            assert first == position
            assert total is None or len(parts) > 1
            position = last
        assert parts[0][2] in (None, position)
    assert len([name for name in table if name.startswith("layers.0.")]) == len(
        [name for name in table if name.startswith("layers.1.")]
    )
