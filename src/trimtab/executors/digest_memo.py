"""What the digest of a file was when it last had this signature, so that it need not be read again.

One small file for each file remembered, named by a hash of its path and replaced as a whole. What
cannot be read or written is as if it had never been remembered.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from dataclasses import astuple
from pathlib import Path

from trimtab.checkpoints.stored_file import StoredFile

MAX_ENTRIES = 1024


class DigestMemo:
    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def find(self, file: StoredFile) -> bytes | None:
        """The digest (32 bytes) of a file with this path and signature."""
        path = self._path(file.path)
        try:
            entry = json.loads(path.read_bytes())
            if entry["signature"] != list(astuple(file.signature)):
                return None
            digest = bytes.fromhex(entry["digest"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        with contextlib.suppress(OSError):
            os.utime(path)  # the time of the last use
        return digest if len(digest) == 32 else None

    def remember(self, file: StoredFile, digest: bytes) -> None:
        entry = {
            "path": os.fspath(file.path.absolute()),
            "signature": astuple(file.signature),
            "digest": digest.hex(),
        }
        with contextlib.suppress(OSError, UnicodeEncodeError):
            self._directory.mkdir(mode=0o700, exist_ok=True)
            descriptor, name = tempfile.mkstemp(dir=self._directory, suffix=".tmp")
            with os.fdopen(descriptor, "w") as temporary:
                json.dump(entry, temporary)
            Path(name).replace(self._path(file.path))
            self._forget_old()

    def last_use(self, path: Path) -> float:
        """When `path` was last found or remembered, in seconds since 1970; 0.0 if never."""
        try:
            return self._path(path).stat().st_mtime
        except OSError:
            return 0.0

    def forget(self, path: Path) -> None:
        with contextlib.suppress(OSError):
            self._path(path).unlink()

    def _path(self, path: Path) -> Path:
        name = hashlib.sha256(os.fsencode(path.absolute())).hexdigest()
        return self._directory / f"{name}.json"

    def _forget_old(self) -> None:
        entries = list(self._directory.iterdir())
        if len(entries) <= MAX_ENTRIES:
            return
        entries.sort(key=lambda path: path.stat().st_mtime)
        for path in entries[: len(entries) - MAX_ENTRIES]:
            path.unlink(missing_ok=True)
