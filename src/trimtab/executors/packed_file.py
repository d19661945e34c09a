"""A packed model in a file: what the native core maps, behind a header that says whether it may.

    | header, one page | arena (native/core/model.h) | vectors (native/core/packed_model.h) |

The header is little-endian; the rest is in the byte order of the machine, which is part of the key.
"""

from __future__ import annotations

import hashlib
import os
import struct
from dataclasses import dataclass

HEADER_BYTES = 4096  # a page, so that the arena starts at one
MAGIC = b"trimtab packed\r\n"
FORMAT_VERSION = 1
# magic, version, native revision, bytes of the file, where the vectors start, key, digest of all
# that follows the header
_FIELDS = struct.Struct("<16sIIQQ32s32s")
_CHECKSUM_BYTES = 32
_WRITE_BYTES = 8 << 20


class DamagedFileError(Exception):
    """Not what this version of trimtab writes under this name; one line says what is wrong."""


@dataclass(frozen=True)
class PackedHeader:
    revision: int
    file_bytes: int
    vectors_offset: int
    key: bytes  # 32
    digest: bytes  # 32, of the bytes from HEADER_BYTES on: `trimtab.executors.content_digest`

    def to_bytes(self) -> bytes:
        fields = _FIELDS.pack(
            MAGIC,
            FORMAT_VERSION,
            self.revision,
            self.file_bytes,
            self.vectors_offset,
            self.key,
            self.digest,
        )
        return (fields + hashlib.sha256(fields).digest()).ljust(HEADER_BYTES, b"\0")


def read_header(descriptor: int, key: bytes, revision: int) -> PackedHeader:
    """The header of a file that is complete, of this version and this key.

    Checks everything but the bytes behind the header. Raises DamagedFileError and OSError.
    """
    data = os.pread(descriptor, HEADER_BYTES, 0)
    if len(data) < HEADER_BYTES:
        raise DamagedFileError("truncated")
    fields = data[: _FIELDS.size]
    magic, version, found_revision, file_bytes, vectors_offset, found_key, digest = _FIELDS.unpack(
        fields
    )
    if magic != MAGIC:
        raise DamagedFileError("not a packed model")
    if data[_FIELDS.size :] != hashlib.sha256(fields).digest().ljust(
        HEADER_BYTES - _FIELDS.size, b"\0"
    ):
        raise DamagedFileError("its header is damaged")
    if (version, found_revision) != (FORMAT_VERSION, revision):
        raise DamagedFileError("of another version")
    if found_key != key:
        raise DamagedFileError("of another model")
    size = os.fstat(descriptor).st_size
    if size != file_bytes:
        raise DamagedFileError(f"{size} bytes long instead of {file_bytes}")
    return PackedHeader(found_revision, file_bytes, vectors_offset, found_key, digest)


def write_packed(descriptor: int, header: PackedHeader, parts: list[memoryview]) -> None:
    """The whole of an empty file, down to the disk. Raises OSError.

    No write crosses a multiple of 8 MiB: the system's cache keeps a write in pages as large as its
    alignment permits, and those are the pages that the next start maps.
    """
    offset = 0
    for part in [memoryview(header.to_bytes()), *parts]:
        end = offset + len(part)
        while offset < end:
            piece = part[len(part) - (end - offset) :]
            offset += os.write(descriptor, piece[: _WRITE_BYTES - offset % _WRITE_BYTES])
    os.fsync(descriptor)
