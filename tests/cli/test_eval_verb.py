"""`trimtab eval`, as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trimtab import builtin
from trimtab.checkpoints import open_checkpoint
from trimtab.checkpoints.writing import write_gguf
from trimtab.cli.main import main


def test_text_tasks_and_baseline(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["eval", str(builtin.draft_path()), "--weights", "int4", "--baseline", "f32"]
    arguments += ["--text", str(builtin.heldout_path()), "--limit", "6", "--window", "100"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    for part in ("int4-g64, KV bf16", "6 windows", "perplexity", "bits per byte", "f32, KV f32"):
        assert part in printed
    assert main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["baseline"] == {"model": arguments[1], "weights": "f32", "kv_cache": "f32"}
    text = found["text"]
    assert f"{text['perplexity']['value']:.4f} [" in printed
    assert 0 < text["distance"]["kl_nats"]["value"] < 0.2
    assert found["tasks"] is None


def test_tasks_alone_and_another_model_as_baseline(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    lines = builtin.tasks_path().read_text(encoding="utf-8").splitlines()[:6]
    (tmp_path / "tasks").write_text("\n".join(lines))
    assert main(["eval", "builtin", "--tasks", str(tmp_path / "tasks")]) == 0
    assert "of 6 right" in capsys.readouterr().out
    (tmp_path / "text").write_text("import os\n" * 40)
    arguments = ["eval", str(builtin.draft_path()), "--baseline", "builtin"]
    assert main([*arguments, "--text", str(tmp_path / "text")]) == 0
    assert "against builtin bf16, KV bf16" in capsys.readouterr().out


def test_a_checkpoint_of_integers_against_the_model_it_was_made_of(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    draft = str(builtin.draft_path())
    file = tmp_path / "draft.gguf"
    write_gguf(open_checkpoint(draft), file, "Q8_0")
    arguments = ["eval", str(file), "--text", str(builtin.heldout_path()), "--json"]
    arguments += ["--limit", "4", "--window", "64"]
    assert main([*arguments, "--baseline", f"{draft}:f32"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["weights"] == "int8-g32"
    assert found["baseline"] == {"model": draft, "weights": "f32", "kv_cache": "f32"}
    assert 0 < found["text"]["distance"]["kl_nats"]["value"] < 0.002
    assert main([*arguments, "--baseline", "f32"]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "--baseline MODEL:f32" in error


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "--text FILE, --tasks FILE"),
        (["--tasks", "TEXT"], "line 1: not JSON"),
        (["--text", "/nowhere"], "/nowhere: No such file"),
        (["--text", "BINARY"], "not UTF-8"),
        (["--text", "EMPTY"], "no token to score"),
        (["--text", "TEXT", "--baseline", "/no/model"], "/no/model"),
        (["--tasks", "TEXT", "--baseline", "f32"], "--baseline compares on text"),
        (["--text", "TEXT", "--baseline", "builtin"], "another vocabulary"),
        (["--text", "TEXT", "--window", "100000"], "context of 512"),
        (["--text", "TEXT", "--window", "1"], "--window"),
        (["--text", "TEXT", "--num-blocks", "2"], "blocks of KV cache"),
    ],
)
def test_mistakes_are_one_line_and_status_2(
    capsys: pytest.CaptureFixture[str],
    model: Path,
    tmp_path: Path,
    arguments: list[str],
    named: str,
) -> None:
    files = {"TEXT": b"some words " * 300, "BINARY": b"\xff\xfe", "EMPTY": b""}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    given = [str(tmp_path / word) if word in files else word for word in arguments]
    assert main(["eval", str(model), *given]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("trimtab: error: ")
    assert named in error
