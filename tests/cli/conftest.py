from __future__ import annotations

import sys
from pathlib import Path

import pytest

for room in ("server", "checkpoints", "tokenization"):
    sys.path.insert(0, str(Path(__file__).parents[1] / room))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tiny_model import write_tiny_model

    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")
