"""Layouts that are fine: names, links, ties, alignment; and what the identity depends on."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import handmade
import numpy as np
import pytest

from trimtab.checkpoints import huggingface, open_checkpoint
from trimtab.errors import CheckpointError

Q = "model.layers.1.self_attn.q_proj.weight"


def same_tensors(directory: Path) -> None:
    """The checkpoint there holds the handmade weights."""
    checkpoint, expected = open_checkpoint(directory), handmade.weights()
    assert checkpoint.tensor("layers.1.q").data.tobytes() == expected[Q].tobytes()
    head = checkpoint.tensor("lm_head").data
    assert head.tobytes() == expected["lm_head.weight"].tobytes()


def test_single_and_sharded_hold_the_same(tmp_path: Path) -> None:
    same_tensors(handmade.write_model(tmp_path / "single"))
    same_tensors(handmade.write_sharded(tmp_path / "sharded"))


def test_weights_are_mapped_and_not_copied(tmp_path: Path) -> None:
    directory = handmade.write_model(tmp_path)
    checkpoint = open_checkpoint(directory)
    assert np.shares_memory(checkpoint.tensor("embed").data, checkpoint.tensor("embed").data)
    with pytest.raises(ValueError, match="read-only"):
        checkpoint.tensor("embed").data[0, 0] = 1
    held = checkpoint.tensor("layers.1.q").data
    del checkpoint
    assert held.tobytes() == handmade.weights()[Q].tobytes()


def test_links_as_the_hugging_face_cache_makes_them(tmp_path: Path) -> None:
    source = handmade.write_sharded(tmp_path / "blobs")
    snapshot = tmp_path / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for i, path in enumerate(sorted(source.iterdir())):
        (snapshot / path.name).symlink_to(path.rename(source / f"{i:064x}"))
    same_tensors(snapshot)


def test_a_file_under_another_name_and_named_itself(tmp_path: Path) -> None:
    directory = handmade.write_model(tmp_path)
    (directory / "model.safetensors").rename(directory / "weights.safetensors")
    same_tensors(directory)
    same_tensors(directory / "weights.safetensors")


@pytest.mark.parametrize(
    ("decoder", "head"), [("", ""), ("language_model.model.", "language_model.")]
)
def test_other_prefixes(decoder: str, head: str, tmp_path: Path) -> None:
    tensors = {
        decoder + name.removeprefix("model.") if name.startswith("model.") else head + name: value
        for name, value in handmade.weights().items()
    }
    same_tensors(handmade.write_model(tmp_path, tensors=tensors))


def test_buffers_of_old_versions_are_ignored(tmp_path: Path) -> None:
    old = {
        f"model.layers.{i}.self_attn.rotary_emb.inv_freq": np.ones(2, np.float32) for i in (0, 1)
    }
    same_tensors(handmade.write_model(tmp_path, tensors={**old, **handmade.weights()}))


def test_metadata_padding_and_misalignment(tmp_path: Path) -> None:
    directory = handmade.write_model(tmp_path)
    tensors = handmade.weights()
    header = handmade.header_of(tensors)
    data = b"".join(value.tobytes() for value in tensors.values())
    for padding in range(4):
        text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode() + b" " * padding
        (directory / "model.safetensors").unlink()
        (directory / "model.safetensors").write_bytes(handmade.file_bytes(text, data))
        same_tensors(directory)
        stored = open_checkpoint(directory).tensor("embed").data
        assert stored.flags.aligned
        assert not stored.flags.writeable


def tied_config() -> dict[str, object]:
    return {**handmade.CONFIG, "tie_word_embeddings": True}


def test_tied_head_stored_once_more(tmp_path: Path) -> None:
    tensors = handmade.weights()
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    checkpoint = open_checkpoint(handmade.write_model(tmp_path, tied_config(), tensors))
    assert checkpoint.spec.tied_embeddings
    assert "lm_head" not in checkpoint.names()


@pytest.mark.parametrize("kind", ["value", "dtype"])
def test_tied_head_that_differs(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface, "COMPARED_BYTES", 1000)
    tensors = handmade.weights()
    head = tensors["model.embed_tokens.weight"].copy()
    head[23, 15] += 1
    tensors["lm_head.weight"] = head if kind == "value" else head.astype(np.float16)
    directory = handmade.write_model(tmp_path, tied_config(), tensors)
    with pytest.raises(CheckpointError, match=r"lm_head.weight differs from .*embed_tokens"):
        open_checkpoint(directory).tensor("final_norm")


def test_end_tokens_of_the_generation_config_are_added(tmp_path: Path) -> None:
    directory = handmade.write_model(tmp_path, {**handmade.CONFIG, "eos_token_id": 2})
    (directory / "generation_config.json").write_text('{"eos_token_id": [5, 2, 999]}')
    assert open_checkpoint(directory).spec.eos_token_ids == (2, 5)


def test_identity(tmp_path: Path) -> None:
    def identity(directory: Path, max_context: int = 0) -> str:
        return open_checkpoint(directory, max_context).identity

    original = identity(handmade.write_model(tmp_path / "a"))
    assert original == identity(handmade.write_model(tmp_path / "b"))
    os.utime(tmp_path / "b" / "model.safetensors", (0, 0))
    (tmp_path / "b" / "README.md").write_text("hello")
    assert original == identity(tmp_path / "b")

    changed = {**handmade.CONFIG, "rms_norm_eps": 1e-6}
    assert original != identity(handmade.write_model(tmp_path / "c", changed))
    for name, weights in handmade.weights().items():
        weights.flat[0] += 1
        tensors = {**handmade.weights(), name: weights}
        assert original != identity(handmade.write_model(tmp_path / "d", tensors=tensors))
        weights.flat[0] -= 1
        weights.flat[-1] += 1
        assert original != identity(handmade.write_model(tmp_path / "e", tensors=tensors))


def test_identity_follows_the_rope_that_the_context_chose(tmp_path: Path) -> None:
    scaling = {"type": "dynamic", "factor": 4.0}
    directory = handmade.write_model(tmp_path, {**handmade.CONFIG, "rope_scaling": scaling})
    short, same, long = (open_checkpoint(directory, n).identity for n in (32, 64, 128))
    assert short == same
    assert long != same


def test_identity_reads_little(tmp_path: Path) -> None:
    """Only 2 KiB of each tensor: a change between the pieces is not seen, by design."""
    config = {**handmade.CONFIG, "vocab_size": 20_000}
    first = open_checkpoint(handmade.write_model(tmp_path / "a", config)).identity
    tensors = handmade.weights(config)
    tensors["lm_head.weight"][5_000:5_500] = 0
    second = open_checkpoint(handmade.write_model(tmp_path / "b", config, tensors)).identity
    assert first == second
    tensors["lm_head.weight"][:] = 0
    assert open_checkpoint(handmade.write_model(tmp_path / "c", config, tensors)).identity != first


def test_release_gives_memory_back_and_keeps_tensors_valid(tmp_path: Path) -> None:
    """Of 20 MiB of weights read, most were resident before, and next to nothing is after."""

    def resident() -> int:
        rollup = Path("/proc/self/smaps").read_text()
        mapping = rollup.split("model.safetensors")[1]
        return int(re.search(r"Rss: +(\d+) kB", mapping)[1]) << 10  # type: ignore[index]

    config = {**handmade.CONFIG, "vocab_size": 160_000}
    checkpoint = open_checkpoint(handmade.write_model(tmp_path, config))
    identity = checkpoint.identity
    assert resident() < 1 << 20
    table = checkpoint.tensor("embed").data
    total = table.sum()
    assert resident() > 8 << 20
    checkpoint.release()
    assert resident() < 1 << 20
    assert table.sum() == total
    assert checkpoint.identity == identity
