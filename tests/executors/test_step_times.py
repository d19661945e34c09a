"""Times of a step: every kind of work that it had, and the same results as without them."""

from __future__ import annotations

from typing import Any

import pytest
from cpu_models import Passage, advance, memory_model

from trimtab.config import ExecutorConfig
from trimtab.executors.cpu import CpuExecutor

ALWAYS = {"program", "embedding", "inputs", "projections", "rotation", "attention", "head"}


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(
    ("changes", "kinds"),
    [({}, {"norms", "sampling"}), ({"post_norms": False}, {"sampling"})],
)
def test_times_of_a_step(threads: int, changes: dict[str, Any], kinds: set[str]) -> None:
    tokens = [(5 * i) % 77 for i in range(40)]
    config = ExecutorConfig(weights="int8", threads=threads, num_blocks=8)
    executor = CpuExecutor(memory_model(**changes), config)

    def steps() -> list[bytes]:
        passage = Passage(list(tokens), [3, 1, 6])
        results = [advance(executor, [(passage, count)]) for count in (30, 2, 1, 7)]
        return [result.tokens.tobytes() for result in results] + [
            logits.tobytes() for logits in passage.logits
        ]

    untimed = steps()
    assert executor.step_times() == {}
    executor.set_timed(True)
    assert steps() == untimed
    times = executor.step_times()
    assert set(times) == ALWAYS | kinds
    assert min(times.values()) >= -1e-12  # but for rounding
    assert sum(times.values()) > 0
    executor.set_timed(False)
    assert steps() == untimed
    assert executor.step_times() == {}
