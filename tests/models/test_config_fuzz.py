"""Whatever a config.json says, reading it gives a sane spec or one line of refusal."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_configs import PUBLISHED

from trimtab.errors import CheckpointError, ConfigError
from trimtab.models.registry import FAMILIES, model_spec
from trimtab.models.spec import ModelSpec

NUMBERS = st.one_of(
    st.integers(-3, 5),
    st.sampled_from([0.0, -1.5, 0.5, 1e-300, 1e300, math.inf, math.nan, 2**31, 2**63, 10**40]),
    st.integers(-(10**20), 10**20),
    st.floats(),
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)
ROPE_KINDS = ("default", "linear", "dynamic", "llama3", "yarn", "longrope")
ROPE_NUMBERS = (
    "factor",
    "rope_theta",
    "low_freq_factor",
    "high_freq_factor",
    "short_factor",
    "long_factor",
    "original_max_position_embeddings",
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "mscale",
    "mscale_all_dim",
    "truncate",
    "partial_rotary_factor",
)
ROPES = st.fixed_dictionaries(
    {"rope_type": st.sampled_from(ROPE_KINDS)}, optional=dict.fromkeys(ROPE_NUMBERS, NUMBERS)
)


def check(spec: ModelSpec) -> None:
    assert 1 <= spec.num_layers <= 4096
    assert spec.num_heads % spec.num_kv_heads == 0
    assert 1 <= spec.max_context < 2**31
    assert spec.norm_eps > 0
    assert spec.attention_scale > 0
    assert math.isfinite(spec.embedding_scale)
    for rope in spec.ropes:
        assert 2 <= rope.rotary_dim <= spec.head_dim
        assert all(math.isfinite(value) and value > 0 for value in rope.inv_freq)
        assert math.isfinite(rope.amplitude)
        assert rope.amplitude > 0
    for layer in spec.layers:
        assert 0 <= layer.sliding_window < spec.max_context
        assert 0 <= layer.rope < len(spec.ropes)


def try_config(config: dict[str, Any], max_context: int = 0) -> None:
    try:
        spec = model_spec(config, max_context)
    except (CheckpointError, ConfigError) as error:
        message = str(error)
    else:
        check(spec)
        assert FAMILIES[spec.architecture].tensors(spec)
        return
    assert "\n" not in message
    assert len(message) < 500


@pytest.mark.parametrize("published", PUBLISHED, ids=lambda c: c["architectures"][0])
@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_changed_values(published: dict[str, Any], data: st.DataObject) -> None:
    config = copy.deepcopy(published)
    target = config.get("text_config", config)
    target["num_hidden_layers"] = 8  # small tables, so that many can be tried
    for _ in range(data.draw(st.integers(1, 3))):
        key = data.draw(st.sampled_from(sorted(target)))
        target[key] = data.draw(VALUES)
    try_config(config, data.draw(st.sampled_from([0, 1, 4096, 10**6])))


@pytest.mark.parametrize("published", PUBLISHED[:5], ids=lambda c: c["architectures"][0])
@settings(max_examples=80, deadline=None)
@given(rope=ROPES, max_context=st.sampled_from([0, 7, 40_000]))
def test_any_rope(published: dict[str, Any], rope: dict[str, Any], max_context: int) -> None:
    factors = {"short_factor", "long_factor"} & rope.keys()
    lists = {key: [rope[key]] * 64 for key in factors}
    config = {**published, "num_hidden_layers": 2, "head_dim": 128, "rope_scaling": None}
    try_config({**config, "rope_parameters": {**rope, **lists}}, max_context)
