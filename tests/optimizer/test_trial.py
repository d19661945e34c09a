"""Functions in processes of their own: results, errors, crashes, limits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from trimtab.errors import UserError
from trimtab.optimizer.process_memory import process_tree
from trimtab.optimizer.trial import run_trial

THINGS = "trial_functions:misbehave"


def run(what: str, **limits: float) -> tuple[object, str | None]:
    outcome = run_trial(THINGS, {"what": what}, **limits)  # type: ignore[arg-type]
    return outcome.result, outcome.failed


def test_a_result_with_progress() -> None:
    said: list[str] = []
    outcome = run_trial(THINGS, {"what": "return", "value": [1, {"a": None}]}, progress=said.append)
    assert outcome.value() == [1, {"a": None}]
    assert said == ["about to return"]
    assert outcome.seconds > 0
    assert outcome.peak_bytes > 0


def test_errors_are_one_line() -> None:
    outcome = run_trial(THINGS, {"what": "user error"})
    assert outcome.failed == "not so"
    assert outcome.is_user_error
    with pytest.raises(UserError, match="not so"):
        outcome.value()
    outcome = run_trial(THINGS, {"what": "error"})
    assert outcome.failed == "KeyError: 'unexpected'"
    assert not outcome.is_user_error
    assert run_trial("trimtab.optimizer.none:at_all", {}).failed is not None


def test_a_crash_is_a_result() -> None:
    assert "SIGSEGV" in str(run("crash")[1])
    assert "ended with status 7" in str(run("exit")[1])
    assert "last words" in str(run("exit")[1])
    assert "when memory runs out" in str(run("kill")[1])


def test_limits_end_it() -> None:
    started = time.monotonic()
    assert run("sleep", seconds=0.5)[1] == "was not done after 0.5 seconds"
    assert time.monotonic() - started < 30
    assert "took more than the 0.20 GiB" in str(run("allocate", memory_bytes=215_000_000)[1])


def test_what_it_leaves_behind_does_not_hold_us_up() -> None:
    result, failed = run("orphan", seconds=30)
    assert failed is None
    assert isinstance(result, int)
    os.kill(result, signal.SIGKILL)  # what the trial told us that it had started


def test_it_ends_with_its_parent() -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from trimtab.optimizer.trial import run_trial\n"
        f"run_trial({THINGS!r}, {{'what': 'sleep'}}, progress=lambda line: print(line, flush=True))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert child in process_tree(parent.pid)
        parent.kill()
        parent.wait()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and _runs(child):
        time.sleep(0.02)
    assert not _runs(child)


def _runs(pid: int) -> bool:
    try:
        fields = (Path("/proc") / str(pid) / "stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return False
    return fields[0] != "Z"


def test_trials_may_run_beside_each_other() -> None:
    found: list[object] = []

    def one(value: int) -> None:
        found.append(run_trial(THINGS, {"what": "return", "value": value}).result)

    threads = [threading.Thread(target=one, args=(value,)) for value in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found, key=str) == [0, 1, 2]
