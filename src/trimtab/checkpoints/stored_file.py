"""Which bytes a file holds: what the file system says of them, and their digest.

A signature changes whenever the content may have: every write sets mtime and ctime, and no program
can set ctime back. Copies, renames and `touch` change it too; then only the digest can tell.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

# Timestamps advance in steps of some milliseconds (coarser on some network file systems), so that a
# write can follow another unseen. A file that has rested this long shows every later write.
RESTING_NS = 2_000_000_000
PIECE_BYTES = 4 << 20


@dataclass(frozen=True)
class FileSignature:
    """Not the device: its number can change with every boot or container."""

    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, info: os.stat_result) -> FileSignature:
        return cls(info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns)


@dataclass(frozen=True)
class StoredFile:
    """A file as it was when it was opened."""

    path: Path
    signature: FileSignature

    def is_unchanged(self) -> bool:
        """Whether the path still leads to the very bytes that were opened."""
        try:
            return FileSignature.of(self.path.stat()) == self.signature
        except OSError:
            return False
