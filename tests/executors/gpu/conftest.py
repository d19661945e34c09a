"""Kernels run on the card, where there is one, else under Triton's interpreter; helpers of the
executors' tests, and of those of the native core's."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

# Before anything imports triton, which looks at it once.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

_TESTS = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(_TESTS / name) for name in ("executors", "native", "checkpoints", "engine")]

try:
    import triton  # noqa: F401
except ImportError:  # no wheels for this platform: tests of kernels skip themselves
    pass
else:
    from interpreter_repairs import repair_interpreter

    repair_interpreter()
