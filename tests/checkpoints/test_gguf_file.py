"""GGUF containers: what the `gguf` package writes is read; what is damaged is one line."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf_handmade import container, pair, tensor, text

from trimtab.checkpoints import gguf_file
from trimtab.checkpoints.gguf_file import GgufFile
from trimtab.errors import CheckpointError


def opened(content: bytes, tmp_path: Path) -> GgufFile:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    return GgufFile(path)


@pytest.mark.parametrize("version", [2, 3])
def test_metadata_and_tensors(version: int, tmp_path: Path) -> None:
    numbers = struct.pack("<IQ3f", 6, 3, 1.5, -2.0, 0.25)
    words = struct.pack("<IQ", 8, 2) + text("ä") + text("")
    pairs = [
        pair("a.name", 8, text("llama")),
        pair("a.count", 4, struct.pack("<I", 7)),
        pair("a.flag", 7, b"\1"),
        pair("a.big", 12, struct.pack("<d", 0.1)),
        pair("a.numbers", 9, numbers),
        pair("a.words", 9, words),
    ]
    values = np.arange(6, dtype=np.float32)
    quants = np.arange(68, dtype=np.uint8)
    data = quants.tobytes().ljust(96, b"\0") + values.tobytes()
    tensors = [tensor("values", (3, 2), 0, 96), tensor("quants", (32, 2), 8, 0)]
    file = opened(container(pairs, tensors, data, version), tmp_path)
    assert {k: v for k, v in file.metadata.items() if k != "a.numbers"} == {
        "a.name": "llama",
        "a.count": 7,
        "a.flag": True,
        "a.big": 0.1,
        "a.words": ["ä", ""],
    }
    assert file.metadata["a.numbers"].tolist() == [1.5, -2.0, 0.25]
    assert file.tensors["values"].shape == (2, 3)
    assert (file.raw("values").view("<f4") == values.reshape(2, 3)).all()
    assert file.read("values", 8, 100) == values.tobytes()[8:]
    assert file.tensors["quants"].block.name == "Q8_0"
    assert (file.raw("quants") == quants.reshape(2, 34)).all()


def test_what_the_gguf_package_writes(tmp_path: Path) -> None:
    gguf: Any = pytest.importorskip("gguf")
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint32("llama.block_count", 3)
    writer.add_array("tokenizer.ggml.tokens", ["<s>", "é", "b"])
    writer.add_array("tokenizer.ggml.scores", [0.0, -1.0, 2.5])
    writer.add_bool("tokenizer.ggml.add_bos_token", True)
    random = np.random.default_rng(0)
    plain = random.normal(0, 1, (5, 64)).astype(np.float32)
    writer.add_tensor("plain", plain)
    packed = gguf.quants.quantize(plain, gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("packed", packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = GgufFile(path)
    assert file.metadata["general.architecture"] == "llama"
    assert file.metadata["llama.block_count"] == 3
    assert file.metadata["tokenizer.ggml.tokens"] == ["<s>", "é", "b"]
    assert file.metadata["tokenizer.ggml.scores"].tolist() == [0.0, -1.0, 2.5]
    assert file.metadata["tokenizer.ggml.add_bos_token"] is True
    assert file.tensors["packed"].shape == (5, 64)
    found = file.tensors["packed"].block.unpack(file.raw("packed")).to_float32()
    assert (found == gguf.quants.dequantize(packed, gguf.GGMLQuantizationType.Q8_0)).all()
    assert (file.raw("plain").view("<f4") == plain).all()


ONE = tensor("t", (32,), 0, 0)
BAD = {
    "empty": (b"", "too short"),
    "another format": (b"\x08\0\0\0\0\0\0\0{}" + b" " * 40, "not a GGUF file"),
    "version 1": (container([], [], version=1) + bytes(40), "version 1 is not supported"),
    "big-endian": (container([], [], version=3 << 24) + bytes(40), "big-endian"),
    "tensors that are not there": (container([], [], counts=(1 << 19, 0)), "truncated"),
    "too many tensors": (container([], [], counts=(1 << 60, 0)), "beyond the limit"),
    "too much metadata": (container([], [], counts=(0, 1 << 60)), "beyond the limit"),
    "a key longer than the file": (
        container([struct.pack("<Q", 1 << 62), bytes(64)], [], counts=(0, 1)),
        "beyond the limit",
    ),
    "a text longer than the file": (
        container([text("k") + struct.pack("<IQ", 8, 5000)], [], counts=(0, 1)),
        "5000 bytes of metadata 'k' are beyond",
    ),
    "a key that is not UTF-8": (
        container([struct.pack("<Q", 2) + b"\xff\xfe" + struct.pack("<II", 4, 1)], []),
        "not UTF-8",
    ),
    "a key twice": (
        container([pair("k", 4, struct.pack("<I", 1))] * 2, []),
        "stands there twice",
    ),
    "an unknown type": (container([pair("k", 99, b"")], []), "unknown type 99"),
    "an array of arrays": (
        container([pair("k", 9, struct.pack("<IQ", 9, 1) + bytes(64))], []),
        "unsupported type 9",
    ),
    "an array longer than the file": (
        container([pair("k", 9, struct.pack("<IQ", 10, 1 << 21))], []),
        "truncated",
    ),
    "a huge array": (
        container([pair("k", 9, struct.pack("<IQ", 8, 1 << 61))], []),
        "beyond the limit",
    ),
    "no dimensions": (container([], [tensor("t", (), 0, 0)]), "0 dimensions"),
    "five dimensions": (container([], [tensor("t", (1,) * 5, 0, 0)]), "5 dimensions"),
    "a tensor without elements": (container([], [tensor("t", (32, 0), 0, 0)]), "no elements"),
    "a tensor twice": (container([], [ONE, ONE], bytes(256)), "stands there twice"),
    "an unsupported type": (container([], [tensor("t", (256,), 19, 0)]), "unsupported type IQ1_S"),
    "half a block": (container([], [tensor("t", (48,), 8, 0)], bytes(64)), "no multiple of the 32"),
    "an array of many arrays": (
        container([pair("k", 9, struct.pack("<IQ", 9, 1 << 40) + bytes(64))], []),
        "unsupported type 9",
    ),
    "an array of an unknown type": (
        container([pair("k", 9, struct.pack("<IQ", 77, 1) + bytes(64))], []),
        "unsupported type 77",
    ),
    "a value that is not UTF-8": (
        container([pair("k", 8, struct.pack("<Q", 2) + b"\xc3\x28")], []),
        "not UTF-8",
    ),
    "an item longer than the file": (
        container([pair("k", 9, struct.pack("<IQQ", 8, 1, 1 << 60) + bytes(64))], []),
        "1152921504606846976 bytes of metadata 'k' are beyond",
    ),
    "items beyond the file": (
        container([pair("k", 9, struct.pack("<IQ", 8, 5) + text("a") * 4)], [])[:-15],
        "truncated",
    ),
    "an item that is not UTF-8": (
        container([pair("k", 9, struct.pack("<IQQ", 8, 1, 1) + b"\xff" + bytes(9))], []),
        "not UTF-8",
    ),
    "a tensor's name that is not UTF-8": (
        container([], [struct.pack("<Q", 1) + b"\xff" + tensor("", (32,), 0, 0)[8:]], bytes(128)),
        "not UTF-8",
    ),
    "no alignment": (
        container([pair("general.alignment", 4, bytes(4))], [ONE], bytes(256)),
        "multiple of 8",
    ),
    "an alignment beyond the file": (
        container([pair("general.alignment", 4, struct.pack("<I", 1 << 31))], [ONE], bytes(256)),
        "ends at byte",
    ),
    "an offset beyond the file": (
        container([], [tensor("t", (32,), 0, 1 << 62)], bytes(256)),
        "ends at byte",
    ),
    "an offset of 64 set bits": (
        container([], [tensor("t", (32,), 0, (1 << 64) - 32)], bytes(256)),
        "ends at byte",
    ),
    "a hundred million dimensions": (
        container([], [text("t") + struct.pack("<I", 100_000_000)], bytes(64)),
        "100000000 dimensions",
    ),
    "a misaligned tensor": (container([], [tensor("t", (8,), 0, 8)], bytes(64)), "not aligned"),
    "overlapping tensors": (
        container([], [ONE, tensor("u", (32,), 0, 96)], bytes(256)),
        "overlaps another",
    ),
    "a tensor beyond the end": (container([], [ONE], bytes(96)), "ends at byte"),
    "a product beyond 64 bits": (
        container([], [tensor("t", (1 << 40, 1 << 40), 0, 0)], bytes(64)),
        "ends at byte",
    ),
    "an alignment of 12": (
        container([pair("general.alignment", 4, struct.pack("<I", 12))], [ONE], bytes(256)),
        "multiple of 8",
    ),
    "an alignment that is no number": (
        container([pair("general.alignment", 8, text("x"))], [ONE], bytes(256)),
        "multiple of 8",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_damage_is_one_line(kind: str, tmp_path: Path) -> None:
    content, message = BAD[kind]
    with pytest.raises(CheckpointError, match=message) as caught:
        opened(content, tmp_path)
    assert "model.gguf" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_header_beyond_all_measure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_file, "MAX_HEADER_BYTES", 1 << 20)
    words = pair("k", 9, struct.pack("<IQ", 8, 1 << 17) + text("") * (1 << 17))
    numbers = pair("k", 9, struct.pack("<IQ", 10, 1 << 17) + bytes(8 << 17))
    for value in (words, numbers):
        with pytest.raises(CheckpointError, match="a header of more than 1 MiB"):
            opened(container([value], []), tmp_path)


def test_every_truncation_is_found(tmp_path: Path) -> None:
    pairs = [pair("a", 8, text("b")), pair("c", 9, struct.pack("<IQ", 8, 1) + text("d"))]
    content = container(pairs, [ONE], bytes(128))
    assert opened(content, tmp_path).tensors["t"].shape == (32,)
    for length in range(len(content)):
        with pytest.raises(CheckpointError):
            opened(content[:length], tmp_path)
