"""Plans and fitted models as `trimtab serve` gets them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest
from plans import elsewhere, plan_of

from trimtab import builtin
from trimtab.cli.main import main
from trimtab.config import ExecutorConfig, SchedulerConfig
from trimtab.errors import UserError
from trimtab.optimizer.artifacts import find_or_build
from trimtab.optimizer.serving import draft_spec, prepare_model, prepare_plan
from trimtab.optimizer.variants import Variant


def test_a_plan_of_this_machine_has_nothing_to_note(tmp_path: Path) -> None:
    plan = plan_of()
    plan.write(tmp_path / "plan.yaml")
    prepared = prepare_plan(tmp_path / "plan.yaml", {})
    assert prepared.model == str(builtin.target_path())
    assert prepared.name == "builtin"
    assert prepared.executor == plan.executor
    assert prepared.scheduler == plan.scheduler
    assert [word for word, _ in prepared.lines] == ["serves"]
    assert prepared.document["notes"] == []


def test_what_is_set_beside_it_is_told(tmp_path: Path) -> None:
    plan_of().write(tmp_path / "plan.yaml")
    given = {"threads": 2, "max_num_requests": 4, "kv_cache": "bf16", "max_batch_tokens": 64}
    prepared = prepare_plan(tmp_path / "plan.yaml", given)
    assert prepared.executor.threads == 2
    assert prepared.executor.kv_cache == "bf16"
    assert prepared.executor.max_context == 256
    assert prepared.scheduler.max_batch_tokens == 64
    notes = prepared.document["notes"]
    assert notes[0].endswith("threads=2 (1), kv_cache=bf16 (int8), max_batch_tokens=64 (512)")
    assert "quality was not measured" in notes[1]


def test_a_cache_size_beside_a_number_of_blocks(tmp_path: Path) -> None:
    plan = plan_of()
    plan = replace(plan, executor=replace(plan.executor, num_blocks=100))
    plan.write(tmp_path / "plan.yaml")
    assert prepare_plan(tmp_path / "plan.yaml", {}).executor.num_blocks == 100
    prepared = prepare_plan(tmp_path / "plan.yaml", {"kv_cache_gib": 1.0})
    assert (prepared.executor.num_blocks, prepared.executor.kv_cache_gib) == (0, 1.0)


def test_another_machine_and_other_versions_are_told(tmp_path: Path) -> None:
    plan = elsewhere(plan_of())
    plan = replace(plan, versions={**plan.versions, "numerics": "0"})
    plan.write(tmp_path / "plan.yaml")
    notes = prepare_plan(tmp_path / "plan.yaml", {}).document["notes"]
    assert "a 6502" in notes[0]
    assert "its numbers do not carry over" in notes[0]
    assert "numerics 2 instead of 0" in notes[1] or "instead of 0" in notes[1]


def test_another_model_is_refused(tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(builtin.draft_path(), model)
    plan_of(str(model)).write(tmp_path / "plan.yaml")
    assert prepare_plan(tmp_path / "plan.yaml", {}).name == "model"
    weights = model / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(UserError, match="is not the model that this plan was made for") as caught:
        prepare_plan(tmp_path / "plan.yaml", {})
    assert "\n" not in str(caught.value)
    shutil.rmtree(model)
    with pytest.raises(UserError, match="no such file"):
        prepare_plan(tmp_path / "plan.yaml", {})


def test_an_artifact_is_built_again_and_compared(model: Path, tmp_path: Path, cache: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("Small models are quickly built. " * 400)
    variant = Variant("int4", 64, "gptq", calibration=str(text))
    artifact = find_or_build(str(model), variant)
    plan = replace(plan_of(str(model), variant), artifact_hash=artifact.hash)
    plan.write(tmp_path / "plan.yaml")
    shutil.rmtree(cache / "artifacts")
    said: list[str] = []
    prepared = prepare_plan(tmp_path / "plan.yaml", {}, said.append)
    assert any("building" in line for line in said)
    assert prepared.model == str(artifact.path)
    assert prepared.document["notes"] == []
    replace(plan, artifact_hash="0" * 64).write(tmp_path / "plan.yaml")
    notes = prepare_plan(tmp_path / "plan.yaml", {}).document["notes"]
    assert "came out otherwise" in notes[0]


def test_a_model_is_fitted(monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = prepare_model("builtin", ExecutorConfig(), SchedulerConfig(), {})
    assert prepared.executor.weights == "bf16"
    assert prepared.executor.threads > 0
    assert prepared.executor.num_blocks > 0
    assert [word for word, _ in prepared.lines] == ["fitted", "because"]
    given = {"threads": 1, "max_batch_tokens": 33, "kv_cache_gib": 0.01, "max_num_requests": 3}
    given["weights"] = "int8"
    executor = ExecutorConfig(threads=1, kv_cache_gib=0.01, weights="int8")
    scheduler = SchedulerConfig(max_batch_tokens=33, max_num_requests=3)
    prepared = prepare_model("builtin", executor, scheduler, given)
    assert (prepared.executor, prepared.scheduler) == (executor, scheduler)
    assert prepared.lines == []


def test_who_guesses_takes_memory_too() -> None:
    path = builtin.target_path()
    assert draft_spec(path, SchedulerConfig()) is not None
    assert draft_spec(path, SchedulerConfig(speculative="lookup")) is None
    assert draft_spec(builtin.draft_path(), SchedulerConfig()) is None


def test_damage_is_one_line_and_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text("trimtab_plan: 9\n")
    assert main(["serve", str(path)]) == 2
    assert "a plan of format 9" in capsys.readouterr().err
    assert main(["serve", str(tmp_path / "none.yaml")]) == 2
    assert "no such file" in capsys.readouterr().err


def test_a_served_plan_answers(tmp_path: Path) -> None:
    elsewhere(plan_of()).write(tmp_path / "plan.yaml")
    command = [sys.executable, "-m", "trimtab", "serve", str(tmp_path / "plan.yaml"), "--json"]
    process = subprocess.Popen(
        [*command, "--port", "0", "--max-num-requests", "2"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        announced = json.loads(process.stdout.readline())
        assert announced["model"] == "builtin"
        assert "int8, KV int8, 1 thread" in announced["plan"]
        assert announced["max_context"] == 256
        notes = announced["prepared"]["notes"]
        assert "do not carry over" in notes[0]
        assert "max_num_requests=2 (4)" in notes[1]
        body = {"model": "builtin", "prompt": "def", "max_tokens": 4, "temperature": 0}
        request = urllib.request.Request(
            announced["url"] + "/v1/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            answer = json.load(response)
        assert answer["usage"]["completion_tokens"] == 4
    finally:
        process.terminate()
        process.communicate(timeout=60)
    assert process.returncode == 0


def test_a_directory_is_no_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = tmp_path / "model.yaml"
    directory.mkdir()
    assert main(["serve", str(directory)]) == 2
    assert "no config.json" in capsys.readouterr().err
