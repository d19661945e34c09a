"""Packed models kept on disk, so that a second start maps one file and packs nothing.

    directory/KEY.packed       a packed model (trimtab.executors.packed_file)
    directory/*.tmp            one being written; locked by its writer
    directory/digests/*.json   digests of checkpoint files and packed models (DigestMemo)

KEY hashes everything that the bytes follow from: the digest of every weight file, the config, the
format, the packed layout. A digest is computed when a file is first seen and remembered for as long
as the file's signature stays the same, so that a start reads no weights and yet never believes a
stale file. The same holds for the packed models: every start checks the header and the size; the
whole content is checked against its digest whenever the signature is not the one remembered, which
means that something other than this cache has written, copied or restored the file.

Files are published by rename and never written in place; whoever has one mapped keeps it, whatever
happens to the name. Nothing here fails a start: what does not work is logged, and the model packed.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import stat
import sys
import tempfile
import time
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from trimtab.checkpoints.base import Checkpoint
from trimtab.checkpoints.stored_file import RESTING_NS, FileSignature, StoredFile
from trimtab.config import ExecutorConfig
from trimtab.environment import packed_cache_bytes, packed_cache_directory
from trimtab.executors.content_digest import digest_file, digest_memory
from trimtab.executors.digest_memo import DigestMemo
from trimtab.executors.packed_file import (
    FORMAT_VERSION,
    HEADER_BYTES,
    DamagedFileError,
    PackedHeader,
    read_header,
    write_packed,
)

if TYPE_CHECKING:
    from trimtab import _native

logger = logging.getLogger(__name__)

SUFFIX = ".packed"
TEMPORARY_SUFFIX = ".tmp"


class PackedLock:
    """Keeps a packed model from being evicted, until it is closed or collected."""

    def __init__(self, descriptor: int) -> None:
        self._close = weakref.finalize(self, os.close, descriptor)

    def close(self) -> None:
        """Idempotent."""
        self._close()


@dataclass(frozen=True)
class WeightDigests:
    """The digests of a checkpoint's files, and which of them were too fresh to be sure of."""

    digests: tuple[bytes, ...]
    fresh: tuple[bool, ...]


class PackedCache:
    def __init__(self, directory: Path, limit_bytes: int, threads: int) -> None:
        """`threads` compute digests."""
        self.directory = directory
        self._limit_bytes = limit_bytes
        self._threads = threads
        self._memo = DigestMemo(directory / "digests")

    @classmethod
    def from_environment(cls, threads: int) -> PackedCache | None:
        """None if it is turned off or its directory must not be trusted."""
        directory, limit = packed_cache_directory(), packed_cache_bytes()
        if directory is None or limit == 0:
            return None
        try:
            reason = _distrust(directory.stat())
        except FileNotFoundError:
            reason = ""
        except OSError as error:
            reason = _reason(error)
        if reason:
            logger.warning("packed models are not cached: %s: %s", directory, reason)
            return None
        return cls(directory, limit, threads)

    # ---- reading

    def weight_digests(self, files: Sequence[StoredFile]) -> WeightDigests | None:
        """Reads the files whose digests are not remembered. None if one of them has changed."""
        found = [self._weight_digest(file) for file in files]
        if not all(file.is_unchanged() for file in files):
            return None
        digests, fresh = zip(*found, strict=True)
        return WeightDigests(digests, fresh)

    def confirm(self, files: Sequence[StoredFile], earlier: WeightDigests) -> bool:
        """Whether the files held those bytes all the time between the two calls."""
        if not all(file.is_unchanged() for file in files):
            return False
        return all(
            not fresh or self._weight_digest(file)[0] == digest
            for file, digest, fresh in zip(files, earlier.digests, earlier.fresh, strict=True)
        )

    def _weight_digest(self, file: StoredFile) -> tuple[bytes, bool]:
        known = self._memo.find(file)
        if known is not None:
            return known, False
        signature = file.signature
        fresh = time.time_ns() - max(signature.mtime_ns, signature.ctime_ns) < RESTING_NS
        descriptor = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if FileSignature.of(os.fstat(descriptor)) != signature:
                raise OSError("the checkpoint has changed")
            digest = digest_file(descriptor, 0, signature.size, self._threads)
        finally:
            os.close(descriptor)
        if not fresh and file.is_unchanged() and self._make_directory():
            self._memo.remember(file, digest)
        return digest, fresh

    def load(self, key: bytes, builder: _native.ModelBuilder) -> PackedLock | None:
        """Gives the builder the whole model; None, and an untouched builder, if it is not here."""
        from trimtab import _native

        path = self._path(key)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            return None
        except OSError as error:
            logger.warning("%s: %s; packing the model again", path, _reason(error))
            return None
        lock = PackedLock(descriptor)
        try:
            with contextlib.suppress(OSError):  # evicted just now, or no locks here: still mapped
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise DamagedFileError("not a regular file")
            header = read_header(descriptor, key, _native.PACKED_REVISION)
            self._verify(path, descriptor, header)
            builder.map_packed(descriptor, header.file_bytes, HEADER_BYTES, header.vectors_offset)
        except (DamagedFileError, OSError, ValueError, RuntimeError) as error:
            lock.close()
            logger.warning("%s: %s; packing the model again", path, _reason(error))
            return None
        return lock

    def _verify(self, path: Path, descriptor: int, header: PackedHeader) -> None:
        file = StoredFile(path, FileSignature.of(os.fstat(descriptor)))
        if self._memo.find(file) == header.digest:
            return
        digest = digest_file(descriptor, HEADER_BYTES, header.file_bytes, self._threads)
        if digest != header.digest:
            raise DamagedFileError("its content is damaged")
        self._memo.remember(file, digest)

    # ---- writing

    def store(self, key: bytes, builder: _native.ModelBuilder) -> None:
        """Publishes what the builder holds; if that cannot be done, says so in the log."""
        from trimtab import _native

        path = self._path(key)
        parts = [builder.packed_arena().data, memoryview(builder.packed_vectors())]
        vectors_offset = HEADER_BYTES + len(parts[0])
        size = vectors_offset + len(parts[1])
        if size > self._limit_bytes:
            logger.warning("%d MiB of packed model are above TRIMTAB_PACKED_CACHE_GIB", size >> 20)
            return
        if not self._make_directory():
            return
        header = PackedHeader(_native.PACKED_REVISION, size, vectors_offset, key, b"")
        try:
            self._make_room(size, path)
            header = replace(header, digest=digest_memory(parts, self._threads))
            self._publish(path, header, parts)
        except OSError as error:
            logger.warning("the packed model is not cached: %s: %s", path, _reason(error))

    def _publish(self, path: Path, header: PackedHeader, parts: list[memoryview]) -> None:
        descriptor, name = tempfile.mkstemp(dir=self.directory, suffix=TEMPORARY_SUFFIX)
        try:
            with contextlib.suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            write_packed(descriptor, header, parts)
            Path(name).replace(path)
            _sync_directory(self.directory)
            signature = FileSignature.of(os.fstat(descriptor))
            self._memo.remember(StoredFile(path, signature), header.digest)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)

    def _make_directory(self) -> bool:
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            logger.warning("packed models are not cached: %s: %s", self.directory, _reason(error))
            return False
        return True

    def _make_room(self, size: int, path: Path) -> None:
        """Removes what crashed writers left, then the least recently used models until `size` more
        bytes fit; not those that a process holds. Raises OSError if they do not fit."""
        for temporary in self.directory.glob("*" + TEMPORARY_SUFFIX):
            _remove_unheld(temporary)
        used = {entry: info.st_size for entry, info in self._models() if entry != path}
        for entry in sorted(used, key=self._memo.last_use):
            if sum(used.values()) + size <= self._limit_bytes:
                break
            if _remove_unheld(entry):
                self._memo.forget(entry)
                del used[entry]
        if sum(used.values()) + size > self._limit_bytes:
            raise OSError("models in use take all of TRIMTAB_PACKED_CACHE_GIB")
        space = os.statvfs(self.directory)
        if space.f_bavail * space.f_frsize < size:
            raise OSError(f"{size >> 20} MiB are not free on the disk")

    def _models(self) -> Iterator[tuple[Path, os.stat_result]]:
        for entry in self.directory.glob("*" + SUFFIX):
            with contextlib.suppress(OSError):
                yield entry, entry.lstat()

    def _path(self, key: bytes) -> Path:
        return self.directory / (key.hex() + SUFFIX)


def packed_key(checkpoint: Checkpoint, config: ExecutorConfig, digests: WeightDigests) -> bytes:
    """32 bytes that name everything that a packed model follows from."""
    from trimtab import _native

    digest = hashlib.sha256()
    for part in (
        "trimtab packed model",
        str(FORMAT_VERSION),
        str(_native.PACKED_REVISION),
        sys.byteorder,
        config.weights_label,
        checkpoint.identity,
        repr(checkpoint.spec),
        *(weights.hex() for weights in digests.digests),
    ):
        digest.update(part.encode() + b"\n")
    return digest.digest()


def _distrust(info: os.stat_result) -> str:
    """Why others could have put models there, or the empty string."""
    if not stat.S_ISDIR(info.st_mode):
        return "not a directory"
    if info.st_uid not in (os.geteuid(), 0):
        return "belongs to another user"
    return "may be written by everybody" if info.st_mode & stat.S_IWOTH else ""


def _remove_unheld(path: Path) -> bool:
    """Whether the file is gone; one that another process has locked stays."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
