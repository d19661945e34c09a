"""Footprints and ceilings against figures worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from public_shapes import QWEN3_06B

from trimtab.bench.footprint import ceilings, footprint
from trimtab.config import ExecutorConfig
from trimtab.executors.formats import KernelFormat
from trimtab.models.spec import LayerSpec


def test_parameters_of_a_public_model() -> None:
    # The checkpoint's own count: 596,049,920 (embeddings once, they are tied).
    assert footprint(QWEN3_06B, ExecutorConfig()).parameters == 596_049_920


@pytest.mark.parametrize(
    ("weights", "group_size", "bits"),
    [
        ("f32", 0, 32),
        ("bf16", 0, 16),
        ("int4", 32, 4.5),
        ("int4", 64, 4.25),
        ("int4", 128, 4.125),
        ("int8", 32, 8.5),
    ],
)
def test_bits_per_weight(weights: str, group_size: int, bits: float) -> None:
    held = KernelFormat(weights, group_size)  # type: ignore[arg-type]
    assert held.num_bytes(1024, 4096) == 1024 * 4096 * bits / 8


def test_padding_is_counted() -> None:
    assert KernelFormat("int4", 32).num_bytes(17, 33) == 32 * 2 * (16 + 2)
    assert KernelFormat("int8", 0).num_bytes(17, 33) == 32 * (36 + 4)
    assert KernelFormat("int8", 32).num_bytes(17, 33) == 32 * 2 * (32 + 2)
    assert KernelFormat("bf16", 32).num_bytes(17, 33) == 32 * 34 * 2


def test_kv_bytes() -> None:
    assert footprint(QWEN3_06B, ExecutorConfig()).kv_bytes_per_token == 28 * 8 * 2 * 128 * 2
    int8 = footprint(QWEN3_06B, ExecutorConfig(kv_cache="int8"))
    assert int8.kv_bytes_per_token == 28 * 8 * (2 * 128 + 8)


def test_the_bytes_of_a_decode_step_match_the_published_figure() -> None:
    # perf tables of llama.cpp and OpenVINO give 1.192 GB a token for this model in 16 bits.
    bf16 = footprint(QWEN3_06B, ExecutorConfig())
    assert bf16.read_bytes_per_step / 1e9 == pytest.approx(1.192, abs=0.001)


def test_a_sliding_window_bounds_what_is_read() -> None:
    windowed = replace(QWEN3_06B, layers=(LayerSpec(sliding_window=100), LayerSpec()))
    model = footprint(windowed, ExecutorConfig())
    assert model.positions_read(1000) == 100 + 1000
    by_hand = sum(min(i, 100) + i for i in range(1, 1001))
    assert model.positions_read_by_prompt(1000) == by_hand


def test_ceilings_are_bandwidth_and_arithmetic() -> None:
    model = footprint(QWEN3_06B, ExecutorConfig())
    limits = ceilings(model, 50e9, 0.5e12, 0.5e12, contexts=(0, 192), prompts=(1, 512))
    assert limits.decode[0] == pytest.approx(50e9 / model.read_bytes_per_step)
    assert limits.decode[192] < limits.decode[0]
    assert limits.prefill[1] == pytest.approx(limits.decode[0])  # one row: the weight read
    assert limits.prefill[512] < 0.5e12 / model.layer_macs_per_token
