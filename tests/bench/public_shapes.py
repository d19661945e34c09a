"""Public model configs as ModelSpecs."""

from __future__ import annotations

from trimtab.models.spec import LayerSpec, ModelSpec, RopeSpec

QWEN3_06B = ModelSpec(
    architecture="Qwen3ForCausalLM",
    vocab_size=151936,
    hidden_size=1024,
    intermediate_size=3072,
    num_heads=16,
    num_kv_heads=8,
    head_dim=128,
    layers=(LayerSpec(),) * 28,
    ropes=(RopeSpec((1.0,) * 64),),
    norm_eps=1e-6,
    max_context=40960,
    qk_norm=True,
    tied_embeddings=True,
)
