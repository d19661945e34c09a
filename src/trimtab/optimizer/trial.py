"""A function in a process of its own, so that its crash is a result and not an end.

    parent   run_trial("trimtab.optimizer.x:function", {...})        signals the child, nobody else
    child    one line of JSON on its standard input, then function(arguments, progress)
             lines of JSON on a pipe: {"progress": text} ..., {"result": value} or {"error": text}

What the child prints goes to a temporary file; its last lines are part of the reason if it dies.
The child ends with its parent, however that ends, and the system picks it first when memory is
short.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import resource
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from trimtab.errors import UserError
from trimtab.optimizer.process_memory import tree_resident_bytes

Progress = Callable[[str], None]
TrialFunction = Callable[[dict[str, Any], Progress], Any]

POLL_SECONDS = 0.1
END_SECONDS = 10.0  # from its last word to its end
TAIL_BYTES = 2000
PR_SET_PDEATHSIG = 1
MAX_LINE = 64 << 20


@dataclass(frozen=True)
class TrialOutcome:
    """What became of a trial: `failed` is None and there is a result, or one line that says why."""

    result: Any
    failed: str | None
    seconds: float
    peak_bytes: int  # resident, of the process and those that it started, as far as was looked
    is_user_error: bool = False  # it failed with a UserError: `failed` is its text

    def value(self) -> Any:
        """The result. Raises UserError if the trial failed."""
        if self.failed is not None:
            raise UserError(self.failed)
        return self.result


def run_trial(
    function: str,
    arguments: Mapping[str, Any],
    *,
    memory_bytes: int | None = None,
    seconds: float | None = None,
    progress: Progress = lambda line: None,
) -> TrialOutcome:
    """Calls `function` ("module:name") with `arguments` (JSON) and a progress function
    in a new process and gives what it returns (JSON).

    A child that is resident with more than `memory_bytes`, or takes longer than `seconds`, is
    killed. Nothing that it does raises here.
    """
    started = time.monotonic()
    line = {
        "function": function,
        "arguments": dict(arguments),
        "memory_bytes": memory_bytes,
        "parent_pid": os.getpid(),
    }
    read_end, write_end = os.pipe()
    with tempfile.TemporaryFile() as printed, os.fdopen(read_end, "rb", buffering=0) as results:
        try:
            child = subprocess.Popen(
                [sys.executable, "-c", _bootstrap(), str(write_end)],
                stdin=subprocess.PIPE,
                stdout=printed,
                stderr=printed,
                pass_fds=[write_end],
            )
        except OSError as error:
            os.close(write_end)
            return TrialOutcome(None, f"cannot be started: {error.strerror}", 0.0, 0)
        os.close(write_end)
        watch = _Watch(child, results, memory_bytes, seconds, progress)
        try:
            assert child.stdin is not None
            with contextlib.suppress(BrokenPipeError):  # it died at once: its status tells
                child.stdin.write(json.dumps(line).encode() + b"\n")
                child.stdin.flush()
            failed = watch.run()
            if failed is None:
                with contextlib.suppress(subprocess.TimeoutExpired):  # it is about to end
                    child.wait(END_SECONDS)
        finally:
            if child.poll() is None:
                child.kill()
            child.wait()
            if child.stdin is not None:
                with contextlib.suppress(BrokenPipeError):
                    child.stdin.close()
        passed = time.monotonic() - started
        if watch.reply is None or failed is not None:
            why = failed or _describe_end(child.returncode, _tail(printed))
            return TrialOutcome(None, why, passed, watch.peak_bytes)
    reply = watch.reply
    if "error" in reply:
        user_error = bool(reply.get("user"))
        return TrialOutcome(None, reply["error"], passed, watch.peak_bytes, user_error)
    return TrialOutcome(reply["result"], None, passed, watch.peak_bytes)


class _Watch:
    """Reads what a child says until it has nothing more to say, and watches its limits."""

    def __init__(
        self,
        child: subprocess.Popen[bytes],
        results: IO[bytes],
        memory_bytes: int | None,
        seconds: float | None,
        progress: Progress,
    ) -> None:
        self.reply: dict[str, Any] | None = None
        self.peak_bytes = 0
        self._child = child
        self._results = results
        self._memory_bytes = memory_bytes
        self._seconds = seconds
        self._progress = progress
        self._unread = b""

    def run(self) -> str | None:
        """Until the pipe ends or a limit is passed: then why, in one line."""
        deadline = time.monotonic() + self._seconds if self._seconds is not None else None
        with selectors.DefaultSelector() as selector:
            selector.register(self._results, selectors.EVENT_READ)
            looked = 0.0
            while True:
                ready = selector.select(POLL_SECONDS)
                now = time.monotonic()
                if now - looked >= POLL_SECONDS / 2:
                    looked = now
                    self.peak_bytes = max(self.peak_bytes, tree_resident_bytes(self._child.pid))
                if self._memory_bytes is not None and self.peak_bytes > self._memory_bytes:
                    return (
                        f"took more than the {self._memory_bytes / (1 << 30):.2f} GiB of memory "
                        "that it was given"
                    )
                if deadline is not None and now > deadline:
                    return f"was not done after {self._seconds:g} seconds"
                if ready and not self._take():
                    return None
                if not ready and self._child.poll() is not None:
                    return None  # a process that it left behind holds the pipe

    def _take(self) -> bool:
        data = os.read(self._results.fileno(), 1 << 16)
        *lines, self._unread = (self._unread + data).split(b"\n")
        for line in lines:
            said = json.loads(line)
            if "progress" in said:
                self._progress(said["progress"])
            else:
                self.reply = said
        return bool(data) and len(self._unread) < MAX_LINE


def _tail(printed: IO[bytes]) -> str:
    """The last line that it printed."""
    size = printed.seek(0, os.SEEK_END)
    printed.seek(max(0, size - TAIL_BYTES))
    lines = printed.read().decode(errors="replace").strip().splitlines()
    return lines[-1].strip() if lines else ""


def _describe_end(status: int, tail: str) -> str:
    if status < 0:
        try:
            name = signal.Signals(-status).name
        except ValueError:
            name = f"signal {-status}"
        why = f"was ended by {name}"
        if -status == signal.SIGKILL:
            why += " (when memory runs out, the system does that)"
    else:
        why = f"ended with status {status} and no result"
    return f"{why}: {tail}" if tail else why


def _bootstrap() -> str:
    """What the child runs. It imports from where we import from, the working directory excluded."""
    path = [entry for entry in sys.path if entry]
    return (
        f"import sys; sys.path[:] = {path!r};"
        " from trimtab.optimizer.trial import main; sys.exit(main())"
    )


# ---- in the child


def _prepare(parent_pid: int, memory_bytes: int | None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches us, too: the parent decides
    with contextlib.suppress(OSError, AttributeError):  # Linux only
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:
        os._exit(1)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500")
    if memory_bytes is not None:
        # The parent looks ten times a second; this stops what is faster. It counts addresses, which
        # need not be memory, so there is room.
        limit = 2 * memory_bytes + (1 << 30)
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def main() -> int:
    """Of the child."""
    from trimtab import environment

    environment.prepare_process()
    asked = json.loads(sys.stdin.buffer.readline())
    _prepare(asked["parent_pid"], asked["memory_bytes"])
    with os.fdopen(int(sys.argv[1]), "w", encoding="utf-8") as results:

        def say(what: Mapping[str, Any]) -> None:
            results.write(json.dumps(what) + "\n")
            results.flush()

        try:
            module, _, name = asked["function"].partition(":")
            function: TrialFunction = getattr(importlib.import_module(module), name)
            result = function(asked["arguments"], lambda line: say({"progress": line}))
            say({"result": result})
        except UserError as error:
            say({"error": str(error), "user": True})
        except MemoryError:
            say({"error": "ran out of memory"})
        except Exception as error:
            if environment.debug_checks():
                raise
            say({"error": f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"})
    return 0


if __name__ == "__main__":
    sys.exit(main())
