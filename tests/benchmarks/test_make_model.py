"""benchmarks/make_model.py: checkpoints that open here and run in transformers."""

from __future__ import annotations

import importlib
import json
import sys
import tracemalloc
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trimtab.checkpoints import open_checkpoint
from trimtab.errors import CheckpointError
from trimtab.models.registry import FAMILIES, model_spec

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "make_model.py"


@pytest.fixture(scope="module")
def script() -> Iterator[types.ModuleType]:
    sys.path.insert(0, str(SCRIPT.parent))
    yield importlib.import_module("make_model")
    sys.path.remove(str(SCRIPT.parent))


def shrunk(config: dict[str, Any]) -> dict[str, Any]:
    """The same model with few and small layers."""
    small = {"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 96}
    small |= {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 300}
    small |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    if "head_dim" in config:
        small["head_dim"] = 16
    return {**config, **small}


# Parameters in billions, as the publishers state them (embeddings counted once when tied).
PUBLISHED_SIZES = {
    "gemma-2-2b": 2.614,
    "gemma-3-1b": 1.000,
    "llama-3.1-8b": 8.030,
    "llama-3.2-1b": 1.236,
    "llama-3.2-3b": 3.213,
    "mistral-7b": 7.248,
    "phi-3-mini": 3.821,
    "qwen2.5-0.5b": 0.494,
    "qwen2.5-3b": 3.086,
    "qwen3-0.6b": 0.596,
    "qwen3-1.7b": 1.721,
    "qwen3-4b": 4.022,
    "qwen3-8b": 8.191,
}


def test_every_config_has_the_published_number_of_parameters(script: types.ModuleType) -> None:
    assert script.known_models() == sorted(PUBLISHED_SIZES)
    for name, billions in PUBLISHED_SIZES.items():
        tensors = script.random_tensors(model_spec(script.read_config(name)))
        assert sum(t.num_bytes for t in tensors) / 2e9 == pytest.approx(billions, abs=6e-4)


@pytest.mark.parametrize(
    "name", ["qwen3-0.6b", "qwen2.5-3b", "llama-3.2-1b", "phi-3-mini", "gemma-2-2b", "gemma-3-1b"]
)
def test_it_runs_in_transformers_with_finite_logits(
    script: types.ModuleType, name: str, tmp_path: Path
) -> None:
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    script.make_model(shrunk(script.read_config(name)), tmp_path / "m", max_shard_bytes=40_000)
    assert (tmp_path / "m" / "model.safetensors.index.json").exists()
    model, info = AutoModelForCausalLM.from_pretrained(tmp_path / "m", output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        logits = model(torch.arange(2, 34)[None]).logits.float()
    assert torch.isfinite(logits).all()
    assert 0.01 < logits.std() < 10
    checkpoint = open_checkpoint(tmp_path / "m")
    embedding = model.get_input_embeddings().weight.detach().float().numpy()
    assert np.array_equal(checkpoint.tensor("embed").to_float32(), embedding)


def test_weights_depend_on_the_seed_and_not_on_the_shards(
    script: types.ModuleType, tmp_path: Path
) -> None:
    config = shrunk(script.read_config("phi-3-mini"))
    for name, seed, shard in (("a", 1, 10**9), ("b", 1, 30_000), ("c", 2, 10**9)):
        script.make_model(config, tmp_path / name, seed, max_shard_bytes=shard)
    a, b, c = (open_checkpoint(tmp_path / name) for name in "abc")
    for name in a.names():
        assert a.tensor(name).data.tobytes() == b.tensor(name).data.tobytes()
        assert a.tensor(name).data.tobytes() != c.tensor(name).data.tobytes()
    assert len({a.tensor(name).data.tobytes() for name in a.names()}) == len(list(a.names()))


def test_scales(script: types.ModuleType, tmp_path: Path) -> None:
    config = {**shrunk(script.read_config("gemma-2-2b")), "vocab_size": 5000}
    script.make_model(config, tmp_path / "m")
    checkpoint = open_checkpoint(tmp_path / "m")
    embed = checkpoint.tensor("embed").to_float32()
    assert abs(embed.mean()) < 2e-4
    assert embed.std() == pytest.approx(0.02, rel=0.02)
    assert abs(checkpoint.tensor("final_norm").to_float32().mean()) < 0.05  # norms add 1
    down = checkpoint.tensor("layers.0.down").to_float32()
    assert down.std() == pytest.approx(0.01, rel=0.1)


def test_bf16_rounding_is_torchs(script: types.ModuleType) -> None:
    import torch

    values = np.random.default_rng(0).standard_normal(10_000).astype(np.float32)
    ties = np.arange(0x3F800000, 0x3F880000, 0x4000, dtype=np.uint32).view(np.float32)
    values = np.concatenate([values, ties, -ties, np.zeros(1, np.float32)])
    writer = importlib.import_module("checkpoint_writer")
    expected = torch.from_numpy(values).to(torch.bfloat16).view(torch.int16).numpy()
    assert np.array_equal(writer.to_bf16(values), expected.view(np.uint16))


def test_memory_is_bounded(script: types.ModuleType) -> None:
    tensor = script.RandomTensor("big", (12_000, 2_000), 0.0, 0.02)  # 48 MB, six chunks
    tracemalloc.start()
    size = sum(2 * len(piece) for piece in tensor.pieces(0))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert size == tensor.num_bytes == 48_000_000
    assert peak < 100 << 20


def test_command_line(
    script: types.ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps(shrunk(script.read_config("qwen3-0.6b"))))
    out = tmp_path / "out"
    assert script.main([str(config), str(out), "--seed", "3"]) == 0
    assert "Qwen3ForCausalLM" in capsys.readouterr().out
    assert open_checkpoint(out).spec.vocab_size == 300
    for arguments, culprit in (
        ([str(config), str(out)], "already exists"),
        (["qwen9", str(tmp_path / "x")], "neither a config.json nor one of"),
        ([str(SCRIPT), str(tmp_path / "x")], "not valid JSON"),
    ):
        assert script.main(arguments) == 2
        error = capsys.readouterr().err
        assert culprit in error
        assert error.count("\n") == 1


def test_a_config_that_cannot_be_served_writes_nothing(
    script: types.ModuleType, tmp_path: Path
) -> None:
    config = {**script.read_config("qwen3-0.6b"), "num_experts": 8}
    with pytest.raises(CheckpointError, match="num_experts"):
        script.make_model(config, tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_the_tokenizer_comes_along_if_it_fits(
    script: types.ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    builtin = tmp_path / "builtin"
    builtin.mkdir()
    (builtin / "config.json").write_text('{"vocab_size": 300}')
    (builtin / "tokenizer.json").write_text("{}")
    (builtin / "chat_template.jinja").write_text("x")
    monkeypatch.setattr(
        importlib.import_module("checkpoint_writer"), "resolve_model", lambda name: builtin
    )
    config = shrunk(script.read_config("llama-3.2-1b"))
    script.make_model(config, tmp_path / "fits")
    assert (tmp_path / "fits" / "tokenizer.json").read_text() == "{}"
    assert (tmp_path / "fits" / "chat_template.jinja").exists()
    script.make_model({**config, "vocab_size": 299}, tmp_path / "small")
    assert not (tmp_path / "small" / "tokenizer.json").exists()


def test_registry_families_are_all_covered_by_a_config(script: types.ModuleType) -> None:
    covered = {script.read_config(name)["architectures"][0] for name in script.known_models()}
    assert covered == set(FAMILIES) - {"Gemma3ForConditionalGeneration"}
