"""The comparison of quality, with trimtab alone and little text."""

from __future__ import annotations

import importlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from trimtab import builtin
from trimtab.config import ExecutorConfig
from trimtab.engine.client import EngineRequest
from trimtab.engine.loading import load_engine
from trimtab.engine.sampling_params import SamplingParams

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
LENGTH = 40


@pytest.fixture
def quality(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("quality")


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, BENCHMARKS / "quality.py", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, "PYTHONPATH": str(BENCHMARKS.parent / "src")},
    )


def engine_perplexity(windows: list[list[int]]) -> float:
    """What the engine itself says of the windows, in float32."""
    config = ExecutorConfig(weights="f32", kv_cache="f32", num_blocks=16)
    engine = load_engine(builtin.target_path(), config)
    logprobs: list[float] = []
    for number, window in enumerate(windows):
        params = SamplingParams(temperature=0, max_tokens=1)
        engine.add_request(
            EngineRequest(f"w{number}", window, params, prompt_logprobs=0, completes=False)
        )
        while engine.num_live_requests:
            for output in engine.step():
                logprobs += [one.logprob for one in output.prompt_logprobs or []]
    assert len(logprobs) == len(windows) * (LENGTH - 1)
    return math.exp(-sum(logprobs) / len(logprobs))


def test_trimtab_alone(quality: ModuleType, tmp_path: Path) -> None:
    out = tmp_path / "quality.json"
    plan = ("--windows", "2", "--length", str(LENGTH), "--json", out)
    done = run("--work", tmp_path, "--only", "int8 kv=bf16,g128 kv=bf16", *plan)
    assert done.returncode == 0, done.stderr
    reference, eight, four = json.loads(out.read_text())["results"]
    assert (reference["kl_mean"], reference["top1"]) == (0, 1)
    assert 0 < eight["kl_mean"] < four["kl_mean"] < 0.2
    assert eight["kl_mean"] < eight["kl_p99"]
    windows = quality.windows_of(builtin.heldout_path(), 2, LENGTH)
    assert reference["perplexity"] == pytest.approx(engine_perplexity(windows), rel=1e-4)
    rows = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    assert [row.split(" | ")[1] for row in rows[1:]] == ["trimtab int8", "trimtab int4-g128"]
    assert run("--table", out).stdout == done.stdout
    assert not list(tmp_path.rglob("*.npy"))


def test_divergence_of_two_known_distributions(quality: ModuleType) -> None:
    p, q = np.array([0.5, 0.25, 0.25]), np.array([0.25, 0.5, 0.25])
    reference = np.log(np.array([[p, p]] * 2)) + 3  # logits are free of a constant
    logits = np.log(np.array([[p, q]] * 2)) - 1
    expected = 0.25 * math.log(2)
    scores = quality.compare(reference, logits, [[0, 0], [0, 1]])
    assert scores["kl_mean"] == pytest.approx(expected / 2)
    assert scores["kl_p99"] == pytest.approx(expected)
    assert scores["top1"] == 0.5
    assert scores["perplexity"] == pytest.approx((0.5 * 0.25) ** -0.5)


def test_windows_begin_documents_and_cover_the_text(quality: ModuleType) -> None:
    windows = quality.windows_of(builtin.heldout_path(), 5, 30)
    assert {len(window) for window in windows} == {30}
    assert {window[0] for window in windows} == {0}
    assert len({tuple(window) for window in windows}) == 5


def test_an_unknown_format_is_one_line(tmp_path: Path) -> None:
    done = run("--work", tmp_path, "--only", "nothing")
    assert done.returncode == 1
    assert done.stderr.strip() == "no format matches 'nothing'"
