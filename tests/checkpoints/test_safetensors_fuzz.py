"""Whatever happens to a header, opening gives CheckpointError or a model that can be read."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import handmade
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.checkpoints import open_checkpoint
from trimtab.errors import CheckpointError

MAX_PEAK_BYTES = 64 << 20


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return handmade.write_model(tmp_path_factory.mktemp("fuzz"))


@pytest.fixture(scope="module")
def original(directory: Path) -> bytes:
    return (directory / "model.safetensors").read_bytes()


def try_to_open(directory: Path, content: bytes) -> bool:
    """Whether it opened; then everything in it must be readable and of the declared shape."""
    # A new file each time: a file that is mapped must never be cut short.
    (directory / "model.safetensors").unlink()
    (directory / "model.safetensors").write_bytes(content)
    try:
        checkpoint = open_checkpoint(directory)
    except CheckpointError as error:
        message = str(error)
    else:
        for name in checkpoint.names():
            data = checkpoint.tensor(name).to_float32()
            assert data.shape in ((24, 16), (16,), (8, 16), (16, 16), (32, 16), (16, 32))
        assert len(checkpoint.identity) == 64
        return True
    assert "\n" not in message
    return False


def header_length(content: bytes) -> int:
    return 8 + int.from_bytes(content[:8], "little")


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_flipped_bytes(directory: Path, original: bytes, data: st.DataObject) -> None:
    content = bytearray(original)
    positions = st.integers(0, header_length(original) - 1)
    for position in data.draw(st.lists(positions, min_size=1, max_size=6)):
        content[position] = data.draw(st.integers(0, 255))
    try_to_open(directory, bytes(content))


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_truncation_and_growth(directory: Path, original: bytes, data: st.DataObject) -> None:
    size = data.draw(st.integers(0, len(original) - 1))
    assert not try_to_open(directory, original[:size])
    assert not try_to_open(directory, original + bytes(data.draw(st.integers(1, 100))))


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_swapped_pieces_of_the_header(
    directory: Path, original: bytes, data: st.DataObject
) -> None:
    """Pieces of valid JSON in wrong places, with the declared length kept or corrected."""
    length = header_length(original)
    text = original[8:length].decode()
    pieces = text.replace(",", ",\0").replace(":", ":\0").replace("{", "{\0").split("\0")
    i, j = (data.draw(st.integers(0, len(pieces) - 1)) for _ in range(2))
    alternatives = [pieces[j], "", "{", "]", "-1,", "18446744073709551615,", '"F32",', "null,"]
    pieces[i] = data.draw(st.sampled_from(alternatives))
    header = "".join(pieces).encode()
    correct = data.draw(st.booleans())
    claimed = len(header) if correct else length - 8
    try_to_open(directory, claimed.to_bytes(8, "little") + header + original[length:])


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_noise(directory: Path, content: bytes) -> None:
    assert not try_to_open(directory, content)
    assert not try_to_open(directory, handmade.file_bytes(content, b""))


def test_the_undamaged_file_opens(directory: Path, original: bytes) -> None:
    assert try_to_open(directory, original)


@pytest.mark.parametrize(
    "header",
    [
        b'{"a":' + b"[" * 1_000_000,
        b'{"a":' * 200_000,
        b'{"a":[' + b"7," * 1_000_000 + b"7]}",
        b'{"a":' + b"9" * 5_000_000 + b"}",
        b'{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}}',
        b'{"a":{"dtype":"F32","shape":[1073741824],"data_offsets":[0,4294967296]}}',
    ],
    ids=["arrays", "objects", "numbers", "one number", "shape that wraps", "bytes not there"],
)
def test_memory_stays_near_the_size_of_the_header(directory: Path, header: bytes) -> None:
    tracemalloc.start()
    assert not try_to_open(directory, handmade.file_bytes(header, b""))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < MAX_PEAK_BYTES
