"""Defaults fitted to machines that are made up."""

from __future__ import annotations

from typing import Any

import pytest

from trimtab import builtin
from trimtab.checkpoints import open_checkpoint
from trimtab.config import ExecutorConfig, SchedulerConfig
from trimtab.errors import ConfigError
from trimtab.optimizer.fit import Fitted, fit_to_machine

MIB = 1 << 20
CHECKPOINT = open_checkpoint(builtin.target_path())
BF16, INT8 = 29, 15  # MiB of weights, roughly


def fit(free: int | None, cores: int = 4, **changes: Any) -> Fitted:
    executor = ExecutorConfig(**changes.pop("executor", {}))
    scheduler = SchedulerConfig(**changes.pop("scheduler", {}))
    given = changes.pop("given", ())
    return fit_to_machine(
        CHECKPOINT, executor, scheduler, given, free_bytes=free, cores=cores, **changes
    )


def test_a_large_machine_gets_all_that_is_useful() -> None:
    found = fit(64 << 30, 64, macs_per_s=5e12)
    assert found.executor.weights == "bf16"
    assert found.executor.threads == 64
    assert found.scheduler.max_num_requests == 256
    assert found.scheduler.max_batch_tokens == 2048
    assert found.executor.num_blocks * 16 >= 256 * 2048
    assert [word for word, _ in found.lines()] == ["fitted", "because"]


def test_less_memory_takes_narrower_weights_then_a_shorter_context() -> None:
    """From plenty down to nothing, a MiB at a time: everything that is chosen fits, gets no larger,
    and in the end one line says what would fit."""
    seen: list[tuple[str, int, int]] = []
    refused = ""
    for free in range(600, 100, -1):
        try:
            found = fit(free * MIB)
        except ConfigError as error:
            refused = str(error)
            break
        context = found.executor.max_context or CHECKPOINT.spec.max_context
        assert found.executor.num_blocks * 16 >= context
        seen.append((found.executor.weights, found.executor.num_blocks, context))
    assert seen[0][0] == "bf16"
    assert [name for i, (name, _, _) in enumerate(seen) if not i or seen[i - 1][0] != name] == [
        "bf16",
        "int8",
        "int4",
    ]
    assert seen[-1][2] < 2048
    assert "does not fit: weights take bf16 0.03 GiB, int8-g64" not in refused
    assert "does not fit" in refused
    assert "smaller model" in refused
    assert "\n" not in refused


def test_what_the_user_set_stays_or_is_refused() -> None:
    given = {"weights", "max_context"}
    with pytest.raises(ConfigError, match=r"weights take bf16 0\.\d\d GiB"):
        fit(150 * MIB, given=given)
    found = fit(4 << 30, executor={"num_blocks": 7}, given={"num_blocks"})
    assert found.executor.num_blocks == 7
    assert "num_blocks" not in found.chosen


def test_a_slow_machine_takes_short_steps() -> None:
    assert fit(4 << 30, 1, macs_per_s=1e9).scheduler.max_batch_tokens == 128
    assert fit(4 << 30, 1).scheduler.max_batch_tokens == 512
    assert fit(4 << 30, 1).scheduler.max_num_requests == 32


def test_a_system_that_does_not_say() -> None:
    found = fit(None)
    assert found.executor.num_blocks == 0  # the executor's own rule
    assert found.executor.weights == "bf16"
