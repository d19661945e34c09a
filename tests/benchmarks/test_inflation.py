"""benchmarks/inflation.py: a larger model that computes exactly what the small one does."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from trimtab import LLM, SamplingParams
from trimtab.builtin import heldout_path, target_path
from trimtab.checkpoints import open_checkpoint
from trimtab.config import ExecutorConfig
from trimtab.errors import CheckpointError
from trimtab.executors.cpu import CpuExecutor
from trimtab.tokenization import load_tokenizer

ROOT = Path(__file__).resolve().parents[2]
WIDE = 80_000_000  # four times the hidden size


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "tests" / "executors")]
    yield importlib.import_module("make_model")
    del sys.path[:2]


@pytest.fixture(scope="module")
def wide(script: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("inflated") / "wide"
    assert script.main(["--inflate", "builtin", "--parameters", "80M", "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def token_ids() -> list[int]:
    text = heldout_path().read_text(encoding="utf-8")[:1200]
    return [0, *load_tokenizer(target_path()).encode(text)][:100]


def test_the_number_of_parameters_is_what_was_asked_for(script: ModuleType) -> None:
    inflation = importlib.import_module("inflation")
    old = inflation.Sizes.of(open_checkpoint(target_path()).spec)
    assert old.num_parameters == 11_801_472
    for parameters in np.geomspace(20e6, 8e9, 200):
        new = inflation.choose_sizes(old, int(parameters))
        assert new.num_parameters == pytest.approx(parameters, rel=0.03)
        assert new.hidden in (384, 1536, 6144)
        assert new.heads / new.kv_heads == 3
        assert new.layers <= 33


def test_logits_in_transformers(wide: Path, token_ids: list[int]) -> None:
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    logits = []
    for path in (target_path(), wide):
        model, info = AutoModelForCausalLM.from_pretrained(
            path, dtype=torch.float32, output_loading_info=True
        )
        kinds = ("missing_keys", "unexpected_keys", "mismatched_keys")
        assert not any(info[kind] for kind in kinds)
        with torch.no_grad():
            logits.append(model(torch.tensor([token_ids])).logits)
    assert sum(tensor.numel() for tensor in model.parameters()) == pytest.approx(WIDE, rel=0.03)
    scale = logits[0].abs().max()
    assert (logits[0] - logits[1]).abs().max() <= 1e-5 * scale


@pytest.mark.parametrize("weights", ["int8", "bf16"])
def test_logits_in_this_engine_are_the_same_bits(
    wide: Path, token_ids: list[int], weights: str
) -> None:
    from cpu_models import run_alone

    config = ExecutorConfig(weights=weights, num_blocks=16)
    small, large = (
        run_alone(CpuExecutor(open_checkpoint(path), config), token_ids)
        for path in (target_path(), wide)
    )
    assert np.array_equal(small, large)


def test_greedy_answers(script: ModuleType, tmp_path: Path) -> None:
    """Deepened only, as it is below 75 million parameters."""
    out = tmp_path / "deep"
    assert script.main(["--inflate", "builtin", "--parameters", "20M", "--out", str(out)]) == 0
    text = heldout_path().read_text(encoding="utf-8")
    prompts = [text[start : start + 300] for start in (0, 50_000, 100_000)]
    answers = []
    for path in ("builtin", str(out)):
        with LLM(path, weights="int8") as llm:
            completions = llm.generate(prompts, SamplingParams(max_tokens=24, temperature=0))
            answers.append([completion.outputs[0].text for completion in completions])
    assert answers[0] == answers[1]
    assert len(set(answers[0])) == 3


def test_what_reads_a_zero_is_no_zero(wide: Path) -> None:
    """So that no kernel can save work, and weights look like weights."""
    checkpoint = open_checkpoint(wide)
    hidden, old = checkpoint.spec.hidden_size, 384
    for layer in range(checkpoint.spec.num_layers):
        for part in ("q", "k", "v", "gate", "up"):
            reads_the_new_stream = checkpoint.tensor(f"layers.{layer}.{part}").to_float32()[:, old:]
            assert np.count_nonzero(reads_the_new_stream) > 0.999 * reads_the_new_stream.size
        for part, columns in (("o", old), ("down", 1024)):
            matrix = checkpoint.tensor(f"layers.{layer}.{part}").to_float32()
            assert matrix.shape[0] == hidden
            assert np.count_nonzero(matrix[:, columns:]) > 0.999 * matrix[:, columns:].size
            assert not matrix[old:, :columns].any()


def test_added_layers_lie_evenly_and_add_nothing(wide: Path) -> None:
    small, large = open_checkpoint(target_path()), open_checkpoint(wide)
    places = [
        layer
        for layer in range(large.spec.num_layers)
        if large.tensor(f"layers.{layer}.o").to_float32()[:384, :384].any()
    ]
    assert len(places) == small.spec.num_layers
    gaps = np.diff([*places, large.spec.num_layers])
    assert max(gaps) - min(gaps) <= 1
    for old, new in enumerate(places):
        for part in ("q", "v", "down"):
            corner = small.tensor(f"layers.{old}.{part}").to_float32()
            rows, columns = corner.shape
            stored = large.tensor(f"layers.{new}.{part}").to_float32()
            assert np.array_equal(stored[:rows, :columns], corner)
            largest = np.abs(corner).max(1)
            used = largest > 0
            assert np.array_equal(np.abs(stored[:rows]).max(1)[used], largest[used])


def test_the_seed_decides_the_rest(script: ModuleType, tmp_path: Path) -> None:
    inflation = importlib.import_module("inflation")
    for name, seed, shard in (("a", 1, 10**9), ("b", 1, 3_000_000), ("c", 2, 10**9)):
        inflation.inflate(target_path(), 20_000_000, tmp_path / name, seed, shard)
    a, b, c = (open_checkpoint(tmp_path / name) for name in "abc")
    assert (tmp_path / "b" / "model.safetensors.index.json").exists()
    for name in a.names():
        assert a.tensor(name).data.tobytes() == b.tensor(name).data.tobytes()
    layers = range(a.spec.num_layers)
    downs = {i: a.tensor(f"layers.{i}.down").to_float32() for i in layers}
    added = next(i for i in layers if not downs[i][:384, :1024].any())
    name = f"layers.{added}.q"
    assert a.tensor(name).data.tobytes() != c.tensor(name).data.tobytes()


def test_a_tensor_is_made_in_pieces(script: ModuleType) -> None:
    inflation = importlib.import_module("inflation")
    corner = np.ones((3, 2), np.float32)
    tensor = inflation.InflatedTensor("x", (20_000, 1000), corner, silent_from=4)
    pieces = list(tensor.pieces(0))
    assert max(map(len, pieces)) <= inflation.PIECE_ELEMENTS
    whole = np.concatenate(pieces).reshape(20_000, 1000)
    assert np.array_equal(whole[:3, :2], corner)
    assert whole[3].all()
    assert not whole[4:, :2].any()
    assert np.count_nonzero(whole[:, 2:]) > 0.999 * whole[:, 2:].size


def test_mistakes(script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(*arguments: str) -> str:
        try:
            status = script.main(list(arguments))
        except SystemExit as ended:
            status = ended.code
        assert status == 2
        return capsys.readouterr().err

    out = ["--out", str(tmp_path / "x")]
    assert "fewer than the model's own" in refused(
        "--inflate", "builtin", "--parameters", "5M", *out
    )
    assert "must be like 600M" in refused("--inflate", "builtin", "--parameters", "many", *out)
    assert "go together" in refused("--inflate", "builtin", *out)
    assert "one of MODEL and --inflate" in refused("qwen3-0.6b", "--inflate", "builtin", *out)
    assert "one of OUT and --out" in refused("--inflate", "builtin", "--parameters", "20M")
    assert not (tmp_path / "x").exists()


def test_other_models_are_refused(script: ModuleType, tmp_path: Path) -> None:
    inflation = importlib.import_module("inflation")
    config = script.read_config("qwen3-0.6b")
    small = {"num_hidden_layers": 1, "hidden_size": 64, "intermediate_size": 96, "head_dim": 16}
    small |= {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 300}
    small |= {"bos_token_id": 1, "eos_token_id": 2}
    script.make_model({**config, **small}, tmp_path / "qwen")
    with pytest.raises(CheckpointError, match="only a Llama with tied embeddings"):
        inflation.inflate(tmp_path / "qwen", 10**9, tmp_path / "out")
    assert json.loads((tmp_path / "qwen" / "config.json").read_text())["vocab_size"] == 300
