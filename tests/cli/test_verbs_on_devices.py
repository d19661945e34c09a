"""Verbs on the devices of torch: what they measure there, and what they say where there is none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trimtab import builtin
from trimtab.cli.main import main

torch = pytest.importorskip("torch")
MODEL = str(builtin.draft_path())
SMALL = ["--max-context", "64", "--num-blocks", "16"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("verb", ["eval", "simulate", "bench", "inspect", "optimize"])
def test_without_a_gpu_one_line_says_so_before_anything_begins(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = {
        "simulate": ["--rate", "1"],
        "optimize": ["--out", str(tmp_path / "out")],
        "eval": ["--text", str(builtin.heldout_path())],
    }.get(verb, [])
    assert main([verb, MODEL, "--device", "cuda", *more]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines()[-1].startswith("trimtab: error: device=cuda: torch finds no GPU")
    assert "loading" not in said.err
    assert not (tmp_path / "out" / "journal.jsonl").exists()


def test_eval_compares_formats_on_the_device(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text"
    text.write_text("def add(a, b):\n    return a + b\n" * 8)
    given = ["eval", MODEL, "--text", str(text), "--window", "32", "--limit", "2", "--json"]
    found = {}
    for device in ("cpu", "torch-cpu"):
        more = ["--device", device, "--weights", "int8", "--baseline", "bf16"]
        assert main([*given, *more]) == 0
        found[device] = json.loads(capsys.readouterr().out)["text"]
    ours, theirs = (found[device]["perplexity"]["value"] for device in ("torch-cpu", "cpu"))
    assert ours == pytest.approx(theirs, rel=0.05)
    assert found["torch-cpu"]["perplexity"] != found["cpu"]["perplexity"]  # other products
    assert 0 < found["torch-cpu"]["distance"]["kl_nats"]["value"] < 0.05


def test_a_calibration_is_of_its_device(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "times.json"
    given = ["simulate", MODEL, "--rate", "1", "--duration", "5", "--step-times", str(path)]
    given += [*SMALL, "--max-batch-tokens", "16", "--max-num-requests", "2", "--seconds", "1"]
    assert main([*given, "--device", "torch-cpu", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["executor"].startswith("torch cpu bf16")
    kept = json.loads(path.read_text())
    assert (kept["device"], kept["machine"]["torch"]) == ("torch-cpu", torch.__version__)
    assert main(given) == 2
    assert "measured with device=torch-cpu, not cpu" in capsys.readouterr().err


def test_limits_of_the_device_beside_what_was_measured(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--device", "torch-cpu", "--json", "--max-context", "256"]
    rows = ["--prefill", "16", "--streams", "", "--rounds", "1"]
    assert main(["bench", MODEL, *rows, *given]) == 0
    report = json.loads(capsys.readouterr().out)
    machine = report["machine"]
    assert machine["facts"]["device"] == "torch-cpu"
    assert set(machine["macs_per_s"]) == {"f32", "bf16"}
    assert all(rate > 1e6 for rate in machine["macs_per_s"].values())
    assert 0 < report["results"][0]["rows"][0]["percent_of_ceiling"] < 100
