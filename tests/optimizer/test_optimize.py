"""`trimtab optimize` as a user runs it, on the built-in model with a budget of seconds: what it
writes, what it serves, what it says if the need cannot be met, and that nothing is done twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from load_points import point

from trimtab.errors import UserError
from trimtab.optimizer import trials as trials_module
from trimtab.optimizer.artifacts import Artifact
from trimtab.optimizer.measure import Measured
from trimtab.optimizer.need import make_need
from trimtab.optimizer.order import Order
from trimtab.optimizer.plan import read_plan
from trimtab.optimizer.report import check_results
from trimtab.optimizer.results import headline, ladder_json
from trimtab.optimizer.run import Optimization
from trimtab.optimizer.space import Candidate
from trimtab.optimizer.variants import Variant

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


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    patch = pytest.MonkeyPatch()
    patch.setenv("TRIMTAB_OPTIMIZER_CACHE", str(tmp_path_factory.mktemp("cache")))
    made = Run(tmp_path_factory.mktemp("optimize"))
    made.done = made(*EASY)  # type: ignore[attr-defined]
    yield made
    patch.undo()


def results_of(run: Run) -> dict[str, Any]:
    return json.loads((run.out / "results.json").read_text())


def test_a_plan_a_report_and_a_summary(run: Run) -> None:
    done = run.done  # type: ignore[attr-defined]
    assert done.returncode == 0, done.stderr
    results = results_of(run)
    check_results(results)
    assert results["status"] == "met"
    chosen = next(one for one in results["candidates"] if one["id"] == results["chosen"])
    assert chosen["measured"]["repeats"] >= 2
    assert chosen["quality"]["verdict"] == "pass"
    assert chosen["memory"]["peak_measured"] > 10 << 20
    assert all(one["dropped"] or one["measured"] for one in results["candidates"])
    plan = read_plan(run.out / "plan.yaml")
    assert plan.variant.as_json() == chosen["variant"]
    assert plan.measured["rate"].value == pytest.approx(0.5)
    assert "<html" in (run.out / "report.html").read_text()
    assert "".join(results["headline"].split()) in "".join(done.stdout.split())
    assert len(done.stdout.splitlines()) <= 24
    rows = [json.loads(line) for line in (run.out / "journal.jsonl").read_text().splitlines()]
    loads = [row["result"] for row in rows if row["kind"] == "load"]
    assert loads
    for load in loads:  # the engine's own counts, without the warm-up
        work = load["work"]
        executing = work["small_seconds"] + work["large_seconds"]
        assert work["around_seconds"] > 0
        assert executing > 0
        assert executing + work["around_seconds"] < load["seconds"] + 60


def test_what_was_found_is_kept_for_the_same_need_only(run: Run) -> None:
    before = (run.out / "plan.yaml").stat().st_mtime_ns
    again = run(*EASY, "--cached")
    assert again.returncode == 0
    assert "chosen before" in again.stderr
    assert (run.out / "plan.yaml").stat().st_mtime_ns == before


def test_resumed_it_repeats_no_trial(run: Run) -> None:
    trials = run.trials()
    again = run(*EASY, "--resume", "--json")
    assert again.returncode == 0, again.stderr
    assert run.trials()[: len(trials)] == trials
    assert len(set(run.trials())) == len(run.trials())
    first, second = json.loads(again.stdout)["chosen"], results_of(run)["chosen"]
    assert first == second


def test_the_plan_is_served_with_the_report_behind_the_page(run: Run) -> None:
    command = [sys.executable, "-m", "trimtab", "serve", str(run.out / "plan.yaml")]
    server = subprocess.Popen(
        [*command, "--port", "0", "--json"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        url = json.loads(server.stdout.readline())["url"]
        body = json.dumps({"prompt": "import", "max_tokens": 4}).encode()
        request = urllib.request.Request(
            f"{url}/v1/completions", body, {"Content-Type": "application/json"}
        )
        answer = json.load(urllib.request.urlopen(request, timeout=60))
        assert answer["model"] == "builtin"
        assert answer["usage"]["completion_tokens"] >= 1
        report = urllib.request.urlopen(f"{url}/report", timeout=60).read()
        assert report == (run.out / "report.html").read_bytes()
    finally:
        server.terminate()
        assert server.wait(timeout=60) == 0
        if server.stdout is not None:
            server.stdout.close()


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


def test_killed_it_goes_on_where_it_was(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = run.command(*EASY, "--out", str(out))
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    journal = out / "journal.jsonl"
    deadline = time.monotonic() + 120
    while not (journal.is_file() and b'"kind": "calibration"' in journal.read_bytes()):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = journal.read_bytes()
    kept = [json.loads(line)["id"] for line in before.splitlines(True) if line.endswith(b"\n")]
    again = run(*EASY, "--out", str(out), "--resume")
    assert again.returncode == 0, again.stderr
    lines = journal.read_bytes()[len(before) :].splitlines()
    after = [json.loads(line)["id"] for line in lines if line.startswith(b"{")]
    assert kept
    assert not set(kept) & set(after)


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
        (["--headroom", "100%"], "--headroom"),
        (["--rate", "4rps", "--headroom", "10%"], "one of them"),
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


def test_what_cannot_be_built_is_tried_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tried = []

    def build(model: str, variant: Variant, *rest: object, **more: object) -> Artifact:
        tried.append(variant)
        raise UserError(f"{variant.label} cannot be built: it took too long")

    monkeypatch.setattr(trials_module, "find_or_build", build)
    order = Order("builtin", make_need(), tmp_path / "out", budget_seconds=5.0)
    run = Optimization(order, lambda line: None)
    trials = run.found.trials
    variant = Variant("int4", group_size=64, method="autoround")
    for same in (variant, replace(variant, kv_cache="int8"), replace(variant, head="bf16")):
        with pytest.raises(UserError, match="autoround int4-g64 cannot be built: it took too long"):
            trials.artifact(same)
    with pytest.raises(UserError, match="g128 cannot"):
        trials.artifact(replace(variant, group_size=128))
    assert [one.group_size for one in tried] == [64, 128]
    run.journal.close()


@pytest.mark.parametrize(
    ("searched", "labels"),
    [
        ({"int8": 3.0}, ["default", "+ int8", "+ 256 tokens a step"]),
        ({}, ["default", "+ int8; 256 tokens a step"]),
    ],
)
def test_each_rung_of_the_ladder_says_what_is_new(
    tmp_path: Path, searched: dict[str, float], labels: list[str]
) -> None:
    run = Optimization(Order("builtin", make_need(), tmp_path / "out"), lambda line: None)
    found = run.found
    int8 = Candidate.plain(Variant("int8"), run.defaults)
    turned = replace(int8, scheduler=replace(int8.scheduler, max_batch_tokens=256))
    found.default, found.chosen = found.entries.of(run.default), found.entries.of(turned)
    found.default.measured = Measured(2.0, expected=2.0)
    found.chosen.measured = Measured(4.0, expected=4.0)
    for rate in searched.values():
        found.entries.of(int8).measured = Measured(rate, expected=rate)
    rungs = ladder_json(found)
    assert [rung["label"] for rung in rungs] == labels
    assert [rung["rate"]["value"] for rung in rungs] == [2.0, *searched.values(), 4.0]
    assert ", up to 2 times the defaults" in headline(found)
    found.default.measured.missed = 3.0
    assert ", about 2 times the defaults" in headline(found)
    found.default.measured.repeats.append(point(2.0, 0.1))
    assert ", 2 times the defaults" in headline(found)
    run.journal.close()
