"""What the command line makes of a damaged model: the same entry that a user calls, in process."""

from __future__ import annotations

import contextlib
import io
import time
from pathlib import Path

import pytest

from trimtab.cli.main import main

PREFIX = "trimtab: error: "
MAX_SECONDS = 10


def refused_line(path: Path, command: str = "bench") -> str:
    """The one line that `trimtab COMMAND PATH` ends with; asserts exit status 2 and no
    other line but that it was loading.

    `generate` reads the tokenizer too, `bench` the model only.
    """
    more = {"bench": [], "generate": ["a"]}[command]
    errors = io.StringIO()
    start = time.process_time()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(errors):
        patch.setenv("TRIMTAB_PACKED_CACHE", "off")
        status = main([command, str(path), *more])
    assert status == 2, errors.getvalue()
    assert time.process_time() - start < MAX_SECONDS
    *progress, line = errors.getvalue().splitlines()
    assert all(said.startswith("loading ") for said in progress)
    assert line.startswith(PREFIX)
    return line.removeprefix(PREFIX)
