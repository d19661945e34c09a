"""What can be done to a model, and how that is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trimtab import builtin
from trimtab.checkpoints import open_checkpoint
from trimtab.compression.quantize import quantize_checkpoint
from trimtab.compression.settings import QuantizeSettings
from trimtab.config import DEVICE_KV, DEVICE_WEIGHTS, DEVICES, Device, ExecutorConfig
from trimtab.errors import ConfigError
from trimtab.optimizer.variants import Variant, by_promise, variants_for


def test_a_checkpoint_of_floats_can_become_many_things() -> None:
    checkpoint = open_checkpoint(builtin.target_path())
    found = variants_for(checkpoint, methods=True)
    assert found[0] == Variant()
    assert found[0].is_baseline
    assert len(set(found)) == len(found)
    assert len({one.label for one in found}) == len(found)
    assert len({one.identity(checkpoint) for one in found}) == len(found)
    labels = [one.label for one in found]
    for label in ("int8", "int4-g64", "gptq int4-g64", "bf16, KV int8", "gptq 6 bits-g64"):
        assert label in labels
    assert not any(one.needs_build for one in variants_for(checkpoint, methods=False))
    assert variants_for(checkpoint, methods=False, float32=True)[-1].weights == "f32"
    for one in found:
        assert Variant.from_json(json.loads(json.dumps(one.as_json()))) == one


def test_a_checkpoint_of_integers_keeps_them(tmp_path: Path) -> None:
    source = open_checkpoint(builtin.draft_path())
    quantize_checkpoint(source, tmp_path / "q", QuantizeSettings("rtn", 8, 0))
    found = variants_for(open_checkpoint(tmp_path / "q"))
    assert [one.label for one in found] == ["stored", "stored, KV int8"]
    assert [one.is_baseline for one in found] == [True, False]


@pytest.mark.parametrize("device", DEVICES)
def test_what_is_tried_is_what_the_device_takes(device: Device) -> None:
    found = variants_for(open_checkpoint(builtin.target_path()), methods=False, device=device)
    assert found[0].is_baseline
    assert len(set(found)) == len(found)
    assert {one.weights for one in found} == {*DEVICE_WEIGHTS[device]} - {"f32"}
    assert {one.kv_cache for one in found} == {*DEVICE_KV[device]} - {"f32"}
    for one in found:
        assert one.executor_config(ExecutorConfig(device=device)).device == device


def test_formats_that_a_device_lacks_are_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DEVICE_WEIGHTS, "cuda", ("f32", "bf16", "int8"))
    monkeypatch.setitem(DEVICE_KV, "cuda", ("f32", "bf16"))
    found = variants_for(open_checkpoint(builtin.target_path()), methods=False, device="cuda")
    assert [one.label for one in found] == ["bf16", "int8", "int8-g32"]
    with pytest.raises(ConfigError, match="weights=int4: device=cuda takes f32, bf16, int8"):
        ExecutorConfig(device="cuda", weights="int4")
    with pytest.raises(ConfigError, match="kv_cache=int8: device=cuda takes f32, bf16"):
        ExecutorConfig(device="cuda", kv_cache="int8")


def test_groups_that_do_not_divide_are_not_offered(model: Path) -> None:
    checkpoint = open_checkpoint(model)  # 64 columns
    labels = [one.label for one in variants_for(checkpoint, methods=True)]
    assert "gptq int4-g64" in labels
    assert "gptq int4-g128" not in labels


def test_how_a_variant_is_held() -> None:
    base = ExecutorConfig(threads=3, max_context=99)
    held = Variant("int4", kv_cache="int8").executor_config(base)
    assert (held.weights, held.group_size, held.kv_cache) == ("int4", 64, "int8")
    assert (held.threads, held.max_context) == (3, 99)
    assert Variant("int4", 64, "gptq").executor_config().weights == "int8"  # the head
    assert Variant("int4", 64, "gptq", head="bf16").executor_config().weights == "bf16"
    assert Variant("stored").executor_config().weights == "bf16"


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"weights": "int3"}, "weights='int3'"),
        ({"method": "magic"}, "method='magic'"),
        ({"method": "gptq"}, "makes int8 or int4"),
        ({"group_size": 64}, "bf16 has no groups"),
        ({"weights": "int4", "group_size": 48}, "group_size=48"),
        ({"weights": "int4", "bits_per_weight": 4.5}, "belong to a method"),
        ({"weights": "int4", "method": "gptq", "bits_per_weight": 99.0}, "bits_per_weight=99"),
        ({"weights": "int4", "method": "smoothquant"}, "8-bit"),
        ({"kv_cache": "int4"}, "kv_cache='int4'"),
        ({"weights": True}, "weights=True"),
        ({"colour": 1}, "unknown setting of a variant: colour"),
    ],
)
def test_what_cannot_be_is_refused(settings: dict[str, object], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        Variant.from_json(settings)


def test_no_whole_format_is_left_to_the_end() -> None:
    sizes = {
        Variant("bf16"): 200,
        Variant("int8"): 100,
        Variant("int8", 32): 112,
        Variant("int4", 32): 62,
        Variant("int4", 128): 53,
        Variant("int8", kv_cache="int8"): 100,
        Variant("int4", 128, kv_cache="int8"): 53,
    }
    order = [one.label for one in by_promise(sizes, Variant("bf16"))]
    assert order == [
        *("bf16", "int4-g128", "int8", "int4-g32", "int8-g32"),
        *("int4-g128, KV int8", "int8, KV int8"),
    ]
