"""What the interpreter cannot tell: that kernels compile for the card, spill nothing, and that a
product goes through one kind of matrix instruction, whatever the number of rows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

SHARED_BYTES = 232_448  # that a program may have on sm_90


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    program = Path(__file__).with_name("compiled_kernels.py")
    run = subprocess.run(
        [sys.executable, str(program)], env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def test_nothing_is_spilled(compiled: dict[str, dict]) -> None:
    for name, kernel in compiled.items():
        # Once a row, behind all the work: a few registers of it, by the compiler of Triton 3.7.
        assert kernel["stack_bytes"] <= (32 if name == "finish" else 0), name
        assert kernel["shared_bytes"] <= SHARED_BYTES, name
        assert kernel["registers"] <= 255, name


def test_one_kind_of_matrix_instruction(compiled: dict[str, dict]) -> None:
    """64 rows of W, 16 columns (32 of bytes); only the rows of x differ."""
    kinds = {"dense": "k16", "packed": "k16", "int8": "k32", "fp8": "k32"}
    seen = 0
    for name, kernel in compiled.items():
        columns = kinds.get(name.split()[0])
        if columns is None:
            continue
        (shape,) = kernel["matrix_instructions"]
        assert shape.startswith("m64n"), name
        assert shape.endswith(columns), name
        seen += 1
    assert seen >= 14


def test_packed_weights_stay_in_registers(compiled: dict[str, dict]) -> None:
    for name, kernel in compiled.items():
        assert kernel["converted_weights"] == 0, name
