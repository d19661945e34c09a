"""The optimizer's place on disk, for what is made or measured once and found again.

    directory/artifacts/KEY/      a quantized checkpoint and artifact.json (artifacts.py)
    directory/artifacts/KEY.lock  whoever builds it holds this
    directory/references/KEY/     what the unmodified model says of the test text (reference.py)
    directory/quality/KEY.json    results (quality.py)
    directory/digests/*.json      digests of checkpoint files (DigestMemo)

All names are hashes of everything that the content follows from. What is there is complete: it is
made beside its place and renamed.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trimtab.environment import optimizer_cache_bytes, optimizer_cache_directory
from trimtab.errors import ConfigError

RESERVE_BYTES = 256 << 20  # of the disk, that are left to others


def cache_directory(part: str) -> Path:
    """`directory/part`, made if need be. Raises ConfigError, one line, if there can be none."""
    root = optimizer_cache_directory()
    if root is None:
        raise ConfigError(
            "the optimizer needs a place on disk: set TRIMTAB_OPTIMIZER_CACHE to an absolute path"
        )
    path = root / part
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{path}: {error.strerror}; set TRIMTAB_OPTIMIZER_CACHE to another place"
        ) from None
    return path


def check_space(place: Path, needed: int, what: str) -> None:
    """Raises ConfigError unless so many bytes are free on the disk and allowed to the cache."""
    if needed > optimizer_cache_bytes() // 2:
        raise ConfigError(
            f"{what} takes {_gib(needed)}, more than half of TRIMTAB_OPTIMIZER_CACHE_GIB"
        )
    free = free_bytes(place)
    if free < needed + RESERVE_BYTES:
        raise ConfigError(
            f"{place}: {what} takes {_gib(needed)}, and only {_gib(free)} are free there: make "
            "room, or set TRIMTAB_OPTIMIZER_CACHE to another disk"
        )


def free_bytes(place: Path) -> int:
    space = os.statvfs(place)
    return space.f_bavail * space.f_frsize


@contextmanager
def writing(place: Path) -> Iterator[None]:
    """Turns what the file system refuses into one line."""
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{place}: cannot be written: {error.strerror or error}") from None


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds the lock of that name, which the system takes back when the process ends."""
    with writing(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        with contextlib.suppress(OSError):  # no locks on this file system: both build, one wins
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def write_atomically(path: Path, data: bytes) -> None:
    """Raises OSError; then what was there is there still."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def read_json(path: Path) -> Any:
    """None for what is not there or is damaged."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None


def directory_bytes(path: Path) -> int:
    total = 0
    for entry in path.rglob("*"):
        with contextlib.suppress(OSError):
            total += entry.lstat().st_size
    return total


def make_room(place: Path, needed: int, limit: int, keep: Path | None = None) -> None:
    """Removes the least recently used entries of a directory until they and `needed` more bytes
    are within the limit. An entry's use is its modification time: see `touch`."""
    entries = []
    for path in place.iterdir():
        if path.is_dir() and path != keep and not path.name.startswith("."):
            with contextlib.suppress(OSError):
                entries.append((path.stat().st_mtime, path, directory_bytes(path)))
    used = sum(size for _, _, size in entries)
    for _, path, size in sorted(entries):
        if used + needed <= limit:
            return
        shutil.rmtree(path, ignore_errors=True)
        used -= size


def touch(path: Path) -> None:
    """It was used just now."""
    with contextlib.suppress(OSError):
        os.utime(path)


def _gib(count: int) -> str:
    return f"{count / (1 << 30):.2f} GiB"
