"""A cache of packed models, and a checkpoint to fill it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from packed_checkpoints import write_seed

from trimtab.executors import packed_cache

sys.path[:0] = [str(Path(__file__).parents[1] / name) for name in ("native", "checkpoints")]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / "cache" / "packed"
    monkeypatch.setenv("TRIMTAB_PACKED_CACHE", str(directory))
    return directory


@pytest.fixture
def seed(tmp_path: Path) -> Path:
    write_seed(tmp_path / "weights", 1)
    return tmp_path / "weights"


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Digests of files are remembered at once, not only when they have rested."""
    monkeypatch.setattr(packed_cache, "RESTING_NS", 0)
