"""Where kernels run."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture
def floats_overflow() -> Iterator[None]:
    """As on the device, without a word: numpy's warnings are errors of tests."""
    with np.errstate(over="ignore", invalid="ignore"):
        yield
