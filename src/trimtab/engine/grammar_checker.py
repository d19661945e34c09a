"""Compile a grammar where it can do no harm: in a process that may crash, hang or eat up memory.

llguidance 1.9 overflows the stack on a chain of some thousand rules or references, and takes
seconds and gigabytes on others, so nothing reaches it in the engine's own process that did not come
through here, with a quarter of the stack. A checker knows single bytes and special tokens only, no
vocabulary: it starts in a tenth of a second.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from typing import Any

from trimtab.engine.client import Grammar
from trimtab.engine.grammar_source import refused
from trimtab.errors import TrimtabError

COMPUTE_SECONDS = 1.5  # of processor time
WALL_SECONDS = 10.0  # on a machine that has other things to do
START_SECONDS = 60.0
MAX_REASON = 200  # characters

_DEATHS: dict[int, str] = {
    signal.SIGPROF: f"compiling it takes more than {COMPUTE_SECONDS:g} s",
    signal.SIGSEGV: "its rules or references nest too deeply",
    signal.SIGABRT: "compiling it takes too much memory",
}


class GrammarChecker:
    """One process, started when the first grammar comes and again after each death. Used by one
    thread at a time."""

    def __init__(self, vocab_size: int, special_tokens: dict[int, str]) -> None:
        self._hello = {
            "vocab_size": vocab_size,
            "special_tokens": special_tokens,
            "compute_seconds": COMPUTE_SECONDS,
        }
        self._process: subprocess.Popen[bytes] | None = None
        self._received = b""

    def check(self, grammar: Grammar) -> str:
        """The grammar in llguidance's own form. RequestError if it cannot be compiled."""
        if self._process is None:
            self._start()
        answer = self._ask({"kind": grammar.kind, "source": grammar.source}, WALL_SECONDS)
        if answer is None:
            raise refused(self._bury())
        if "error" in answer:
            raise refused(" ".join(str(answer["error"]).split())[:MAX_REASON])
        return str(answer["grammar"])

    def interrupt(self) -> None:
        """End the process, from any thread: a `check` that is under way fails."""
        process = self._process
        if process is not None:
            process.kill()

    def close(self) -> None:
        if self._process is not None:
            self._bury()

    def _start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _bootstrap()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # a terminal's Ctrl-C is not for it
        )
        self._received = b""
        if self._ask(self._hello, START_SECONDS) is None:
            raise TrimtabError(f"the grammar checker does not start: {self._bury()}")

    def _ask(self, question: dict[str, Any], seconds: float) -> dict[str, Any] | None:
        """The answer; None if the process died or took too long."""
        process = self._process
        assert process is not None
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(question).encode() + b"\n")
            process.stdin.flush()
        except BrokenPipeError:
            return None
        line = self._read_line(time.monotonic() + seconds)
        return None if line is None else json.loads(line)

    def _read_line(self, deadline: float) -> bytes | None:
        assert self._process is not None
        assert self._process.stdout is not None
        file = self._process.stdout.fileno()
        while b"\n" not in self._received:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([file], [], [], left)[0]:
                return None
            data = os.read(file, 1 << 16)
            if not data:
                return None
            self._received += data
        line, self._received = self._received.split(b"\n", 1)
        return line

    def _bury(self) -> str:
        """End the process; why it failed, for people."""
        assert self._process is not None
        process, self._process = self._process, None
        try:
            # If it died, it did so by now, but maybe is not reaped.
            status: int | None = process.wait(0.1)
        except subprocess.TimeoutExpired:
            status = None
            process.kill()
            process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        if status is None:
            return f"compiling it takes more than {WALL_SECONDS:g} s"
        return _DEATHS.get(-status, f"compiling it failed ({status})")


def _bootstrap() -> str:
    """What the process runs. It imports from where we do, the working directory excluded."""
    path = [entry for entry in sys.path if entry]
    return (
        f"import sys; sys.path[:] = {path!r};"
        " from trimtab.engine.grammar_checker_process import main; main()"
    )
