"""`trimtab simulate`: the calibration is measured once, and mistakes are one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trimtab.cli.main import main

FAST = ["--max-context", "256", "--num-blocks", "128", "--max-batch-tokens", "32",
        "--max-num-requests", "4", "--seconds", "1"]  # fmt: skip


def test_simulate_measures_once_and_predicts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "times.json"
    arguments = ["simulate", "builtin", "--workload", "chat", "--rate", "1", "--duration", "20",
                 "--step-times", str(path), "--slo", "ttft:p50<10s", *FAST]  # fmt: skip
    assert main(arguments) == 0
    first = capsys.readouterr()
    assert "predicted, not measured" in first.out
    assert "round 1" in first.err
    written = path.read_bytes()
    assert main([*arguments, "--json"]) == 0
    again = capsys.readouterr()
    assert again.err == ""
    assert path.read_bytes() == written
    data = json.loads(again.out)
    assert data["predicted"] is True
    assert data["occupancy"]["num_steps"] > 0
    assert data["summary"]["requests"] > 0


def test_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = tmp_path / "broken.json"
    broken.write_text("{}")
    for arguments, part in (
        (["--rate", "1", "--step-times", str(broken)], "broken.json"),
        (["--rate", "1", "--slo", "ttft<3"], "SLO"),
        (["--rate", "1", "--speculative", "lookup"], "speculation"),
    ):
        assert main(["simulate", "builtin", *arguments]) == 2
        error = capsys.readouterr().err
        assert part in error
        assert error.count("\n") == 1
