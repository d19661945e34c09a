"""Kernels run on the card, where there is one, else under Triton's interpreter (tests/conftest.py);
helpers of the executors' tests, and of those of the native core's."""

from __future__ import annotations

import sys
from pathlib import Path

_TESTS = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(_TESTS / name) for name in ("executors", "native", "checkpoints", "engine")]

try:
    import triton  # noqa: F401
except ImportError:  # no wheels for this platform: tests of kernels skip themselves
    pass
else:
    from interpreter_repairs import repair_interpreter

    repair_interpreter()
