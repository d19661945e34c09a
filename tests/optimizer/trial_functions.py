"""What trials do in the tests."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from trimtab.errors import UserError


def misbehave(arguments: dict[str, Any], progress: Callable[[str], None]) -> Any:
    what = arguments["what"]
    if what == "return":
        progress("about to return")
        return arguments["value"]
    if what == "user error":
        raise UserError("not so")
    if what == "error":
        raise KeyError("unexpected")
    if what == "crash":
        ctypes.string_at(0)
    if what == "exit":
        print("last words", flush=True)
        os._exit(7)
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "sleep":
        progress(str(os.getpid()))
        time.sleep(600)
    if what == "allocate":
        held = []
        while True:
            held.append(bytearray(b"x") * (10 << 20))
            time.sleep(0.01)
    if what == "orphan":
        code = "import time; time.sleep(600)"
        return subprocess.Popen([sys.executable, "-c", code], close_fds=False).pid
    raise AssertionError(what)
