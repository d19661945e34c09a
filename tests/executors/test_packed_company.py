"""Packed models of several processes: writers that race, crash or need room."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cpu_models import run_alone
from packed_checkpoints import (
    TOKENS,
    FileCheckpoint,
    checkpoint_at,
    config,
    logits,
    packed_models,
    write_seed,
)

from trimtab.builtin import draft_path
from trimtab.checkpoints import open_checkpoint
from trimtab.config import ExecutorConfig
from trimtab.executors import cpu, packed_file
from trimtab.executors.cpu import CpuExecutor
from trimtab.executors.packed_cache import PackedCache

SCRIPT = """
import hashlib, sys
sys.path[:0] = sys.argv[1:3]
from cpu_models import run_alone
from trimtab.builtin import draft_path
from trimtab.checkpoints import open_checkpoint
from trimtab.config import ExecutorConfig
from trimtab.executors.cpu import CpuExecutor
sys.stdin.read(1)
executor = CpuExecutor(open_checkpoint(draft_path()), ExecutorConfig(weights="int4", num_blocks=8))
print(hashlib.sha256(run_alone(executor, range(9)).tobytes()).hexdigest())
"""


def test_starts_at_the_same_time(cache: Path) -> None:
    paths = [str(Path(__file__).parent), str(Path(cpu.__file__).parents[2])]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, *paths],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    results = [process.communicate("x", timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], results
    assert {errors for _, errors in results} == {""}
    assert len({output for output, _ in results}) == 1
    assert len(packed_models(cache)) == 1
    assert not list(cache.glob("*.tmp"))
    start = CpuExecutor(open_checkpoint(draft_path()), ExecutorConfig(weights="int4", num_blocks=8))
    assert start._mapped is not None


def test_least_recently_used_models_make_room(
    cache: Path, seed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(number: int) -> FileCheckpoint:
        write_seed(seed, number)
        checkpoint = checkpoint_at(seed)
        logits(checkpoint)
        return checkpoint

    start(1)
    size = packed_models(cache)[0].stat().st_size
    monkeypatch.setenv("TRIMTAB_PACKED_CACHE_GIB", str(2.5 * size / (1 << 30)))
    models = {1: packed_models(cache)[0]}
    for number in (2, 3):
        if number == 3:
            for age, model in ((300, models[1]), (200, models[2])):
                entry = PackedCache(cache, 1, 1)._memo._path(model)
                os.utime(entry, (entry.stat().st_mtime - age,) * 2)
            assert start(1).reads == 0  # used: now 2 is the oldest
        start(number)
        (models[number],) = set(packed_models(cache)) - set(models.values())
    assert set(packed_models(cache)) == {models[1], models[3]}
    assert len(list((cache / "digests").iterdir())) == 2

    # What a process holds stays, even if then the new one cannot.
    write_seed(seed, 1)
    one = CpuExecutor(checkpoint_at(seed), config())
    write_seed(seed, 3)
    three = CpuExecutor(checkpoint_at(seed), config())
    start(4)
    assert set(packed_models(cache)) == {models[1], models[3]}
    one.close()
    start(4)
    assert models[1] not in packed_models(cache)
    assert models[3] in packed_models(cache)
    three.close()

    monkeypatch.setenv("TRIMTAB_PACKED_CACHE_GIB", str(0.5 * size / (1 << 30)))
    kept = packed_models(cache)
    start(5)  # larger than the limit: nothing is removed for it
    assert packed_models(cache) == kept


def test_what_a_crashed_writer_left_is_removed(cache: Path, seed: Path) -> None:
    cache.mkdir(parents=True)
    (cache / "abc.tmp").write_bytes(b"half")
    (cache / "notes.txt").write_text("not ours")
    logits(checkpoint_at(seed))
    assert not list(cache.glob("*.tmp"))
    assert (cache / "notes.txt").exists()


KILLED = """
import os, signal
from trimtab.builtin import draft_path
from trimtab.checkpoints import open_checkpoint
from trimtab.config import ExecutorConfig
from trimtab.executors import packed_file
from trimtab.executors.cpu import CpuExecutor
write, packed_file._WRITE_BYTES = os.write, 1 << 16
def write_some(descriptor, data):
    if os.lseek(descriptor, 0, os.SEEK_CUR) > 1 << 18:
        os.kill(os.getpid(), signal.SIGKILL)
    return write(descriptor, data)
packed_file.os.write = write_some
CpuExecutor(open_checkpoint(draft_path()), ExecutorConfig(weights="int4", num_blocks=8))
"""


def test_a_writer_killed_half_way_leaves_nothing_to_believe(cache: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(cpu.__file__).parents[2])}
    killed = subprocess.run([sys.executable, "-c", KILLED], env=environment, timeout=60)
    assert killed.returncode == -signal.SIGKILL
    (half,) = cache.glob("*.tmp")
    assert half.stat().st_size > 1 << 18
    assert packed_models(cache) == []
    settings = config("int4-g64")
    made = logits(open_checkpoint(draft_path()), settings)
    assert len(packed_models(cache)) == 1
    assert not list(cache.glob("*.tmp"))
    executor = CpuExecutor(open_checkpoint(draft_path()), settings)
    assert executor._mapped is not None
    assert (run_alone(executor, TOKENS) == made).all()


@pytest.mark.parametrize("most", [1 << 30, 1000])  # bytes that the system takes at once
def test_no_write_crosses_a_piece(
    most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed_file, "_WRITE_BYTES", 8192)
    write, ranges = os.write, []

    def write_some(descriptor: int, data: Any) -> int:
        start = os.lseek(descriptor, 0, os.SEEK_CUR)
        ranges.append((start, start + len(data) - 1))
        return write(descriptor, data[:most])

    monkeypatch.setattr(packed_file.os, "write", write_some)
    data = np.random.default_rng(0).bytes(50_000)
    parts = [memoryview(data[:40_000]), memoryview(data[40_000:])]
    header = packed_file.PackedHeader(1, 54_096, 44_096, bytes(32), bytes(32))
    with (tmp_path / "file").open("wb") as file:
        packed_file.write_packed(file.fileno(), header, parts)
    assert (tmp_path / "file").read_bytes() == header.to_bytes() + data
    assert all(first // 8192 == last // 8192 for first, last in ranges)
