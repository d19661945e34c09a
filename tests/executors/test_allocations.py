"""Once it has seen batches of a size, a step allocates nothing, however long the contexts grow."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
HERE = Path(__file__).resolve().parent

pytestmark = [
    pytest.mark.skipif(COMPILER is None, reason="no C compiler"),
    pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the counter needs glibc"),
    pytest.mark.skipif("LD_PRELOAD" in os.environ, reason="something else is preloaded"),
]


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    library = tmp_path_factory.mktemp("shim") / "count_allocations.so"
    source = HERE / "count_allocations.c"
    assert COMPILER is not None
    command = [COMPILER, "-shared", "-fPIC", "-O1", str(source), "-o", str(library), "-ldl"]
    subprocess.run(command, check=True, timeout=60)
    return library


@pytest.mark.parametrize(
    ("weights", "kv_cache"), [("bf16", "bf16"), ("int8", "int8"), ("int4", "bf16")]
)
def test_steps_allocate_nothing(shim: Path, weights: str, kv_cache: str) -> None:
    environment = os.environ | {
        "LD_PRELOAD": str(shim),
        "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path]),
    }
    child = subprocess.run(
        [sys.executable, str(HERE / "allocation_child.py"), str(shim), weights, kv_cache],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert child.returncode == 0, child.stderr
    counts = json.loads(child.stdout)
    if not counts["interposed"]:
        pytest.skip("this Python's executable exports its functions: they cannot be preloaded")
    assert counts["first"] > 0  # the counter counts: the first steps had to make their buffers
    assert len(counts["later"]) > 1600
    assert sum(counts["later"]) == 0, [i for i, n in enumerate(counts["later"]) if n]
