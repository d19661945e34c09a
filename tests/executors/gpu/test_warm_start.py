"""What a start leaves for the next one; and that no damage to it breaks a start."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from cpu_models import memory_model

from trimtab.config import ExecutorConfig
from trimtab.executors.gpu import executor as executor_module
from trimtab.executors.gpu import warm_start
from trimtab.executors.gpu.executor import TorchExecutor
from trimtab.executors.gpu.step_memory import StepRoom
from trimtab.executors.gpu.warm_start import StepMemory, WarmStart

VERSIONS = {"device": "a card", "torch": "2"}
KEY = {"executor": "one", "rows": "64"}
STEP = StepMemory(5000, 700)


def step_file(directory: Path) -> Path:
    (found,) = directory.glob("*/steps/*.json")
    return found


class FakeMemory:
    """A device of a million bytes; a step takes 5,000 and leaves 700 of kernels, the first time."""

    def __init__(self) -> None:
        self.total = 1_000_000
        self.steps = 0

    def in_use(self) -> int:
        return 100_000 + (700 if self.steps else 0)

    def allocated(self) -> int:
        return 60_000

    def peak_of(self, work: Callable[[], None]) -> int:
        work()
        self.steps += 1
        return 65_000


def test_a_step_is_remembered_for_its_key_and_versions(tmp_path: Path) -> None:
    WarmStart(tmp_path, VERSIONS).remember_step(KEY, STEP)
    assert WarmStart(tmp_path, VERSIONS).recall_step(KEY) == STEP
    assert WarmStart(tmp_path, VERSIONS).recall_step({**KEY, "rows": "65"}) is None
    assert WarmStart(tmp_path, {**VERSIONS, "torch": "3"}).recall_step(KEY) is None
    warm = WarmStart(tmp_path, VERSIONS)
    warm.forget_step(KEY)
    warm.forget_step(KEY)
    assert warm.recall_step(KEY) is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[: len(data) // 2],
        lambda data: b"[]",
        lambda data: b"\x00" * len(data),
        lambda data: data.replace(b"5000", b"5001"),
        lambda data: data.replace(b'"activations"', b'"activation_"'),
        lambda data: json.dumps({**json.loads(data), "of": {}}).encode(),
    ],
)
def test_a_damaged_step_is_none(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    warm = WarmStart(tmp_path, VERSIONS)
    warm.remember_step(KEY, STEP)
    path = step_file(tmp_path)
    path.write_bytes(damage(path.read_bytes()))
    assert warm.recall_step(KEY) is None
    warm.remember_step(KEY, STEP)
    assert warm.recall_step(KEY) == STEP


def test_steps_are_forgotten_where_kernels_are_missing(tmp_path: Path) -> None:
    warm = WarmStart(tmp_path, VERSIONS)
    kernels = warm.kernel_directory()
    for name in ("one", "two"):
        (kernels / name).mkdir()
        (kernels / name / "kernel.cubin").write_bytes(b"code")
    warm.seal()
    warm.remember_step(KEY, STEP)
    warm.kernel_directory()
    assert warm.recall_step(KEY) == STEP
    shutil.rmtree(kernels / "one")
    warm.kernel_directory()
    assert warm.recall_step(KEY) is None
    warm.seal()
    warm.remember_step(KEY, STEP)
    (kernels / "two" / "kernel.cubin").write_bytes(b"coda")
    warm.kernel_directory()
    assert not (kernels / "two").exists()
    assert warm.recall_step(KEY) is None


def test_sizes_that_cannot_be_are_none(tmp_path: Path) -> None:
    warm = WarmStart(tmp_path, VERSIONS)
    for wrong in (StepMemory(-1, 0), StepMemory(1 << 60, 0), StepMemory(1.5, 0)):  # type: ignore[arg-type]
        warm.remember_step(KEY, wrong)
        assert warm.recall_step(KEY) is None


def test_what_cannot_be_written_is_not_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    with caplog.at_level(logging.WARNING):
        warm = WarmStart(tmp_path / "file", VERSIONS)
    assert "nothing is kept" in caplog.text
    assert not warm.is_kept
    warm.remember_step(KEY, STEP)
    warm.forget_step(KEY)
    warm.seal()
    assert warm.recall_step(KEY) is None
    monkeypatch.delenv("TRITON_CACHE_DIR", raising=False)
    warm_start.use_for_kernels(warm)
    place = Path(os.environ["TRITON_CACHE_DIR"])
    (place / "kernel").mkdir()  # Triton needs one that can be written
    assert tmp_path not in place.parents


def test_what_becomes_read_only_while_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warm = WarmStart(tmp_path, VERSIONS)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "refused")

    monkeypatch.setattr(warm_start.tempfile, "mkstemp", refuse)
    warm.remember_step(KEY, STEP)
    warm.seal()
    assert warm.recall_step(KEY) is None
    assert not WarmStart(tmp_path, VERSIONS).is_kept


def test_the_place_of_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    warm = WarmStart(tmp_path, VERSIONS)
    monkeypatch.setenv("TRITON_CACHE_DIR", "/theirs")
    warm_start.use_for_kernels(warm)
    assert os.environ["TRITON_CACHE_DIR"] == "/theirs"
    monkeypatch.delenv("TRITON_CACHE_DIR")
    warm_start.use_for_kernels(warm)
    assert os.environ["TRITON_CACHE_DIR"] == str(warm.kernel_directory())
    assert tmp_path in warm.kernel_directory().parents
    assert not warm_start.open_warm_start(torch.device("cpu")).is_kept


def test_old_keys_are_removed_and_younger_ones_kept(tmp_path: Path) -> None:
    for age in range(8):
        made = tmp_path / f"old{age}"
        made.mkdir()
        used = 1e9 + 1000 * age if age < 6 else None
        os.utime(made, None if used is None else (used, used))
    WarmStart(tmp_path, VERSIONS)
    left = sorted(path.name for path in tmp_path.iterdir() if path.name.startswith("old"))
    assert left == ["old4", "old5", "old6", "old7"]


def test_room_is_the_same_whether_the_step_was_run_or_remembered(tmp_path: Path) -> None:
    def room(memory: FakeMemory) -> StepRoom:
        return StepRoom(memory, 0.5, WarmStart(tmp_path, VERSIONS), KEY, lambda: None)

    first, second = FakeMemory(), FakeMemory()
    cold, warm = room(first), room(second)
    assert not cold.is_remembered
    assert cold.free() == 500_000 - 100_700 - 5000
    warm = room(second)
    assert warm.is_remembered
    assert warm.free() == cold.free()
    assert (first.steps, second.steps) == (1, 0)
    assert warm.forget()
    assert WarmStart(tmp_path, VERSIONS).recall_step(KEY) is None
    assert warm.free() == cold.free()
    assert second.steps == 1
    assert not warm.forget()


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], tuple[bool, int, int]]:
    """Starts an executor as on a device; was its step remembered, steps run, blocks."""

    def start() -> tuple[bool, int, int]:
        memory = FakeMemory()
        monkeypatch.setattr(executor_module, "open_memory", lambda device: memory)
        monkeypatch.setattr(
            executor_module, "open_warm_start", lambda device: WarmStart(tmp_path, VERSIONS)
        )
        executor = TorchExecutor(memory_model(1), ExecutorConfig(device="torch-cpu"))
        executor.close()
        return executor.step_is_remembered, memory.steps, executor.capacity.num_blocks

    return start


def test_the_second_start_runs_no_step(
    start: Callable[[], tuple[bool, int, int]], tmp_path: Path
) -> None:
    remembered, steps, blocks = start()
    assert (remembered, steps) == (False, 1)
    assert blocks > 0
    assert start() == (True, 0, blocks)
    step_file(tmp_path).write_bytes(b"\xff")
    assert start() == (False, 1, blocks)
    # What was remembered leaves no room: it is measured instead.
    path = step_file(tmp_path)
    sizes = {"activations": 10_000_000, "beside": 0}
    told = json.loads(path.read_bytes())
    path.write_text(json.dumps(told | {"bytes": sizes, "check": warm_start.digest([sizes])}))
    assert start() == (False, 1, blocks)
    assert start() == (True, 0, blocks)


KERNELS = """
import json, sys
from pathlib import Path

sys.path.insert(0, sys.argv[2])
from compiled_kernels import norms
from trimtab.executors.gpu import warm_start
from trimtab.executors.gpu.warm_start import WarmStart


def files(place):
    return {str(x): x.stat().st_mtime_ns for x in sorted(place.rglob("*")) if x.is_file()}


def start():
    warm = WarmStart(Path(sys.argv[1]), {"device": "sm_90"})
    place = warm.kernel_directory()
    before = files(place)
    norms(1, "*i8")
    after = files(place)
    warm.seal()
    return sum(before.get(name) != when for name, when in after.items())


warm_start.use_for_kernels(WarmStart(Path(sys.argv[1]), {"device": "sm_90"}))
found = {"first": start(), "second": start(), "damaged": {}, "unchecked": []}
place = WarmStart(Path(sys.argv[1]), {"device": "sm_90"}).kernel_directory()
for name in files(place):
    path = Path(name)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    try:
        norms(1, "*i8")
    except Exception as error:
        found["unchecked"].append(type(error).__name__)
    path.write_bytes(data[: len(data) // 2])
    found["damaged"][path.suffix] = start()
for name in files(place):
    Path(name).write_bytes(b"")
(place.parent / "sealed.json").write_bytes(b"{")
found["unsealed"] = start()
found["last"] = start()
print(json.dumps(found))
"""


def test_kernels_are_compiled_once_and_again_where_damaged(tmp_path: Path) -> None:
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("TRITON_INTERPRET", "TRITON_CACHE_DIR")
    }
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    run = subprocess.run(
        [sys.executable, "-c", KERNELS, str(tmp_path), str(Path(__file__).parent)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    found = json.loads(run.stdout)
    assert found["first"] >= 5
    assert found["second"] == found["last"] == 0
    assert {".json", ".cubin"} <= set(found["damaged"])
    assert all(compiled >= 5 for compiled in found["damaged"].values())
    assert found["unchecked"], "Triton itself stops at a damaged file"
    assert found["unsealed"] >= 5
