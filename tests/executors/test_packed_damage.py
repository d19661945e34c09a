"""Damaged packed models are found and built again."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from packed_checkpoints import checkpoint_at, logits, packed_models

from trimtab import _native
from trimtab.executors import content_digest, packed_cache, packed_file

# ---- damage


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def new_header(path: Path, **changes: Any) -> None:
    """A valid header that says something else."""
    data = path.read_bytes()
    values = packed_file._FIELDS.unpack(data[: packed_file._FIELDS.size])
    header = packed_file.PackedHeader(*values[2:])
    path.write_bytes(replace(header, **changes).to_bytes() + data[packed_file.HEADER_BYTES :])


def to_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "empty": lambda path: path.write_bytes(b""),
    "half a header": lambda path: os.truncate(path, 100),
    "header only": lambda path: os.truncate(path, packed_file.HEADER_BYTES),
    "truncated": lambda path: os.truncate(path, path.stat().st_size - 1),
    "too long": lambda path: os.truncate(path, path.stat().st_size + 1),
    "magic": lambda path: flip(path, 0),
    "format version": lambda path: flip(path, 16),
    "revision": lambda path: new_header(path, revision=_native.PACKED_REVISION + 1),
    "size": lambda path: flip(path, 24),
    "vectors offset": lambda path: flip(path, 32),
    "key": lambda path: new_header(path, key=bytes(32)),
    "digest": lambda path: flip(path, 80),
    "padding of the header": lambda path: flip(path, packed_file.HEADER_BYTES - 1),
    "embedding": lambda path: flip(path, packed_file.HEADER_BYTES),
    "weights": lambda path: flip(path, packed_file.HEADER_BYTES + 9000),
    "vectors": lambda path: flip(path, -1),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "a link": lambda path: path.symlink_to(path.rename(path.with_suffix(".away"))),
    "a pipe": lambda path: (path.unlink(), os.mkfifo(path)),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_file_is_rebuilt(
    kind: str, cache: Path, seed: Path, settled: None, caplog: pytest.LogCaptureFixture
) -> None:
    made = logits(checkpoint_at(seed))
    (model,) = packed_models(cache)
    good = model.read_bytes()
    DAMAGE[kind](model)
    damaged = checkpoint_at(seed)
    assert (logits(damaged) == made).all()
    assert damaged.reads > 0
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "packing the model again" in caplog.text
    assert model.read_bytes() == good
    rebuilt = checkpoint_at(seed)
    assert (logits(rebuilt) == made).all()
    assert rebuilt.reads == 0


@pytest.mark.parametrize("changes", [{"vectors_offset": 4096}, {"vectors_offset": 1 << 62}])
def test_offsets_that_lead_nowhere(changes: dict[str, int], cache: Path, seed: Path) -> None:
    """A header with a right checksum is still not believed about sizes."""
    made = logits(checkpoint_at(seed))
    (model,) = packed_models(cache)
    new_header(model, **changes)
    assert (logits(checkpoint_at(seed)) == made).all()


def test_a_directory_in_the_place_of_the_file(
    cache: Path, seed: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = logits(checkpoint_at(seed))
    to_directory(packed_models(cache)[0])
    assert (logits(checkpoint_at(seed)) == made).all()
    assert "not a regular file" in caplog.text


def test_a_copy_of_a_good_file_is_verified_once(
    cache: Path, seed: Path, settled: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits(checkpoint_at(seed))
    (model,) = packed_models(cache)
    model.write_bytes(model.read_bytes())
    digested = []

    def count(*arguments: Any) -> bytes:
        digested.append(arguments)
        return content_digest.digest_file(*arguments)

    monkeypatch.setattr(packed_cache, "digest_file", count)
    for _ in range(3):
        start = checkpoint_at(seed)
        logits(start)
        assert start.reads == 0
    assert len(digested) == 1


# ---- digests


def test_digests_of_memory_and_of_files_agree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(content_digest, "PIECE_BYTES", 100)
    data = np.random.default_rng(0).bytes(1234)
    (tmp_path / "file").write_bytes(b"head" + data)
    descriptor = os.open(tmp_path / "file", os.O_RDONLY)
    try:
        whole = content_digest.digest_file(descriptor, 4, 1238, 3)
        for cut in (0, 1, 99, 100, 101, 250, 1234):
            parts = [memoryview(data[:cut]), memoryview(data[cut:])]
            assert content_digest.digest_memory(parts, 2) == whole
        assert content_digest.digest_file(descriptor, 4, 1237, 1) != whole
        with pytest.raises(OSError, match="too early"):
            content_digest.digest_file(descriptor, 4, 1239, 1)
    finally:
        os.close(descriptor)
