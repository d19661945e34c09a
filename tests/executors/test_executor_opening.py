"""From settings to an executor: what cannot work here is one line."""

from __future__ import annotations

import sys

import pytest
from cpu_models import memory_model

import trimtab
from trimtab.config import CPU_KV_FORMATS, CPU_WEIGHT_FORMATS, ExecutorConfig
from trimtab.errors import ConfigError
from trimtab.executors.opening import open_executor


def test_without_the_native_core_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trimtab._native", None)
    monkeypatch.delattr(trimtab, "_native", raising=False)
    with pytest.raises(ConfigError, match=r"native core is not built.*torch-cpu") as refused:
        open_executor(memory_model(1), ExecutorConfig(num_blocks=4), 8, 1)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["weights", "kv_cache"])
def test_float8_needs_a_gpu(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}=fp8: device=cpu") as refused:
        ExecutorConfig(**{name: "fp8"})  # type: ignore[arg-type]
    assert "\n" not in str(refused.value)
    assert getattr(ExecutorConfig(device="torch-cpu", **{name: "fp8"}), name) == "fp8"  # type: ignore[arg-type]
    assert "fp8" not in (*CPU_WEIGHT_FORMATS, *CPU_KV_FORMATS)
