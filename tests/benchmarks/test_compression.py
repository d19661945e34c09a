"""The comparison of ways to compress, with little text."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from trimtab import builtin
from trimtab.checkpoints import open_checkpoint
from trimtab.evaluation.text_quality import text_quality
from trimtab.executors.cpu import CpuExecutor

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
PLAN = ("--windows", "2", "--length", "40", "--tasks", "4")


def load(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module(name)


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, BENCHMARKS / "compression.py", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, "PYTHONPATH": str(BENCHMARKS.parent / "src")},
    )


def test_entries_are_measured_once_and_failures_say_why(tmp_path: Path) -> None:
    out, work = tmp_path / "found.json", tmp_path / "work"
    (work / "models").mkdir(parents=True)
    damaged = work / "models" / "gguf-q4-0.gguf"
    damaged.write_bytes(b"GGUF, but not really: too short to be one")
    plan = ("--work", work, "--json", out, *PLAN)
    done = run(*plan, "--only", "at load int8-g32,GGUF Q8_0,GGUF Q4_0")
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())["results"]
    assert list(found) == ["at load int8-g32", "GGUF Q8_0", "GGUF Q4_0"]
    assert "gguf-q4-0.gguf" in found["GGUF Q4_0"]["error"]
    assert f"- GGUF Q4_0: {found['GGUF Q4_0']['error']}" in done.stdout.splitlines()
    loaded, gguf = found["at load int8-g32"], found["GGUF Q8_0"]
    for entry in (loaded, gguf):
        assert 0 < entry["text"]["distance"]["kl_nats"]["value"] < 0.005
        assert sum(kind["tasks"] for kind in entry["tasks"]["kinds"].values()) == 4
    assert loaded["num_bytes"] == 0
    alone = gguf["weights_alone"]["distance"]["kl_nats"]["value"]
    assert 0 < alone < gguf["text"]["distance"]["kl_nats"]["value"]
    # 8 bits and a float16 for 32 of them, and a little for the norms
    assert 8.5 < 8 * gguf["num_bytes"] / gguf["num_weights"] < 8.6
    rows = [line for line in done.stdout.splitlines() if line.startswith("| GGUF Q8_0 ")]
    assert len(rows) == 1
    assert "| 8.5" in rows[0]

    damaged.unlink()
    found["GGUF Q8_0"]["num_weights"] *= 2  # if it was measured again, this would be gone
    out.write_text(json.dumps(json.loads(out.read_text()) | {"results": found}))
    chosen = ("--only", "GGUF Q8_0,GGUF Q4_0")
    assert run(*plan, *chosen).returncode == 0
    done = run(*plan, *chosen, "--speed", "1")
    again = json.loads(out.read_text())["results"]
    assert again["GGUF Q8_0"]["num_weights"] == found["GGUF Q8_0"]["num_weights"]
    assert again["GGUF Q4_0"]["error"] == ""
    for label, has_speed in (("GGUF Q8_0", True), ("GGUF Q4_0", True), ("at load int8-g32", False)):
        assert ("speed" in again[label]) == has_speed
    assert again["GGUF Q4_0"]["speed"]["decode"][0] > 0
    assert run("--table", out).stdout == done.stdout
    other = run("--work", work, "--json", out, "--windows", "3")
    assert other.returncode != 0
    assert "other settings" in other.stderr


def test_the_baseline_is_at_no_distance_from_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compression_quality = load("compression_quality", monkeypatch)
    stem = tmp_path / "baseline"
    compression_quality.Baseline(stem, 3, 50)
    kept = compression_quality.Baseline(stem, 3, 50)
    executor = CpuExecutor(open_checkpoint(builtin.target_path()), compression_quality.FLOAT32)
    replay = compression_quality.Replay(kept, executor.capacity)
    found = text_quality(executor, kept.windows, replay)
    executor.close()
    assert found.distance is not None
    assert (found.distance.kl.value, found.distance.top1.value) == (0, 1)
    assert found.distance.nll_change.value == 0


def test_every_entry_is_one_that_can_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    found = load("compression_subjects", monkeypatch).subjects()
    assert len({subject.label for subject in found}) == len(found)
    methods = {subject.options.get("method") for subject in found} - {None}
    assert methods == {"rtn", "gptq", "awq", "smoothquant", "autoround"}
    asked = {(s.options["bits"], s.options["group_size"]) for s in found if s.options}
    assert {(4, 0), (4, 32), (4, 64), (4, 128), (3, 32), (3, 128), (8, 0), (8, 128)} <= asked
