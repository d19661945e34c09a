"""`trimtab optimize` as a user runs it: what it says if bounds rule the need out, before any load,
and of what cannot be asked."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from trimtab.optimizer.plan import read_plan

# A load of a few short requests, limits that even a busy machine keeps.
EASY = ["--slo", "ttft:p50<30s; itl:mean<10s", "--rate", "0.5rps", "--budget", "5s"]
LINE = json.dumps({"prompt": "def add(a, b):", "max_tokens": 8})


class Run:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.workload = directory / "workload.jsonl"
        self.workload.write_text(f"{LINE}\n" * 4)
        self.out = directory / "out"

    def command(self, *more: str) -> list[str]:
        given = ["--workload", str(self.workload), "--out", str(self.out), *more]
        return [sys.executable, "-m", "trimtab", "optimize", "builtin", *given]

    def __call__(self, *more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self.command(*more), capture_output=True, text=True, timeout=300)

    def trials(self, name: str = "journal.jsonl") -> list[str]:
        lines = (self.out / name).read_text().splitlines()
        return [json.loads(line)["id"] for line in lines]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


def test_a_need_that_cannot_be_met_says_what_stops_it_and_what_would_do(
    run: Run, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    slo = "ttft:p50<30s; itl:p50<1us"
    done = run("--slo", slo, "--rate", "1000rps", "--budget", "5s", "--out", str(out))
    assert done.returncode == 3, done.stderr
    results = json.loads((out / "results.json").read_text())
    assert results["status"] == "not met"
    assert results["chosen"] is None
    found = results["infeasible"]
    assert found["binding"]
    assert "instead of" in found["by"]
    assert found["relaxations"]
    assert read_plan(out / "plan.yaml").model == "builtin"  # of what came closest
    assert (out / "report.html").is_file()


def test_memory_that_nothing_fits_into_is_such_a_need(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = run(*EASY, "--memory", "1MiB", "--out", str(out))
    assert done.returncode == 3, done.stderr
    found = json.loads((out / "results.json").read_text())["infeasible"]
    assert found["binding"] == "memory"
    assert "GiB instead of" in found["by"]


def test_a_dry_run_tells_and_writes_nothing(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = run(*EASY, "--dry-run", "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert "variants of the model" in done.stdout
    assert "quality" in done.stdout
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--slo", "ttft:p99"], "SLO"),
        (["--slo", "speed:p99<1s"], "the metrics are"),
        (["--quality", "kl<0.1"], "kl:mean"),
        (["--workload", "nothing"], "workload"),
        (["--rate", "fast"], "--rate"),
        (["--rate", "-1"], "--rate"),
        (["--memory", "lots"], "--memory"),
        (["--budget", "0"], "--budget"),
        (["--minimize", "joy"], "--minimize"),
        (["--minimize", "cost", "--maximize", "goodput"], "one of them"),
        (["--price-per-hour", "0"], "--price-per-hour"),
        (["--need", "/nowhere/need.yaml"], "No such file"),
        (["--text", "/nowhere/text"], "no such file"),
        (["--out", "/proc/nowhere"], "/proc"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_asked_is_one_clear_line(
    run: Run, tmp_path: Path, options: list[str], said: str
) -> None:
    given = ["--out", str(tmp_path / "out")] if "--out" not in options else []
    done = run(*given, *options)
    assert done.returncode == 2, done.stdout + done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("trimtab: error: ")
    assert said.lower() in last.lower()
    assert "Traceback" not in done.stderr
