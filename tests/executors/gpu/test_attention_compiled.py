"""What no interpreter tells: kernels compile for sm_90, within its limits, and multiply alike."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

SHARED_BYTES = 227 << 10  # a program may have
SM_SHARED_BYTES = 228 << 10  # of which each program on it costs 1 KiB more

Launch = dict[str, Any]


def compile_for_sm90(*cases: tuple[int, str, float, int]) -> list[Launch]:
    """(head_dim, cache format, softcap, window) each: what attention and the write launch."""
    child = Path(__file__).with_name("attention_compile_child.py")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, str(child), json.dumps(cases)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


SPILLED_BYTES = 8  # a thread: Triton 3.6 spills nothing, 3.7 that much in prefill of 128 int8
CASES = ((128, "bf16", 0.0, 0), (64, "int8", 30.0, 512), (128, "int8", 0.0, 0))


@pytest.fixture(scope="module")
def launches() -> list[Launch]:
    return compile_for_sm90(*CASES)


@pytest.mark.parametrize("case", range(len(CASES)))
def test_attention_for_sm_90(case: int, launches: list[Launch]) -> None:
    own = [launch for launch in launches if launch["case"] == case]
    assert all(launch["shared"] <= SHARED_BYTES for launch in own)
    of_contexts = [x for x in own if x["kernel"] in ("split_kernel", "flash_kernel")]
    assert {x["kernel"] for x in of_contexts} == {"split_kernel", "flash_kernel"}
    # The law: one instruction, of one shape, with a row's scores in one warp, in every kernel.
    assert len({tuple(sorted(set(x["layouts"]))) for x in of_contexts}) == 1
    assert all(x["wgmma"] and not x["mma.sync"] for x in of_contexts)
    assert all(x["in flight"] for x in of_contexts)
    assert all(x["stack"] <= SPILLED_BYTES for x in own)
    decode = next(x for x in own if x["kernel"] == "split_kernel")
    assert 2 * (decode["shared"] + 1024) <= SM_SHARED_BYTES
    assert 2 * 32 * decode["num_warps"] * 256 <= 65536
