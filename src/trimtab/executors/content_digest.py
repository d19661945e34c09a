"""Digests of large files: SHA-256 over the SHA-256 of each piece, on several threads."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable

PIECE_BYTES = 4 << 20
MAX_THREADS = 8


def digest_file(descriptor: int, start: int, end: int, threads: int) -> bytes:
    """Of the bytes [start, end). Raises OSError; also if the file ends before `end`."""

    def piece(first: int, last: int) -> bytes:
        digest = hashlib.sha256()
        while first < last:
            data = os.pread(descriptor, min(last - first, 1 << 20), first)
            if not data:
                raise OSError("the file ends too early")
            digest.update(data)
            first += len(data)
        return digest.digest()

    return _digest_pieces(piece, start, end, threads)


def digest_memory(parts: list[memoryview], threads: int) -> bytes:
    """Of the parts one after the other: what `digest_file` says of a file that holds them."""
    starts = [0]
    for part in parts:
        starts.append(starts[-1] + len(part))

    def piece(first: int, last: int) -> bytes:
        digest = hashlib.sha256()
        for start, part in zip(starts, parts, strict=False):
            digest.update(part[max(first - start, 0) : max(last - start, 0)])
        return digest.digest()

    return _digest_pieces(piece, 0, starts[-1], threads)


def _digest_pieces(piece: Callable[[int, int], bytes], start: int, end: int, threads: int) -> bytes:
    from concurrent.futures import ThreadPoolExecutor

    firsts = range(start, end, PIECE_BYTES)
    with ThreadPoolExecutor(min(threads, MAX_THREADS)) as pool:
        digests = pool.map(lambda first: piece(first, min(first + PIECE_BYTES, end)), firsts)
        return hashlib.sha256(b"".join(digests)).digest()
