"""GGUF files that we write: what the gguf package reads in them, for every family."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import gguf
import gguf_models
import handmade
import numpy as np
import pytest
import spec_reference
import tiny_models
from quantized_matrices import quantized, round_to_nearest

from trimtab.checkpoints import open_checkpoint, resolve_model
from trimtab.checkpoints.base import Checkpoint, StoredTensor
from trimtab.checkpoints.gguf_types import FILE_TYPES, Mixture
from trimtab.checkpoints.gguf_writer import GgufWriter
from trimtab.checkpoints.writing import open_writer, write_gguf
from trimtab.errors import CheckpointError
from trimtab.numerics.stored import GroupedMatrix

PROMPT = [1, 7, 55, 100, 3, 3, 28, 9]


def read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str], dict[str, Any]]:
    """By the gguf package: tensors as float32, their types, the metadata."""
    reader = gguf.GGUFReader(path)
    tensors = {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in reader.tensors}
    types = {t.name: t.tensor_type.name for t in reader.tensors}
    metadata = {name: field.contents() for name, field in reader.fields.items()}
    return tensors, types, metadata


FAMILIES = [name for name in tiny_models.FAMILIES if name != "qwen2-windows"]


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_as_the_converter_writes_it(name: str, tmp_path: Path) -> None:
    model = tiny_models.build(name)
    source = open_checkpoint(tiny_models.save(model, tmp_path / "source"))
    out = tmp_path / "ours.gguf"
    report = write_gguf(source, out, "F32")
    assert report.total_bytes == out.stat().st_size
    tensors, _, metadata = read(out)
    expected = dict(gguf_models.tensors(model))
    assert set(tensors) == set(expected)
    for key, value in expected.items():
        if key == "rope_freqs.weight":  # theirs out of float32 frequencies
            np.testing.assert_allclose(tensors[key], value, rtol=2e-7)
        else:
            assert np.array_equal(tensors[key], value), key
    gguf_models.write(model, tmp_path / "theirs.gguf")
    _, _, theirs = read(tmp_path / "theirs.gguf")
    for key, value in theirs.items():
        if key.startswith(("GGUF.", "tokenizer.", "general.")):
            continue
        assert metadata[key] == value, key
    ours = open_checkpoint(out)
    for prompt in (PROMPT, PROMPT * 6):
        np.testing.assert_allclose(
            spec_reference.logits(ours, prompt),
            spec_reference.logits(source, prompt),
            rtol=1e-5,
            atol=1e-5,
        )


@pytest.fixture(scope="module")
def eight_layers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes = {"hidden_size": 256, "intermediate_size": 320, "num_hidden_layers": 8}
    model = tiny_models.build("llama", **sizes, num_attention_heads=4, num_key_value_heads=2)
    return tiny_models.save(model, tmp_path_factory.mktemp("models") / "eight_layers")


@pytest.mark.parametrize("name", FILE_TYPES)
def test_every_type_is_read_by_the_gguf_package(
    name: str, eight_layers: Path, tmp_path: Path
) -> None:
    """Which floats the quantizers make is tested with them; here, that they come back."""
    source = open_checkpoint(eight_layers)
    report = write_gguf(source, tmp_path / "out.gguf", name)
    tensors, types, metadata = read(tmp_path / "out.gguf")
    assert metadata["general.file_type"] == FILE_TYPES[name][0]
    ours = open_checkpoint(tmp_path / "out.gguf")
    assert np.array_equal(tensors["token_embd.weight"], ours.tensor("embed").to_float32())
    assert types["output_norm.weight"] == "F32"
    for i in range(8):
        down = tensors[f"blk.{i}.ffn_down.weight"]
        assert np.array_equal(down, ours.tensor(f"layers.{i}.down").to_float32())
        rows = gguf_models.paired(ours.tensor(f"layers.{i}.k").to_float32(), 2)
        assert np.array_equal(tensors[f"blk.{i}.attn_k.weight"], rows)
        if FILE_TYPES[name][1] not in ("F32", "F16", "BF16"):
            own = source.tensor(f"layers.{i}.k").to_float32()
            off = ours.tensor(f"layers.{i}.k").to_float32() - own
            assert 0 < np.abs(off).max() < 0.15 * np.abs(own).max()
            assert f"layers.{i}.k" in report.quantized
    if name == "Q4_K_M":
        kinds = [types[f"blk.{i}.attn_v.weight"] for i in range(8)]
        assert kinds == ["Q6_K", "Q4_K", "Q4_K", "Q6_K", "Q4_K", "Q4_K", "Q6_K", "Q6_K"]
        assert types["output.weight"] == "Q6_K"
        assert types["token_embd.weight"] == "Q4_K"
        assert types["blk.1.ffn_down.weight"] == "Q5_0"
        assert types["blk.0.ffn_down.weight"] == "Q8_0"


def test_mixtures() -> None:
    tied = Mixture("Q4_K_M", 24, tied=True)
    assert tied.type_of("token_embd.weight", 1024) == "Q6_K"
    untied = Mixture("Q4_K_M", 24, tied=False)
    assert untied.type_of("token_embd.weight", 1024) == "Q4_K"
    assert untied.type_of("output.weight", 1024) == "Q6_K"
    assert untied.type_of("output.weight", 1000) == "F16"
    assert untied.type_of("output.weight", 96) == "Q8_0"
    assert untied.type_of("blk.5.attn_qkv.weight", 1024) == "Q5_K"
    small = Mixture("Q4_K_S", 24, tied=False)
    kinds = [small.type_of(f"blk.{i}.attn_v.weight", 512) for i in range(6)]
    assert kinds == ["Q5_K"] * 4 + ["Q4_K"] * 2
    kinds = [small.type_of(f"blk.{i}.ffn_down.weight", 512) for i in range(5)]
    assert kinds == ["Q5_K"] * 3 + ["Q4_K"] * 2
    plain = Mixture("Q4_0", 24, tied=False, has_importance=True)
    assert plain.type_of("blk.0.ffn_down.weight", 512) == "Q4_1"
    assert plain.type_of("blk.3.ffn_down.weight", 512) == "Q4_0"
    assert Mixture("Q8_0", 24, tied=True).type_of("token_embd.weight", 512) == "Q8_0"


def test_integers_are_stored_as_they_are(tmp_path: Path) -> None:
    model = tiny_models.build("qwen2", hidden_size=96, intermediate_size=64)
    source = open_checkpoint(tiny_models.save(model, tmp_path / "source"))
    matrices = quantized(source, bits=4, group_size=32, scale_type="f16")
    matrices["layers.1.down"] = round_to_nearest(
        source.tensor("layers.1.down").to_float32(), 8, 32, scale_type="f16"
    )
    values = np.random.default_rng(0).integers(-8, 8, (96, 96)).astype(np.int8)
    zeros = np.random.default_rng(0).integers(-8, 8, (96, 3)).astype(np.int16)
    scales = np.full((96, 3), 0.125, np.float32)
    matrices["layers.2.q"] = GroupedMatrix(values, 4, 32, scales, "f16", zeros)
    with open_writer(source, tmp_path / "out.gguf", "gguf") as writer:
        for name, matrix in matrices.items():
            writer.add(name, matrix)
        report = writer.finish()
    assert sorted(report.quantized) == sorted(matrices)
    tensors, types, metadata = read(tmp_path / "out.gguf")
    assert metadata["general.file_type"] == FILE_TYPES["Q4_0"][0]
    assert types["blk.0.attn_q.weight"] == "Q4_0"
    assert types["blk.1.ffn_down.weight"] == "Q8_0"
    assert types["blk.2.attn_q.weight"] == "Q4_1"
    assert types["token_embd.weight"] == "F32"
    ours = open_checkpoint(tmp_path / "out.gguf")
    for name, matrix in matrices.items():
        again = ours.matrix(name)
        assert isinstance(again, GroupedMatrix)
        assert np.array_equal(again.values, matrix.values)
        assert np.array_equal(again.to_float32(), matrix.to_float32())
    assert np.array_equal(tensors["blk.2.attn_q.weight"], matrices["layers.2.q"].to_float32())


@pytest.fixture
def source(tmp_path: Path) -> Checkpoint:
    return open_checkpoint(handmade.write_model(tmp_path / "source"))


def assert_nothing_left(directory: Path) -> None:
    assert sorted(path.name for path in directory.iterdir()) == ["source"]


def test_integers_that_no_type_holds(source: Checkpoint, tmp_path: Path) -> None:
    with (
        pytest.raises(CheckpointError, match="no type of GGUF holds these integers") as caught,
        open_writer(source, tmp_path / "out.gguf", "gguf") as writer,
    ):
        writer.add("layers.0.q", quantized(source, group_size=16)["layers.0.q"])
    assert "\n" not in str(caught.value)
    assert_nothing_left(tmp_path)


def test_floats_too_large(source: Checkpoint, tmp_path: Path) -> None:
    large = StoredTensor(np.full((16, 16), 1e6, np.float32), "f32")
    with (
        pytest.raises(CheckpointError, match="too large for float16"),
        open_writer(source, tmp_path / "out.gguf", "gguf", gguf_type="F16") as writer,
    ):
        writer.add("layers.0.q", large)
    large = StoredTensor(np.full((16, 32), np.nan, np.float32), "f32")
    with (
        pytest.raises(CheckpointError, match=r"layers\.0\.down: values that are not finite"),
        open_writer(source, tmp_path / "out.gguf", "gguf", gguf_type="Q8_0") as writer,
    ):
        writer.add("layers.0.down", large)
    assert_nothing_left(tmp_path)


def test_unknown_types_and_places(source: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="unknown GGUF type 'Q9_9'"):
        write_gguf(source, tmp_path / "out.gguf", "Q9_9")
    (tmp_path / "source" / "mine.gguf").write_text("mine")
    with pytest.raises(CheckpointError, match="exists already"):
        write_gguf(source, tmp_path / "source" / "mine.gguf", "F16")
    assert (tmp_path / "source" / "mine.gguf").read_text() == "mine"
    with pytest.raises(CheckpointError, match="cannot be written: No such file"):
        write_gguf(source, tmp_path / "none" / "out.gguf", "F16")
    assert_nothing_left(tmp_path)


@pytest.mark.parametrize("fails_at", [1, 8, 19])
def test_a_full_disk(
    fails_at: int, source: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add, calls = GgufWriter.add, []

    def full(self: GgufWriter, *arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) == fails_at:
            raise OSError(errno.ENOSPC, "No space left on device")
        add(self, *arguments)

    monkeypatch.setattr(GgufWriter, "add", full)
    with pytest.raises(CheckpointError, match="cannot be written: No space left on device"):
        write_gguf(source, tmp_path / "out.gguf", "F16")
    assert_nothing_left(tmp_path)


def test_a_bit_that_flipped_is_found(
    source: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish = GgufWriter.finish

    def flip(self: GgufWriter, metadata: Any) -> None:
        finish(self, metadata)
        content = bytearray(self._path.read_bytes())
        content[-1] ^= 1
        self._path.write_bytes(content)

    monkeypatch.setattr(GgufWriter, "finish", flip)
    with pytest.raises(CheckpointError, match="differs when it is read back"):
        write_gguf(source, tmp_path / "out.gguf", "F16")
    assert_nothing_left(tmp_path)


def test_an_exception_leaves_nothing(source: Checkpoint, tmp_path: Path) -> None:
    def interrupted() -> None:
        with open_writer(source, tmp_path / "out.gguf", "gguf") as writer:
            writer.add("embed", source.tensor("embed"))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert_nothing_left(tmp_path)


def test_importance_reaches_the_quantizer(tmp_path: Path) -> None:
    model = tiny_models.build("llama", hidden_size=96, intermediate_size=64)
    source = open_checkpoint(tiny_models.save(model, tmp_path / "source"))
    weights = np.random.default_rng(0).gamma(0.2, size=96).astype(np.float32)
    own = source.tensor("layers.0.q").to_float32()
    errors = []
    for i, importance in enumerate((None, {"layers.0.q": weights})):
        write_gguf(source, tmp_path / f"{i}.gguf", "Q4_0", importance)
        off = open_checkpoint(tmp_path / f"{i}.gguf").tensor("layers.0.q").to_float32() - own
        errors.append(float((off**2 * weights).sum()))
    assert errors[1] < 0.95 * errors[0]
    for wrong in (weights[:5], -weights, np.zeros(96, np.float32)):
        with pytest.raises(CheckpointError, match="importance must be 96 numbers"):
            write_gguf(source, tmp_path / "out.gguf", "Q4_0", {"layers.0.q": wrong})


def test_progress_is_told(source: Checkpoint, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    write_gguf(source, tmp_path / "out.gguf", "F16", progress=lambda *told: seen.append(told))
    names = list(source.names())
    assert [name for name, _, _ in seen] == names
    assert [count for _, count, _ in seen] == list(range(1, len(names) + 1))


REFUSED = {
    "qwen2-windows": ({}, "the sliding windows of Qwen2ForCausalLM"),
    "mistral": (
        {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
        "the rope scaling 'dynamic'",
    ),
    "gemma2": ({"attn_logit_softcapping": None}, "without soft caps"),
    "qwen3": ({"attention_bias": True}, "biases of attention"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_gguf_has_no_words_for(name: str, tmp_path: Path) -> None:
    changes, reason = REFUSED[name]
    model = tiny_models.build(name, **changes)
    source = open_checkpoint(tiny_models.save(model, tmp_path / "source"))
    with pytest.raises(CheckpointError, match=f"GGUF has no words for .*{reason}"):
        write_gguf(source, tmp_path / "out.gguf", "F16")
    assert_nothing_left(tmp_path)


def test_the_built_in_models_tokenizer_and_template(tmp_path: Path) -> None:
    source = open_checkpoint(resolve_model("builtin"))
    report = write_gguf(source, tmp_path / "out.gguf", "Q8_0")
    assert report.notes == ()
    _, _, metadata = read(tmp_path / "out.gguf")
    assert metadata["tokenizer.ggml.model"] == "gpt2"
    assert metadata["tokenizer.ggml.pre"] == "smollm"
    assert metadata["tokenizer.ggml.add_bos_token"] is True
    assert metadata["tokenizer.ggml.add_eos_token"] is False
    assert metadata["tokenizer.ggml.tokens"][:2] == ["<|bos|>", "<|end|>"]
    assert metadata["tokenizer.ggml.token_type"][:7] == [3] * 6 + [1]
    assert len(metadata["tokenizer.ggml.tokens"]) == source.spec.vocab_size
    assert (metadata["tokenizer.ggml.bos_token_id"], metadata["tokenizer.ggml.eos_token_id"]) == (
        0,
        1,
    )
    assert metadata["tokenizer.ggml.padding_token_id"] == 5
    assert "add_generation_prompt" in metadata["tokenizer.chat_template"]


@pytest.mark.parametrize("name", ["llama-3.1", "llama-biases", "phi3-longrope", "gemma3"])
def test_a_gguf_file_as_source(name: str, tmp_path: Path) -> None:
    model = tiny_models.build(name)
    first = open_checkpoint(gguf_models.write(model, tmp_path / "first.gguf", parts=2))
    write_gguf(first, tmp_path / "second.gguf", "F32")
    second = open_checkpoint(tmp_path / "second.gguf")
    assert second.spec == first.spec
    tensors, _, metadata = read(tmp_path / "second.gguf")
    for key, value in gguf_models.tensors(model):
        assert np.array_equal(tensors[key], value), key
    _, _, before = read(first.path)
    for key in before:
        if not key.startswith(("GGUF.", "split.")):
            assert metadata[key] == before[key], key
    assert not any(key.startswith("split.") for key in metadata)


def test_a_gguf_file_keeps_its_tokenizer_and_is_quantized_anew(tmp_path: Path) -> None:
    source = open_checkpoint(resolve_model("builtin"))
    write_gguf(source, tmp_path / "q8.gguf", "Q8_0")
    again = open_checkpoint(tmp_path / "q8.gguf")
    write_gguf(again, tmp_path / "q4.gguf", "Q4_0")
    _, _, metadata = read(tmp_path / "q4.gguf")
    _, _, before = read(tmp_path / "q8.gguf")
    assert metadata["general.file_type"] == FILE_TYPES["Q4_0"][0]
    differing = {key for key in before if metadata[key] != before[key]}
    assert differing <= {"general.file_type", "GGUF.kv_count", "GGUF.tensor_count"}
    floats = again.tensor("layers.2.q").to_float32()
    expected = gguf.quants.quantize(floats, gguf.GGMLQuantizationType.Q4_0)
    dequantized = gguf.quants.dequantize(expected, gguf.GGMLQuantizationType.Q4_0)
    stored = open_checkpoint(tmp_path / "q4.gguf").tensor("layers.2.q").to_float32()
    assert np.array_equal(stored, dequantized)
    with open_writer(again, tmp_path / "copy.gguf", "gguf") as writer:
        writer.finish()
    copy, types, _ = read(tmp_path / "copy.gguf")
    originals, kinds, _ = read(tmp_path / "q8.gguf")
    assert types == kinds
    assert all(np.array_equal(copy[key], originals[key]) for key in originals)
