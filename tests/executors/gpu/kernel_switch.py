"""Where kernels run, and matrix products with one order of sums.

`ordered_dots` makes the interpreter add products up in the order of the columns, as the device has
one order: numpy's depends on the shape, so no law could be tested with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

from interpreter_repairs import _widened
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture
def ordered_dots(monkeypatch: pytest.MonkeyPatch) -> None:
    def dot(builder: Any, a: Any, b: Any, sum_: Any, precision: Any, max_num: Any) -> Any:
        total = np.array(sum_.data)
        left, right = _widened(a).astype(total.dtype), _widened(b).astype(total.dtype)
        for k in range(left.shape[1]):
            total += left[:, k, None] * right[None, k, :]
        return TensorHandle(total, sum_.dtype.scalar)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", dot)


@pytest.fixture
def floats_overflow() -> Iterator[None]:
    """As on the device, without a word: numpy's warnings are errors of tests."""
    with np.errstate(over="ignore", invalid="ignore"):
        yield
