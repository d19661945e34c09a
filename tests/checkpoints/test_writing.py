"""Writers: what is published is complete and read back; what fails leaves nothing."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import handmade
import numpy as np
import pytest
import tiny_models
from quantized_matrices import quantized

from trimtab.checkpoints import open_checkpoint
from trimtab.checkpoints.base import Checkpoint, StoredTensor
from trimtab.checkpoints.writing import open_writer
from trimtab.checkpoints.writing_shards import ShardWriter
from trimtab.errors import CheckpointError
from trimtab.numerics.stored import GroupedMatrix


@pytest.fixture
def source(tmp_path: Path) -> Checkpoint:
    directory = handmade.write_model(tmp_path / "source")
    (directory / "tokenizer.json").write_text("{}")
    (directory / "LICENSE").write_text("free")
    (directory / "pytorch_model.bin").write_text("old weights")
    return open_checkpoint(directory)


def assert_nothing_left(directory: Path) -> None:
    assert sorted(path.name for path in directory.iterdir()) == ["source"]


def test_plain_copy_is_the_model_itself(source: Checkpoint, tmp_path: Path) -> None:
    out = tmp_path / "copy"
    with open_writer(source, out, "safetensors") as writer:
        report = writer.finish()
    copy = open_checkpoint(out)
    assert copy.spec == source.spec
    assert sorted(report.copied) == sorted(source.names())
    assert report.files == (out / "model.safetensors",)
    assert report.total_bytes == (out / "model.safetensors").stat().st_size
    for name in source.names():
        assert np.array_equal(copy.tensor(name).data, source.tensor(name).data)
    expected = ["LICENSE", "config.json", "model.safetensors", "tokenizer.json"]
    assert sorted(path.name for path in out.iterdir()) == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "source"]


def test_added_tensors_replace_those_of_the_source(source: Checkpoint, tmp_path: Path) -> None:
    changed = StoredTensor(np.full(16, 3, np.float16), "f16")
    with open_writer(source, tmp_path / "out", "safetensors") as writer:
        writer.add("final_norm", changed)
        report = writer.finish()
    assert "final_norm" not in report.copied
    stored = open_checkpoint(tmp_path / "out").tensor("final_norm")
    assert stored.dtype == "f16"
    assert np.array_equal(stored.data, changed.data)


@pytest.mark.parametrize("shard_bytes", [1, 2000, 5000])
def test_shards_and_their_index(shard_bytes: int, source: Checkpoint, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with open_writer(source, out, "safetensors", shard_bytes=shard_bytes) as writer:
        report = writer.finish()
    index = json.loads((out / "model.safetensors.index.json").read_text())
    shards = sorted(path.name for path in out.glob("*.safetensors"))
    assert sorted(set(index["weight_map"].values())) == shards
    assert sorted(file.name for file in report.files) == shards
    assert len(shards) > 2
    copy = open_checkpoint(out)
    for name in source.names():
        assert np.array_equal(copy.tensor(name).data, source.tensor(name).data)
    if shard_bytes == 1:
        assert len(shards) == len(list(source.names()))
    total = sum(source.tensor(name).data.nbytes for name in source.names())
    assert index["metadata"]["total_size"] == total


def test_an_empty_directory_is_taken(source: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with open_writer(source, tmp_path / "out", "safetensors") as writer:
        writer.finish()
    assert open_checkpoint(tmp_path / "out").spec == source.spec


@pytest.mark.parametrize("kind", ["file", "full directory"])
def test_what_exists_is_not_touched(kind: str, source: Checkpoint, tmp_path: Path) -> None:
    out = tmp_path / "out"
    if kind == "file":
        out.write_text("mine")
    else:
        out.mkdir()
        (out / "mine").write_text("mine")
    with (
        pytest.raises(CheckpointError, match="exists already"),
        open_writer(source, out, "safetensors"),
    ):
        pass
    assert (out if kind == "file" else out / "mine").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]


def test_a_place_that_cannot_be_written(source: Checkpoint, tmp_path: Path) -> None:
    with (
        pytest.raises(CheckpointError, match="cannot be written: No such file"),
        open_writer(source, tmp_path / "no" / "such" / "place", "safetensors"),
    ):
        pass


def test_leaving_early_removes_everything(source: Checkpoint, tmp_path: Path) -> None:
    def interrupted() -> None:
        with open_writer(source, tmp_path / "out", "safetensors") as writer:
            writer.add("embed", source.tensor("embed"))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert_nothing_left(tmp_path)
    with open_writer(source, tmp_path / "out", "safetensors") as writer:
        writer.add("embed", source.tensor("embed"))
    assert_nothing_left(tmp_path)


BAD: dict[str, tuple[str, Any, str]] = {
    "unknown name": (
        "layers.9.q",
        StoredTensor(np.zeros((16, 16), np.float32), "f32"),
        "no tensor",
    ),
    "wrong shape": ("layers.0.q", StoredTensor(np.zeros((16, 8), np.float32), "f32"), "has shape"),
    "values beyond their bits": (
        "layers.0.q",
        GroupedMatrix(np.full((16, 16), 8, np.int8), 4, 16, np.ones((16, 1), np.float32), "f32"),
        r"outside \[-8, 7\]",
    ),
    "wrong number of scales": (
        "layers.0.q",
        GroupedMatrix(np.zeros((16, 16), np.int8), 4, 8, np.ones((16, 1), np.float32), "f32"),
        "not of shape",
    ),
    "infinite scale": (
        "layers.0.q",
        GroupedMatrix(
            np.zeros((16, 16), np.int8), 4, 16, np.full((16, 1), np.inf, np.float32), "f32"
        ),
        "not finite",
    ),
    "scales that are not what they say": (
        "layers.0.q",
        GroupedMatrix(
            np.zeros((16, 16), np.int8), 4, 16, np.full((16, 1), 0.1, np.float32), "bf16"
        ),
        "not exact in bf16",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_stored_is_refused(name: str, source: Checkpoint, tmp_path: Path) -> None:
    canonical, tensor, reason = BAD[name]
    with (
        pytest.raises(CheckpointError, match=reason) as caught,
        open_writer(source, tmp_path / "out", "compressed-tensors") as writer,
    ):
        writer.add(canonical, tensor)
    assert "\n" not in str(caught.value)
    assert_nothing_left(tmp_path)


def test_each_name_once(source: Checkpoint, tmp_path: Path) -> None:
    with open_writer(source, tmp_path / "out", "safetensors") as writer:
        writer.add("embed", source.tensor("embed"))
        with pytest.raises(CheckpointError, match="added twice"):
            writer.add("embed", source.tensor("embed"))
    assert_nothing_left(tmp_path)


def test_plain_safetensors_hold_no_integers(source: Checkpoint, tmp_path: Path) -> None:
    matrix = quantized(source, group_size=16)["layers.0.q"]
    with (
        pytest.raises(CheckpointError, match="holds floats only"),
        open_writer(source, tmp_path / "out", "safetensors") as writer,
    ):
        writer.add("layers.0.q", matrix)
    assert_nothing_left(tmp_path)


@pytest.mark.parametrize("fails_at", [1, 8, 19])
def test_a_full_disk(
    fails_at: int, source: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add, calls = ShardWriter.add, []

    def full(self: ShardWriter, *arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) == fails_at:
            raise OSError(errno.ENOSPC, "No space left on device")
        add(self, *arguments)

    monkeypatch.setattr(ShardWriter, "add", full)
    with (
        pytest.raises(CheckpointError, match="cannot be written: No space left on device"),
        open_writer(source, tmp_path / "out", "safetensors") as writer,
    ):
        writer.finish()
    assert_nothing_left(tmp_path)


def test_a_bit_that_flipped_is_found(
    source: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish = ShardWriter.finish

    def flip(self: ShardWriter) -> list[Path]:
        files = finish(self)
        content = bytearray(files[0].read_bytes())
        content[-1] ^= 1
        files[0].write_bytes(content)
        return files

    monkeypatch.setattr(ShardWriter, "finish", flip)
    with (
        pytest.raises(CheckpointError, match="differs when it is read back"),
        open_writer(source, tmp_path / "out", "safetensors") as writer,
    ):
        writer.finish()
    assert_nothing_left(tmp_path)


@pytest.mark.parametrize("name", ["phi3", "gemma2", "qwen2"])
def test_families_keep_their_names_and_fusion(name: str, tmp_path: Path) -> None:
    model = tiny_models.build(name)
    source = open_checkpoint(tiny_models.save(model, tmp_path / "source"))
    with open_writer(source, tmp_path / "out", "safetensors") as writer:
        for tensor in reversed(list(source.names())):
            writer.add(tensor, source.tensor(tensor))
        assert writer.finish().copied == ()
    copy = type(model).from_pretrained(tmp_path / "out")
    for key, value in model.state_dict().items():
        assert (copy.state_dict()[key] == value).all(), key


def test_parts_of_a_fused_matrix_must_be_alike(tmp_path: Path) -> None:
    source = open_checkpoint(tiny_models.save(tiny_models.build("phi3"), tmp_path / "source"))
    matrices = quantized(source, group_size=8, bits=4)
    with open_writer(source, tmp_path / "out", "compressed-tensors") as writer:
        writer.add("layers.0.q", matrices["layers.0.q"])
        with pytest.raises(CheckpointError, match="must all be stored alike"):
            writer.finish()
    assert_nothing_left(tmp_path)
