"""Perplexity and distance as transformers finds them, on the built-in models."""

from __future__ import annotations

import math

import numpy as np
import pytest

from trimtab import builtin
from trimtab.checkpoints import open_checkpoint
from trimtab.config import ExecutorConfig, parse_weights
from trimtab.evaluation import text_quality as module
from trimtab.evaluation.text_quality import text_quality
from trimtab.evaluation.windows import Window, text_windows
from trimtab.executors.cpu import CpuExecutor
from trimtab.tokenization import load_tokenizer


@pytest.fixture(scope="module")
def windows() -> list[Window]:
    text = builtin.heldout_path().read_text(encoding="utf-8")
    return text_windows(load_tokenizer(builtin.draft_path()), [text], 120, 8)


def open_draft(weights: str) -> CpuExecutor:
    name, group_size = parse_weights(weights)
    kv_cache = "f32" if name == "f32" else "bf16"
    config = ExecutorConfig(name, group_size, kv_cache=kv_cache, num_blocks=80)  # type: ignore[arg-type]
    return CpuExecutor(open_checkpoint(builtin.draft_path()), config)


def test_float32_has_the_loss_that_transformers_finds(windows: list[Window]) -> None:
    import torch
    import transformers

    found = text_quality(open_draft("f32"), windows)
    oracle = transformers.AutoModelForCausalLM.from_pretrained(
        builtin.draft_path(), dtype=torch.float32
    )
    losses = []
    for window in windows:
        ids = torch.tensor([window.token_ids])
        with torch.no_grad():
            losses.append(oracle(ids, labels=ids).loss.item() * window.num_scored)
    tokens = sum(window.num_scored for window in windows)
    size = sum(window.num_bytes for window in windows)
    assert found.nll.value == pytest.approx(sum(losses) / tokens, rel=1e-5)
    assert found.perplexity.value == pytest.approx(math.exp(sum(losses) / tokens), rel=1e-4)
    assert found.bits_per_byte.value == pytest.approx(sum(losses) / math.log(2) / size, rel=1e-5)
    assert (found.num_windows, found.num_tokens, found.num_bytes) == (8, tokens, size)
    assert found.nll.low < found.nll.value < found.nll.high
    assert found.distance is None


def test_a_model_is_at_no_distance_from_itself(windows: list[Window]) -> None:
    found = text_quality(open_draft("int8"), windows, open_draft("int8")).distance
    assert found is not None
    assert (found.kl.value, found.kl_p99, found.kl_max, found.target_rms) == (0, 0, 0, 0)
    assert (found.top1.value, found.nll_change.value) == (1, 0)


def test_fewer_bits_are_further_away(
    windows: list[Window], monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = open_draft("f32")
    alone = {label: text_quality(open_draft(label), windows) for label in ("f32", "int4-g128")}
    found = {
        label: text_quality(open_draft(label), windows, reference)
        for label in ("bf16", "int8", "int4-g128")
    }
    distances = [quality.distance for quality in found.values()]
    kls = [distance.kl.value for distance in distances if distance is not None]
    assert kls == sorted(kls)
    assert len(set(kls)) == 3
    assert 0 < kls[0] < 1e-3
    far = distances[-1]
    assert far is not None
    assert far.kl_median < far.kl_p99 < far.kl_max
    assert far.kl.low < far.kl.value < far.kl.high
    assert 0.5 < far.top1.value < 1
    assert far.nll_change.value == pytest.approx(
        alone["int4-g128"].nll.value - alone["f32"].nll.value, abs=1e-6
    )
    assert found["int4-g128"].nll == alone["int4-g128"].nll

    monkeypatch.setattr(module, "MAX_LOGITS", 50 * reference.spec.vocab_size)  # windows in pieces
    again = text_quality(open_draft("int4-g128"), windows, reference)
    assert again.distance is not None
    assert again.distance.kl.value == pytest.approx(far.kl.value, rel=1e-12)
    assert again.distance.kl_max == far.kl_max


def test_json_is_plain(windows: list[Window]) -> None:
    found = text_quality(open_draft("bf16"), windows[:1], open_draft("f32")).as_json()
    assert (found["perplexity"]["low"], found["perplexity"]["high"]) == (0, None)
    assert found["distance"]["kl_nats"]["high"] is None
    assert np.isfinite(found["distance"]["kl_nats"]["value"])
