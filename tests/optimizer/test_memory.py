"""Memory by part, predicted; and what /proc says."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from trimtab import builtin
from trimtab.checkpoints import open_checkpoint
from trimtab.config import ExecutorConfig, SchedulerConfig
from trimtab.optimizer.memory import measure_memory, predict_memory
from trimtab.optimizer.process_memory import process_memory, process_tree, tree_resident_bytes
from trimtab.optimizer.trial import run_trial

SPEC = open_checkpoint(builtin.target_path()).spec
MIB = 1 << 20


@pytest.mark.parametrize("weights", ["bf16", "int4"])
def test_the_prediction_is_near_what_an_executor_takes(weights: str) -> None:
    rows = 2048
    found = run_trial("memory_functions:measure", {"weights": weights, "rows": rows}).value()
    executor = ExecutorConfig(weights=weights)  # type: ignore[arg-type]
    scheduler = SchedulerConfig(max_batch_tokens=rows, max_num_requests=rows)
    parts = predict_memory(SPEC, executor, scheduler, rows // 16)
    assert parts.weights == pytest.approx(found["weight_bytes"], rel=0.02)
    assert parts.weights == pytest.approx(found["weights"], rel=0.25, abs=4 * MIB)
    assert 0.6 * found["step"] < parts.activations + parts.kv_cache < 1.5 * found["step"]


def test_parts_add_up_and_follow_the_settings() -> None:
    base = predict_memory(SPEC, ExecutorConfig(), SchedulerConfig(), 1000)
    assert base.total == sum(base.as_json()[name] for name in base.as_json() if name != "total")
    assert base.draft == 0
    int8 = predict_memory(SPEC, ExecutorConfig(kv_cache="int8"), SchedulerConfig(), 1000)
    assert 0.5 < int8.kv_cache / base.kv_cache < 0.6
    larger = SchedulerConfig(max_batch_tokens=2048)
    assert predict_memory(SPEC, ExecutorConfig(), larger, 1000).activations > base.activations
    draft = open_checkpoint(builtin.draft_path()).spec
    assert predict_memory(SPEC, ExecutorConfig(), larger, 1000, draft=draft).draft > 0
    assert any(line.startswith("kv_cache") for line in base.lines())


def test_what_proc_says_of_this_process() -> None:
    before = process_memory(os.getpid())
    assert before is not None
    held = bytearray(b"x") * (64 * MIB)
    after = process_memory(os.getpid())
    assert after is not None
    assert after.anonymous - before.anonymous > 60 * MIB
    assert after.peak_resident >= after.resident >= after.anonymous
    assert after.resident == after.anonymous + after.mapped
    assert len(held)
    total = measure_memory([os.getpid()])
    assert total is not None
    assert total.processes == 1
    assert tree_resident_bytes(os.getpid()) > 60 * MIB


def test_who_is_gone_holds_nothing(tmp_path: Path) -> None:
    assert process_memory(4_000_000) is None
    assert measure_memory([4_000_000]) is None
    assert tree_resident_bytes(4_000_000) == 0
    assert process_tree(4_000_000) == [4_000_000]
    assert process_memory(1, tmp_path) is None
