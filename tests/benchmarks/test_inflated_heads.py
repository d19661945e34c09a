"""benchmarks/inflated_heads.py: the head of an inflated model drafts as the original does."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trimtab.builtin import heads_path, heldout_path, target_path
from trimtab.checkpoints import open_checkpoint
from trimtab.checkpoints.draft_head import open_draft_head
from trimtab.config import ExecutorConfig
from trimtab.engine.speculation.steps import greedy_sampling
from trimtab.executors.base import StepBatch
from trimtab.executors.cpu import CpuExecutor
from trimtab.executors.cpu_draft_head import CpuDraftHead
from trimtab.tokenization import load_tokenizer

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def batch_of(tokens: list[int]) -> StepBatch:
    count = len(tokens)
    num_blocks = -(-count // 16)
    positions = np.arange(count, dtype=np.int32)
    return StepBatch(
        token_ids=np.array(tokens, np.int32),
        positions=positions,
        seq_starts=np.array([0, count], np.int32),
        block_starts=np.array([0, num_blocks], np.int32),
        block_ids=np.arange(num_blocks, dtype=np.int32),
        logit_rows=positions,
        sampling=greedy_sampling(positions),
        features=True,
    )


def drafted(model: Path, heads: Path, tokens: list[int]) -> tuple[Any, Any]:
    """What the head guesses behind each token, and the first layers' features."""
    target = CpuExecutor(open_checkpoint(model), ExecutorConfig(num_blocks=32, threads=2))
    head = CpuDraftHead(open_draft_head(heads, target.spec), target)
    target.set_feature_layers(head.spec.layer_ids)
    features = target.execute(batch_of(tokens)).features
    assert features is not None
    size = target.spec.hidden_size
    guesses = head.execute(batch_of(tokens[1:]), features[:-1].copy()).tokens
    return guesses, features.reshape(len(tokens), -1, size)


def test_an_inflated_model_gets_its_head(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    script = importlib.import_module("make_model")
    out = tmp_path / "out"
    assert script.main(["--inflate", "builtin", "--parameters", "80M", "--out", str(out)]) == 0
    capsys.readouterr()
    text = heldout_path().read_text(encoding="utf-8")[:1200]
    tokens = load_tokenizer(target_path()).encode(text)[:250]
    expected, narrow = drafted(target_path(), heads_path(), tokens)
    guesses, wide = drafted(out, out / "heads", tokens)
    assert (wide[..., : narrow.shape[-1]] == narrow).all()
    assert (wide[..., narrow.shape[-1] :] == 0).all()
    # Zeros among the columns of fc change in which order the others are added.
    assert (guesses == expected).mean() > 0.98
