"""The comparison of peers, with trimtab alone and a model that takes no time."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

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
    "max_position_embeddings": 4096,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
MAIN = ["decode 128", "prefill 64", "2 streams", "neighbour"]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    values = json.loads((BENCHMARKS / "configs" / "qwen3-0.6b.json").read_text())
    path = tmp_path_factory.mktemp("config") / "small.json"
    path.write_text(json.dumps({**values, **SMALL}))
    return path


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("tables")


@pytest.fixture
def compare_module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("compare")


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


def test_every_measure_and_going_on(config: Path, tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    plan = ("--prefill", "64", "--streams", "2", "--contexts", "200", "--json", out)
    arguments = ("--model", config, "--work", tmp_path, "--only", "int4-g64,int4-g128", *plan)

    done = compare(*arguments, "--rounds", "1")
    assert done.returncode == 0, done.stderr
    document = json.loads(out.read_text())
    assert [r["label"] for r in document["results"]] == [
        "trimtab int4-g64",
        "trimtab int4-g128",
    ]
    for result in document["results"]:
        assert not result["errors"]
        (phases,) = result["rounds"]
        assert list(phases["main"]) == ["start cold", *MAIN, "peak GB cold"]
        assert list(phases["prefix"]) == ["prefix miss", "prefix hit"]
        assert list(phases["context 200"]) == ["decode 200", "peak GB 200"]
        assert all(value > 0 for values in phases.values() for value in values.values())
        assert phases["prefix"]["prefix hit"] < phases["prefix"]["prefix miss"]
        assert set(result["ceilings"]) == {"decode 128", "prefill 64", "2 streams", "decode 200"}
    assert "### int4" in done.stdout
    assert compare("--table", out).stdout == done.stdout

    # As if it had been interrupted in the middle.
    kept = document["results"]
    del kept[0]["rounds"][0]["context 200"]
    out.write_text(json.dumps(document))
    done = compare(*arguments, "--rounds", "2")
    assert done.returncode == 0, done.stderr
    measured = [line for line in done.stderr.splitlines() if line.startswith("round")]
    assert measured[0] == "round 1: trimtab int4-g64, context 200"
    assert len(measured) == 1 + 2 * 2  # contexts are measured in one round only
    results = json.loads(out.read_text())["results"]
    for before, after in zip(kept, results, strict=True):
        assert after["rounds"][0].items() >= before["rounds"][0].items()
        assert list(after["rounds"][1]["main"]) == ["start", *MAIN, "peak GB"]

    refused = compare(*arguments, "--rounds", "2", "--seed", "1")
    assert refused.returncode == 1
    assert refused.stderr.splitlines()[-1] == f"{out} has other settings: seed differ"


def test_a_contender_that_fails_has_a_line_that_says_why(config: Path, tmp_path: Path) -> None:
    # Prompts longer than the model's context: its engine refuses them. The rest is measured.
    plan = ("--rounds", "1", "--prefill", "8000", "--streams", "", "--no-neighbour", "--no-prefix")
    done = compare("--model", config, "--work", tmp_path, "--only", "trimtab bf16", *plan)
    assert done.returncode == 0, done.stderr
    assert "- trimtab bf16, main: RequestError" in done.stdout
    assert "| decode after 128 | **" in done.stdout
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


def entry(environment: str, name: str, rounds: list[dict[str, float]]) -> dict[str, Any]:
    return {
        "label": f"{environment} {name}",
        "environment": environment,
        "format": name,
        "group": "int8",
        "head": name,
        "kv": "bf16",
        "about": f"{environment} 1.0; KV bf16",
        "errors": {},
        "ceilings": {"decode 128": 100.0},
        "rounds": [{"main": values} for values in rounds],
    }


def test_table(tables: ModuleType) -> None:
    ours = [
        {"start cold": 3.0, "decode 128": 60.0, "neighbour": 45.0},
        {"start": 0.5, "decode 128": 80.0, "neighbour": 40.0},
        {"start": 0.7, "decode 128": 70.0, "neighbour": 42.0},
    ]
    slow = [{"start": 2.0, "decode 128": 20.0}]
    quick = [{"start": 1.2, "decode 128": 35.0}]
    document = {
        "settings": {"model": "some-1b"},
        "machine": {"cpu": "a CPU", "isa": "avx2", "threads": 2, "bandwidth": [3e10, 1e10, 2e10]},
        "results": [
            entry("trimtab", "int8", ours),
            entry("slow", "q8", slow),
            entry("quick", "w8", quick),
        ],
    }
    lines = tables.render(document)
    assert "30.0 GB/s at best, 20.0 median, 10.0 lowest" in lines[0]
    rows = {line.split(" | ")[0].strip("| "): line.strip("| ").split(" | ")[1:] for line in lines}
    assert rows["decode after 128"] == [
        "**70** [60, 80] 70 %, 105 %",
        "**20** 20 %, 30 %",
        "**35** 35 %, 52 %",
        "**2.00** × quick w8",
        "1.3 ×",
    ]
    assert rows["process start to first token, later, s"] == [
        "**0.6** [0.5, 0.7]",
        "**2**",
        "**1.2**",
        "**2.00** × quick w8",
    ]
    assert rows["decode beside a busy neighbour"][0] == "**42** [40, 45] 60 % of undisturbed"
    assert rows["output head"][:3] == ["int8", "q8", "w8"]
    assert "- quick 1.0; KV bf16" in lines
    widths = {line.count("|") for line in lines if line.startswith("|")}
    assert widths == {7}


def test_ceilings_count_the_bytes_of_the_contenders_own_formats(
    compare_module: ModuleType,
) -> None:
    from trimtab.bench.machine import MachineLimits
    from trimtab.models.registry import model_spec

    spec = model_spec(json.loads((BENCHMARKS / "configs" / "qwen3-0.6b.json").read_text()))
    rates = dict.fromkeys(("f32", "bf16", "int8", "int4"), 1e12)
    machine = MachineLimits("a CPU", "avx2", 2, 50e9, 40e9, 30e9, rates)
    layers, head = 440_401_920, 151_936 * 1024  # multiply-accumulates a token
    kv_elements = 28 * 8 * 128 * 2  # a token
    context = 32_768 + 64
    expected = {
        "trimtab int8": layers + head + context * kv_elements * 2,
        "openvino int4": layers * 4.125 / 8 + head + context * (kv_elements + 28 * 8 * 2 * 8),
        "onnxruntime int4": (layers + head) * 5 / 8 + context * kv_elements * 4,
        "vllm w8a8": layers + head * 2 + context * kv_elements * 2,
    }
    for contender in compare_module.CONTENDERS:
        if contender.label in expected:
            ceiling = compare_module.ceiling("decode 32768", contender, spec, machine)
            assert ceiling == pytest.approx(50e9 / expected.pop(contender.label))
            assert compare_module.ceiling("start cold", contender, spec, machine) == 0
    assert not expected
