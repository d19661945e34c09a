"""Variables that are more than a switch."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from trimtab.environment import packed_cache_bytes, packed_cache_directory, prepare_process
from trimtab.errors import ConfigError


@pytest.fixture(autouse=True)
def _bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TRIMTAB_PACKED_CACHE", "TRIMTAB_PACKED_CACHE_GIB", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/ada")


def test_the_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    assert packed_cache_directory() == Path("/home/ada/.cache/trimtab/packed")
    monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")
    assert packed_cache_directory() == Path("/home/ada/.cache/trimtab/packed")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache")
    assert packed_cache_directory() == Path("/var/cache/trimtab/packed")
    monkeypatch.setenv("TRIMTAB_PACKED_CACHE", "~/models")
    assert packed_cache_directory() == Path("/home/ada/models")
    monkeypatch.setenv("TRIMTAB_PACKED_CACHE", "off")
    assert packed_cache_directory() is None
    monkeypatch.setenv("TRIMTAB_PACKED_CACHE", "models")
    with pytest.raises(ConfigError, match="absolute path, or off"):
        packed_cache_directory()


def test_no_home_is_no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME")
    assert packed_cache_directory() is None


def test_the_size(monkeypatch: pytest.MonkeyPatch) -> None:
    assert packed_cache_bytes() == 32 << 30
    monkeypatch.setenv("TRIMTAB_PACKED_CACHE_GIB", "0.5")
    assert packed_cache_bytes() == 1 << 29
    for value in ("-1", "nan", "inf", "much"):
        monkeypatch.setenv("TRIMTAB_PACKED_CACHE_GIB", value)
        with pytest.raises(ConfigError, match="must be a number of GiB"):
            packed_cache_bytes()


def test_what_the_user_set_for_numpy_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "3")
    prepare_process()
    assert os.environ["OPENBLAS_NUM_THREADS"] == "3"
    monkeypatch.delenv("OPENBLAS_NUM_THREADS")
    prepare_process()
    assert os.environ["OPENBLAS_NUM_THREADS"] == "1"
