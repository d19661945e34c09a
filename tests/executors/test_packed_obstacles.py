"""Where packed models cannot be kept, a start says so and goes on."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cpu_models import memory_model
from packed_checkpoints import checkpoint_at, logits, packed_models

from trimtab.executors import packed_cache, packed_file


def test_off(seed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("TRIMTAB_PACKED_CACHE", "off")
    logits(checkpoint_at(seed))
    monkeypatch.setenv("TRIMTAB_PACKED_CACHE", "")
    monkeypatch.setenv("TRIMTAB_PACKED_CACHE_GIB", "0")
    logits(checkpoint_at(seed))
    assert not (tmp_path / "xdg").exists()
    monkeypatch.setenv("TRIMTAB_PACKED_CACHE_GIB", "1")
    logits(checkpoint_at(seed))
    assert len(packed_models(tmp_path / "xdg" / "trimtab" / "packed")) == 1


def test_a_model_in_no_file_is_not_kept(cache: Path) -> None:
    logits(memory_model())
    assert not cache.exists()


def is_a_file(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.parent.mkdir()
    cache.write_text("")


def is_below_a_file(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.parent.write_text("")


def is_read_only(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(packed_cache.tempfile, "mkstemp", refuse)


def is_everybodys(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.mkdir(parents=True)
    cache.chmod(0o777)


def disk_is_full(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    space = os.statvfs("/")

    class Full:
        f_bavail = 1
        f_frsize = space.f_frsize

    monkeypatch.setattr(packed_cache.os, "statvfs", lambda path: Full)


def disk_fills_up(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, written = os.write, []

    def write_some(descriptor: int, data: Any) -> int:
        if len(written) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append(len(data))
        return write(descriptor, data[:1000])

    monkeypatch.setattr(packed_file.os, "write", write_some)


@pytest.mark.parametrize(
    "obstacle",
    [
        is_a_file,
        is_below_a_file,
        is_read_only,
        is_everybodys,
        disk_is_full,
        disk_fills_up,
    ],
)
def test_a_cache_that_cannot_be_used_is_one_line_in_the_log(
    obstacle: Callable[[Path, pytest.MonkeyPatch], None],
    cache: Path,
    seed: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with pytest.MonkeyPatch.context() as off:
        off.setenv("TRIMTAB_PACKED_CACHE", "off")
        made = logits(checkpoint_at(seed))
    with pytest.MonkeyPatch.context() as patch:
        obstacle(cache, patch)
        assert (logits(checkpoint_at(seed)) == made).all()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "cached" in caplog.text
    assert not cache.is_dir() or not [path for path in cache.iterdir() if path.is_file()]


@pytest.mark.parametrize(
    ("mode", "owner", "reason"),
    [
        (0o040700, 5, ""),
        (0o040775, 5, ""),
        (0o040755, 0, ""),
        (0o040755, 6, "another user"),
        (0o040777, 5, "everybody"),
        (0o100600, 5, "not a directory"),
    ],
)
def test_whose_directory_is_trusted(
    mode: int, owner: int, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed_cache.os, "geteuid", lambda: 5)
    told = packed_cache._distrust(os.stat_result((mode, 0, 0, 1, owner, 0, 0, 0, 0, 0)))
    assert reason in told
    assert bool(reason) == bool(told)
