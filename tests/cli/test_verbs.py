"""The command line, in this process where possible, as a process where it must be."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from live import environment
from tiny_model import write_tiny_model

from trimtab.cli.main import main
from trimtab.config import ExecutorConfig, SchedulerConfig, ServerConfig


def test_help_lists_every_knob_with_its_own_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for config in (ExecutorConfig, SchedulerConfig, ServerConfig):
        for field in dataclasses.fields(config):
            assert f"--{field.name.replace('_', '-')} " in shown
            assert field.metadata["help"] in shown


def test_no_command_is_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "serve" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("trimtab ")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["bogus"], "bogus"),
        (["serve"], "model"),
        (["serve", "x", "--bogus"], "--bogus"),
        (["serve", "x", "--weights", "int3"], "int3"),
        (["serve", "x", "--threads", "two"], "--threads"),
        (["serve", "x", "--group-size", "33"], "group_size=33"),
        (["serve", "x", "--port", "99999999"], "99999999"),
        (["generate", "x"], "prompt"),
        (["generate", "/no/such", "hi"], "/no/such"),
        (["generate", "/no/such", "hi", "--temperature", "-1"], "temperature"),
        (["chat", "/no/such"], "/no/such"),
    ],
)
def test_mistakes_are_one_line_and_status_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("trimtab: error: ")
    assert words in line


def test_an_unexpected_error_is_one_line_unless_debug(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **settings: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.delenv("TRIMTAB_DEBUG", raising=False)
    monkeypatch.setattr("trimtab.engine.llm.LLM.__init__", fail)
    assert main(["generate", "x", "hi"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "ZeroDivisionError" in line
    assert "--debug" in line
    monkeypatch.setenv("TRIMTAB_DEBUG", "1")
    assert main(["generate", "x", "hi"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_generate(capsys: pytest.CaptureFixture[str], model: Path) -> None:
    arguments = ["generate", str(model), "hello", "--max-tokens", "12", "--seed", "1"]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert main([*arguments, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert shown == document["text"] + ("" if document["text"].endswith("\n") else "\n")
    assert document["finish_reason"] == "length"
    assert document["usage"] == {"prompt_tokens": 5, "completion_tokens": 12, "total_tokens": 17}
    assert main([*arguments[:-1], "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["text"] != document["text"]


def test_generate_reads_standard_input(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, model: Path
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("héllo".encode())))
    assert main(["generate", str(model), "-", "--max-tokens", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["prompt"] == "héllo"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xff")))
    assert main(["generate", str(model), "-"]) == 2
    assert "UTF-8" in capsys.readouterr().err


def test_generate_refuses_what_cannot_fit(capsys: pytest.CaptureFixture[str], model: Path) -> None:
    assert main(["generate", str(model), "x" * 50_000]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert main(["generate", str(model), ""]) == 2
    assert "empty" in capsys.readouterr().err


def test_chat_through_a_pipe(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, model: Path
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"one\n\ntwo\r\n")))
    arguments = ["chat", str(model), "--max-tokens", "4", "--seed", "1", "--system", "be brief"]
    assert main([*arguments, "--json"]) == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    start = len("<system>be brief\n<user>one\n<assistant>")
    assert first["usage"]["prompt_tokens"] == start
    more = len(first["content"].encode()) + len("\n<user>two\n<assistant>")
    assert second["usage"]["prompt_tokens"] == start + more


def test_chat_goes_on_after_a_question_it_cannot_take(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, model: Path
) -> None:
    lines = b"REFUSED BY TEMPLATE\n" + b"x" * 600 + b"\nfine\n"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(lines)))
    assert main(["chat", str(model), "--max-tokens", "4", "--json"]) == 0
    refused, too_long, fine = map(json.loads, capsys.readouterr().out.splitlines())
    assert "error" in refused
    assert "error" in too_long
    assert fine["usage"]["prompt_tokens"] == len("<user>fine\n<assistant>")


def test_chat_needs_a_template(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "plain", chat_template=None)
    assert main(["chat", str(model)]) == 2
    assert "chat template" in capsys.readouterr().err


def read_until(terminal: int, words: str, seconds: float = 30) -> str:
    seen = ""
    deadline = time.monotonic() + seconds
    while words not in seen:
        assert time.monotonic() < deadline, f"{words!r} not in {seen!r}"
        if select.select([terminal], [], [], 0.1)[0]:
            seen += os.read(terminal, 4096).decode(errors="replace")
    return seen


def interrupt(process: subprocess.Popen[bytes], terminal: int) -> None:
    """Ctrl-C until the prompt comes back: input() misses one that arrives while it begins."""
    for _ in range(20):
        process.send_signal(signal.SIGINT)
        if select.select([terminal], [], [], 1.5)[0]:
            break
    read_until(terminal, "> ")


def test_chat_in_a_terminal(model: Path) -> None:
    """Ctrl-C stops an answer, another one clears a line, Ctrl-D ends."""
    terminal, other = pty.openpty()
    # A shell's background job ignores SIGINT, and children inherit that; not from a handler.
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        [sys.executable, "-m", "trimtab", "chat", str(model), "--temperature", "1"],
        stdin=other,
        stdout=other,
        stderr=other,
        env=environment() | {"TERM": "dumb"},
        start_new_session=True,
    )
    signal.signal(signal.SIGINT, inherited)
    os.close(other)
    try:
        read_until(terminal, "> ")
        os.write(terminal, b"hello\n")
        read_until(terminal, "> ")
        interrupt(process, terminal)
        os.write(terminal, b"\x04")
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait(5)
        os.close(terminal)


def test_python_m_trimtab_and_a_closed_pipe(model: Path) -> None:
    command = f"{sys.executable} -m trimtab generate {model} hi --max-tokens 400 | head -c 3"
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, env=environment(), timeout=30
    )
    assert len(done.stdout) == 3
    assert b"Traceback" not in done.stderr
