"""The comparison of peers, with trimtab alone and a model that takes no time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SMALL = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "vocab_size": 500,
    "max_position_embeddings": 1024,
    "bos_token_id": 0,
    "eos_token_id": 1,
}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    values = json.loads((BENCHMARKS / "configs" / "qwen3-0.6b.json").read_text())
    path = tmp_path_factory.mktemp("config") / "small.json"
    path.write_text(json.dumps({**values, **SMALL}))
    return path


def compare(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    source = str(BENCHMARKS.parent / "src")
    return subprocess.run(
        [sys.executable, BENCHMARKS / "compare.py", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, "PYTHONPATH": source},
    )


def test_every_measure_of_every_format(config: Path, tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    plan = ("--rounds", "1", "--prefill", "64", "--streams", "2", "--contexts", "200")
    done = compare("--model", config, "--work", tmp_path, "--only", "trimtab", *plan, "--json", out)
    assert done.returncode == 0, done.stderr
    document = json.loads(out.read_text())
    measures = ["start", "decode 128", "prefill 64", "2 streams", "decode 200", "neighbour"]
    assert len(document["results"]) == 4
    for result in document["results"]:
        assert not result["error"]
        assert list(result["samples"]) == [*measures, "peak GB"]
        assert all(len(s) == 1 and s[0] > 0 for s in result["samples"].values())
    for group in ("### bf16", "### int8", "### int4"):
        assert group in done.stdout


def test_a_contender_that_fails_has_a_row_that_says_why(config: Path, tmp_path: Path) -> None:
    # Prompts longer than the model's context: its engine refuses them.
    plan = ("--rounds", "1", "--prefill", "2000", "--streams", "", "--no-neighbour")
    done = compare("--model", config, "--work", tmp_path, "--only", "trimtab bf16", *plan)
    assert done.returncode == 0, done.stderr
    assert "| trimtab bf16 | bf16 | RequestError" in done.stdout
    assert "Traceback" not in done.stdout


def test_an_unknown_contender_is_one_line(tmp_path: Path) -> None:
    done = compare("--work", tmp_path, "--only", "nobody")
    assert done.returncode == 1
    assert done.stderr.strip() == "no contender matches 'nobody'"


def test_an_unknown_model_is_one_line(tmp_path: Path) -> None:
    done = compare("--work", tmp_path, "--only", "trimtab", "--model", "nothing")
    assert done.returncode == 1
    assert done.stderr.startswith("error: 'nothing': neither a config.json nor one of")
    assert done.stderr.count("\n") == 1
