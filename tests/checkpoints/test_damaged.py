"""Every damage is one line that names the culprit, before a single weight is believed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import handmade
import numpy as np
import pytest
from command_line import refused_line

from trimtab.checkpoints import open_checkpoint
from trimtab.errors import CheckpointError

FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD = "model-00002-of-00002.safetensors"
NORM = "model.norm.weight"


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 600
    assert refused_line(path)
    return message


def rewrite(directory: Path, change: Callable[[dict[str, Any]], Any], data: bytes = b"") -> None:
    """Apply `change` to the header and write it back with its bytes (and `data` behind)."""
    content = (directory / FILE).read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    result = change(header)
    content = handmade.file_bytes(result or header, content[8 + length :] + data)
    (directory / FILE).write_bytes(content)


def set_entry(key: str, value: Any, name: str = NORM) -> Callable[[Path], None]:
    return lambda directory: rewrite(directory, lambda header: header[name].update({key: value}))


def set_header(text: bytes) -> Callable[[Path], None]:
    return lambda directory: rewrite(directory, lambda header: text)


def duplicate_key(directory: Path) -> None:
    def change(header: dict[str, Any]) -> bytes:
        again = json.dumps({NORM: header[NORM]})
        return (json.dumps(header)[:-1] + ", " + again[1:]).encode()

    rewrite(directory, change)


def shift_one(directory: Path) -> None:
    """One tensor is declared twice over the bytes of another."""

    def change(header: dict[str, Any]) -> None:
        header["model.layers.0.self_attn.v_proj.weight"]["data_offsets"] = header[
            "model.layers.0.self_attn.k_proj.weight"
        ]["data_offsets"]

    rewrite(directory, change)


def hole(directory: Path) -> None:
    rewrite(directory, lambda header: header.pop(NORM) and None)


def claim_length(length: int) -> Callable[[Path], None]:
    def damage(directory: Path) -> None:
        content = (directory / FILE).read_bytes()
        (directory / FILE).write_bytes(length.to_bytes(8, "little") + content[8:])

    return damage


def truncate(size: int) -> Callable[[Path], None]:
    """To `size` bytes; negative: that many fewer."""

    def damage(directory: Path) -> None:
        path = directory / FILE
        os.truncate(path, size if size >= 0 else path.stat().st_size + size)

    return damage


def replace_file(make: Callable[[Path], Any]) -> Callable[[Path], None]:
    def damage(directory: Path) -> None:
        (directory / FILE).unlink()
        make(directory / FILE)

    return damage


SINGLE_FILE_DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "empty": (truncate(0), "0 bytes is too short"),
    "seven bytes": (truncate(7), "7 bytes is too short"),
    "cut in the header": (truncate(100), "truncated"),
    "cut in the data": (truncate(-1), "truncated: tensor"),
    "cut by a megabyte less one tensor": (truncate(-64), "truncated: tensor"),
    "trailing byte": (lambda d: rewrite(d, lambda h: None, b"\0"), "1 bytes that belong to no"),
    "header of 2^63 bytes": (claim_length(1 << 63), "header of 9223372036854775808 bytes"),
    "header over the limit": (claim_length(100_000_001), "beyond the limit of 100000000"),
    "header beyond the file": (claim_length(99_999_999), "a header of 99999999 bytes in a file"),
    "header too short": (claim_length(20), "header: not valid JSON"),
    "header of nothing": (claim_length(0), "does not start with"),
    "zip file": (replace_file(lambda p: p.write_bytes(b"PK\3\4" + bytes(99))), "not a safetensors"),
    "not JSON": (set_header(b'{"a": '), "not valid JSON"),
    "not UTF-8": (set_header(b'{"\xff": 1}'), "not UTF-8"),
    "JSON array": (set_header(b"[1, 2, 3]"), "does not start with '{'"),
    "endless nesting": (set_header(b'{"a":' + b"[" * 200_000), "nested too deeply"),
    "endless number": (set_header(b'{"a":' + b"9" * 200_000 + b"}"), "is too large"),
    "float": (set_header(b'{"a": 1.5}'), "'1.5' must be an integer"),
    "NaN": (set_header(b'{"a": NaN}'), "'NaN' must be an integer"),
    "duplicate tensor": (duplicate_key, f"duplicate key '{NORM}'"),
    "entry is a number": (set_header(b'{"weird": 1}'), "tensor 'weird': must have exactly"),
    "extra key": (set_entry("stride", [1]), f"tensor '{NORM}': must have exactly"),
    "unknown dtype": (set_entry("dtype", "Q4_K"), f"tensor '{NORM}': unknown dtype 'Q4_K'"),
    "dtype is a list": (set_entry("dtype", ["F32"]), "unknown dtype ['F32']"),
    "negative shape": (set_entry("shape", [-16]), f"tensor '{NORM}': shape = [-16]"),
    "boolean shape": (set_entry("shape", [True]), "shape = [True]"),
    "shape is a string": (set_entry("shape", "16"), "shape = '16'"),
    "rank 9": (set_entry("shape", [16] + [1] * 8), "at most 8"),
    "shape that wraps in 64 bits": (
        set_entry("shape", [1 << 32, 1 << 32, 16]),
        f"tensor '{NORM}': F32 of shape",
    ),
    "shape and bytes differ": (set_entry("shape", [15]), "does not take 64 bytes"),
    "offsets swapped": (set_entry("data_offsets", [64, 0]), "data_offsets = [64, 0]"),
    "negative offset": (set_entry("data_offsets", [-64, 0]), "data_offsets = [-64, 0]"),
    "three offsets": (set_entry("data_offsets", [0, 64, 64]), "data_offsets = [0, 64, 64]"),
    "offsets beyond the file": (set_entry("data_offsets", [1 << 40, (1 << 40) + 64]), "truncated"),
    "overlap": (shift_one, "an overlap at tensor"),
    "hole": (hole, "a hole before tensor"),
    "metadata is not text": (
        lambda d: rewrite(d, lambda h: h.update(__metadata__={"format": 1})),
        "__metadata__ must map strings to strings",
    ),
    "is a directory": (replace_file(lambda p: p.mkdir()), "not a regular file"),
    "is a pipe": (replace_file(os.mkfifo), "not a regular file"),
    "is a device": (replace_file(lambda p: p.symlink_to("/dev/zero")), "not a regular file"),
}


@pytest.mark.parametrize("name", SINGLE_FILE_DAMAGES)
def test_damaged_file(name: str, tmp_path: Path) -> None:
    damage, culprit = SINGLE_FILE_DAMAGES[name]
    directory = handmade.write_model(tmp_path / "model")
    damage(directory)
    message = refusal(directory)
    assert culprit in message
    assert str(directory / FILE) in message


def test_many_entries_are_refused_before_they_are_parsed(tmp_path: Path) -> None:
    directory = handmade.write_model(tmp_path / "model")
    set_header(b'{"a":[' + b"0," * 1_000_001 + b"0]}")(directory)
    assert "too many entries" in refusal(directory)


def without(*names: str) -> dict[str, np.ndarray]:
    return {k: v for k, v in handmade.weights().items() if k not in names}


def replaced(name: str, data: np.ndarray) -> dict[str, np.ndarray]:
    return {**handmade.weights(), name: data}


Q = "model.layers.1.self_attn.q_proj.weight"
TENSOR_DAMAGES: dict[str, tuple[dict[str, np.ndarray], str]] = {
    "missing tensor": (without(Q), f"tensor {Q} is missing"),
    "missing embeddings": (without("model.embed_tokens.weight"), "embed_tokens.weight is missing"),
    "missing head": (without("lm_head.weight"), "must say tie_word_embeddings"),
    "wrong shape": (
        replaced(Q, np.zeros((16, 17), np.float32)),
        f"tensor {Q} has shape [16, 17], config.json asks for [16, 16]",
    ),
    "wrong rank": (replaced(Q, np.zeros(256, np.float32)), f"tensor {Q} has shape [256]"),
    "wrong vocabulary": (
        replaced("lm_head.weight", np.zeros((25, 16), np.float32)),
        "tensor lm_head.weight has shape [25, 16]",
    ),
    "integer weights": (replaced(Q, np.zeros((16, 16), np.int8)), f"tensor {Q} is stored as I8"),
    "a bias": (replaced(f"{Q[:-7]}.bias", np.zeros(16, np.float32)), "q_proj.bias'"),
    "a third layer": (
        replaced("model.layers.2.mlp.up_proj.weight", np.zeros((32, 16), np.float32)),
        "'model.layers.2.mlp.up_proj.weight': LlamaForCausalLM with this config.json has no place",
    ),
    "a vision tower": (
        replaced("vision_tower.patch.weight", np.zeros(4, np.float32)),
        "'vision_tower.patch.weight'",
    ),
    "two models": (
        replaced("embed_tokens.weight", np.zeros((24, 16), np.float32)),
        "more than one tensor embed_tokens.weight",
    ),
}


@pytest.mark.parametrize("name", TENSOR_DAMAGES)
def test_tensors_that_do_not_fit_the_config(name: str, tmp_path: Path) -> None:
    tensors, culprit = TENSOR_DAMAGES[name]
    message = refusal(handmade.write_model(tmp_path / "model", tensors=tensors))
    assert culprit in message
    assert str(tmp_path / "model") in message


def test_several_strangers_are_counted(tmp_path: Path) -> None:
    strangers = {f"adapter.{i}": np.zeros(1, np.float32) for i in range(3)}
    directory = handmade.write_model(tmp_path, tensors={**handmade.weights(), **strangers})
    assert "tensor 'adapter.0' and 2 more" in refusal(directory)


def edit_index(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def damage(directory: Path) -> None:
        index = json.loads((directory / INDEX).read_text())
        change(index)
        (directory / INDEX).write_text(json.dumps(index))

    return damage


def map_to(shard: Any) -> Callable[[Path], None]:
    return edit_index(lambda index: index["weight_map"].update({NORM: shard}))


SHARD_DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing shard": (lambda d: (d / SHARD).unlink(), f"shard {SHARD} is missing"),
    "truncated shard": (lambda d: os.truncate(d / SHARD, 500), f"{SHARD}: truncated"),
    "no index": (lambda d: (d / INDEX).unlink(), f"but no {INDEX}"),
    "broken index": (lambda d: (d / INDEX).write_text("{"), f"{INDEX}: not valid JSON"),
    "index of no use": (edit_index(lambda i: i.pop("weight_map")), "weight_map must be an object"),
    "leads out": (map_to("../secret.safetensors"), "'../secret.safetensors' is not a plain"),
    "absolute": (map_to("/etc/x.safetensors"), "'/etc/x.safetensors' is not a plain"),
    "backslash": (map_to("..\\x.safetensors"), "is not a plain .safetensors file name"),
    "not safetensors": (map_to("model.bin"), "'model.bin' is not a plain"),
    "hidden": (map_to("..safetensors"), "is not a plain"),
    "number": (map_to(3), "3 is not a plain"),
    "nul": (map_to("a\0.safetensors"), "is not a plain"),
    "long": (map_to("a" * 999 + ".safetensors"), "is not a plain"),
    "wrong shard": (
        map_to("model-00001-of-00002.safetensors"),
        f"tensor '{NORM}' ",
    ),
    "tensor nowhere": (
        edit_index(lambda i: i["weight_map"].update(ghost=SHARD)),
        f"tensor 'ghost' is not in {SHARD}",
    ),
    "tensor unlisted": (
        edit_index(lambda i: i["weight_map"].pop("lm_head.weight")),
        "tensor 'lm_head.weight' of model-0000",
    ),
    "shard is a directory": (
        lambda d: ((d / SHARD).unlink(), (d / SHARD).mkdir()),
        f"{SHARD}: not a regular file",
    ),
}


@pytest.mark.parametrize("name", SHARD_DAMAGES)
def test_damaged_shards(name: str, tmp_path: Path) -> None:
    damage, culprit = SHARD_DAMAGES[name]
    directory = handmade.write_sharded(tmp_path / "model")
    if name == "wrong shard":  # whichever shard holds it, name the other one
        index = json.loads((directory / INDEX).read_text())["weight_map"]
        damage = map_to(next(shard for shard in set(index.values()) if shard != index[NORM]))
    damage(directory)
    assert culprit in refusal(directory)


CONFIG_DAMAGES: dict[str, tuple[bytes | None, str]] = {
    "absent": (None, "no config.json"),
    "empty": (b"", "config.json: not valid JSON"),
    "not an object": (b"[]", "config.json: must hold a JSON object"),
    "not UTF-8": (b"\xff\xfe{}", "config.json: not UTF-8"),
    "duplicate": (b'{"hidden_size": 16, "hidden_size": 32}', "duplicate key 'hidden_size'"),
    "nested": (b'{"a":' * 100_000, "config.json: nested too deeply"),
    "nothing in it": (b"{}", "config.json: architectures is missing"),
}


@pytest.mark.parametrize("name", CONFIG_DAMAGES)
def test_damaged_config(name: str, tmp_path: Path) -> None:
    content, culprit = CONFIG_DAMAGES[name]
    directory = handmade.write_model(tmp_path / "model")
    (directory / "config.json").unlink()
    if content is not None:
        (directory / "config.json").write_bytes(content)
    assert culprit in refusal(directory)


def test_huge_json_is_refused_unread(tmp_path: Path) -> None:
    directory = handmade.write_model(tmp_path / "model")
    os.truncate(directory / "config.json", 1 << 40)  # sparse
    assert "is too large" in refusal(directory)


@pytest.mark.parametrize(
    ("files", "culprit"),
    [
        ([], "no .safetensors file"),
        (["pytorch_model.bin"], "convert them to safetensors"),
        (["consolidated.00.pth"], "never loaded"),
        (["model-q4.gguf"], "name the GGUF file to open it"),
        (["a.safetensors", "b.safetensors"], "2 .safetensors files"),
    ],
)
def test_directories_without_weights_of_ours(
    files: list[str], culprit: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(handmade.CONFIG))
    for name in files:
        (tmp_path / name).write_bytes(b"\x80\x04.")
    assert culprit in refusal(tmp_path)


def test_paths_that_are_no_model(tmp_path: Path) -> None:
    assert "no such file or directory" in refusal(tmp_path / "absent")
    (tmp_path / "notes.txt").write_text("hello")
    assert "neither a model directory" in refusal(tmp_path / "notes.txt")
    assert "no config.json" in refusal(tmp_path)


def test_unreadable_generation_config(tmp_path: Path) -> None:
    directory = handmade.write_model(tmp_path)
    (directory / "generation_config.json").write_text('{"eos_token_id": "x"}')
    assert "generation_config.json: eos_token_id = 'x'" in refusal(directory)


def test_a_directory_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, pattern: str) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    directory = handmade.write_sharded(tmp_path)
    (directory / INDEX).unlink()
    monkeypatch.setattr(Path, "glob", refuse)
    assert refusal(directory) == f"{directory}: cannot be read: Permission denied"
