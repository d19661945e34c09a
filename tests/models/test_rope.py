"""Every rope scaling against transformers' own functions, and the choices by context length."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from trimtab.errors import CheckpointError, ConfigError
from trimtab.models.registry import model_spec
from trimtab.models.spec import ModelSpec

BASE: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 100,
    "hidden_size": 128,
    "intermediate_size": 100,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 4096,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 2048,
}
SHORT, LONG = [1 + 0.01 * i for i in range(32)], [1 + 0.5 * i for i in range(32)]
LONGROPE = {"rope_type": "longrope", "short_factor": SHORT, "long_factor": LONG}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}

SCALINGS: list[dict[str, Any]] = [
    {"rope_type": "linear", "factor": 2.5},
    {"rope_type": "dynamic", "factor": 4.0},
    LLAMA3,
    {**LLAMA3, "rope_theta": 500_000.0, "factor": 32.0, "original_max_position_embeddings": 512},
    YARN,
    {**YARN, "rope_theta": 1e6, "beta_fast": 16.0, "beta_slow": 2.0},
    {**YARN, "truncate": False},
    {**YARN, "attention_factor": 0.7},
    {**YARN, "mscale": 0.9, "mscale_all_dim": 1.3},
    {**YARN, "mscale": 0.9},
    {**YARN, "factor": 0.5},
    {**YARN, "beta_fast": 1.0, "beta_slow": 1.0},
    {**LONGROPE, "original_max_position_embeddings": 4096},
    {**LONGROPE, "original_max_position_embeddings": 4096, "factor": 16.0},
    {**LONGROPE, "original_max_position_embeddings": 4096, "attention_factor": 1.5},
]


def spec_of(max_context: int = 0, **changes: Any) -> ModelSpec:
    return model_spec({**BASE, **changes}, max_context)


def oracle(scaling: dict[str, Any], seq_len: int | None = None) -> tuple[np.ndarray, float]:
    sizes = {k: v for k, v in BASE.items() if k not in ("architectures", "rms_norm_eps")}
    config = LlamaConfig(**sizes, rope_parameters=dict(scaling))
    inv_freq, amplitude = ROPE_INIT_FUNCTIONS[scaling["rope_type"]](config, None, seq_len=seq_len)
    return inv_freq.double().numpy(), amplitude


@pytest.mark.parametrize("scaling", SCALINGS, ids=str)
def test_scaling_equals_transformers(scaling: dict[str, Any]) -> None:
    inv_freq, amplitude = oracle({"rope_theta": 10_000.0, **scaling})
    rope = spec_of(rope_parameters=scaling).ropes[0]
    np.testing.assert_allclose(rope.inv_freq, inv_freq, rtol=1e-6)
    assert rope.amplitude == pytest.approx(amplitude, rel=1e-12)


@pytest.mark.parametrize("scaling", SCALINGS, ids=str)
def test_both_generations_of_config_mean_the_same(scaling: dict[str, Any]) -> None:
    new = spec_of(rope_parameters={"rope_theta": 12_345.0, **scaling})
    old = {key: value for key, value in scaling.items() if key not in ("rope_type", "rope_theta")}
    old["type"] = scaling["rope_type"]
    theta = scaling.get("rope_theta", 12_345.0)
    assert spec_of(rope_theta=theta, rope_scaling=old).ropes == new.ropes


def test_default_rope() -> None:
    expected = [500_000.0 ** (-i / 32) for i in range(32)]
    for config in (
        {"rope_theta": 500_000.0},
        {"rope_theta": 500_000, "rope_scaling": None},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
        {"rope_scaling": {"type": "default"}, "rope_theta": 5e5},
    ):
        rope = spec_of(**config).ropes[0]
        np.testing.assert_allclose(rope.inv_freq, expected, rtol=1e-14)
        assert rope.amplitude == 1.0
    assert spec_of().ropes[0].inv_freq[1] == pytest.approx(10_000 ** (-1 / 32))


def test_dynamic_takes_the_base_of_the_context_that_is_served() -> None:
    scaling = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10_000.0}
    for max_context, seq_len in ((0, 4096), (100, 4096), (4096, 4096), (9000, 9000)):
        spec = spec_of(max_context, rope_parameters=scaling)
        np.testing.assert_allclose(spec.ropes[0].inv_freq, oracle(scaling, seq_len)[0], rtol=1e-6)
        assert spec.max_context == (max_context or 4096)


def test_longrope_takes_the_long_factors_beyond_the_original_context() -> None:
    scaling = {**LONGROPE, "rope_theta": 10_000.0, "original_max_position_embeddings": 1000}
    for max_context in (0, 4096, 1001, 1000, 5):
        spec = spec_of(max_context, rope_parameters=scaling)
        inv_freq, amplitude = oracle(scaling, max_context or 4096)
        np.testing.assert_allclose(spec.ropes[0].inv_freq, inv_freq, rtol=1e-6)
        assert spec.ropes[0].amplitude == pytest.approx(amplitude, rel=1e-12)


def test_yarn_serves_the_stretched_context() -> None:
    """As Qwen 2.5 documents it: max_position_embeddings stays at the trained length."""
    scaling = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}
    assert spec_of(rope_scaling=scaling).max_context == 16384
    assert spec_of(1000, rope_scaling=scaling).max_context == 1000


@pytest.mark.parametrize(
    ("scaling", "limit"),
    [
        (None, 4096),
        ({"type": "linear", "factor": 2.0}, 8192),
        ({"type": "dynamic", "factor": 2.0}, 8192),
        ({**YARN, "original_max_position_embeddings": 4096}, 16384),
        (LLAMA3, 4096),
    ],
)
def test_a_longer_context_than_the_model_has_is_refused(scaling: Any, limit: int) -> None:
    assert spec_of(limit, rope_scaling=scaling).max_context == limit
    with pytest.raises(ConfigError, match=f"at most {limit} tokens"):
        spec_of(limit + 1, rope_scaling=scaling)


@pytest.mark.parametrize(
    ("scaling", "culprit"),
    [
        ({"rope_type": "spiral"}, "unknown rope type 'spiral'"),
        ({"type": "mrope", "mrope_section": [1, 2]}, "unknown rope type 'mrope'"),
        ({"rope_type": "linear"}, "factor is missing"),
        ({"rope_type": "linear", "factor": 0}, "factor = 0"),
        ({"rope_type": "linear", "factor": "2"}, "factor = '2'"),
        ({"rope_type": "linear", "factor": 2.0, "alpha": 3}, "'alpha' = 3"),
        ({"rope_type": "linear", "factor": 1e-320}, "frequencies"),
        ({**YARN, "factor": 1e10}, "context of more than"),
        ({**YARN, "mscale": -99.0, "mscale_all_dim": 1.0}, "amplitude of -"),
        ({"rope_type": "dynamic", "factor": 1e300, "rope_theta": 1e300}, "dynamic"),
        ({k: v for k, v in LLAMA3.items() if k != "low_freq_factor"}, "low_freq_factor"),
        ({**LLAMA3, "high_freq_factor": 1.0}, "high_freq_factor = 1.0"),
        ({**LONGROPE, "short_factor": SHORT[1:]}, "short_factor has 31 entries"),
        ({**LONGROPE, "long_factor": [*LONG[1:], 0]}, "long_factor[31] = 0"),
        ({**LONGROPE, "long_factor": 3}, "long_factor = 3"),
        ({**LONGROPE, "short_mscale": 1.2}, "'short_mscale' = 1.2"),
        ({"rope_type": "default", "rope_theta": 1.0}, "rope_theta = 1.0"),
        ({"rope_type": "default", "rope_theta": float("inf")}, "rope_theta = inf"),
        ({"rope_type": "default", "partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5"),
        ({"rope_type": 3}, "rope_type = 3"),
        ([1, 2], "rope_parameters = [1, 2]"),
    ],
    ids=str,
)
def test_what_is_not_understood_is_named(scaling: Any, culprit: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        spec_of(rope_parameters=scaling)
    message = str(caught.value)
    assert "rope_parameters" in message
    assert culprit in message
    assert "\n" not in message


def test_two_generations_that_contradict_each_other_are_refused() -> None:
    linear = {"rope_type": "linear", "factor": 2.0}
    assert spec_of(rope_scaling=linear, rope_parameters=linear).ropes[0].inv_freq[0] == 0.5
    with pytest.raises(CheckpointError, match="both given and differ"):
        spec_of(rope_scaling=linear, rope_parameters={"rope_type": "linear", "factor": 3.0})
