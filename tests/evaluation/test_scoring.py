"""Scores of windows: the same bits however windows share steps, and those of the engine."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from trimtab import LLM, builtin
from trimtab.checkpoints import open_checkpoint
from trimtab.config import ExecutorConfig
from trimtab.errors import ConfigError, TrimtabError
from trimtab.evaluation.divergence import divergence, log_softmax
from trimtab.evaluation.scoring import blocks_needed, score
from trimtab.evaluation.windows import Window, text_windows
from trimtab.executors.base import Executor, StepBatch, StepResult
from trimtab.executors.cpu import CpuExecutor
from trimtab.tokenization import load_tokenizer


@pytest.fixture(scope="module")
def windows() -> list[Window]:
    text = builtin.heldout_path().read_text(encoding="utf-8")
    return text_windows(load_tokenizer(builtin.draft_path()), [text[:1500], text[5000:5300]], 70)


@pytest.fixture(scope="module")
def executor() -> Iterator[Executor]:
    config = ExecutorConfig(weights="int8", num_blocks=64)
    found = CpuExecutor(open_checkpoint(builtin.draft_path()), config)
    yield found
    found.close()


def collect(executor: Executor, windows: list[Window], max_rows: int) -> list[np.ndarray]:
    """Logprobs of each window's scored tokens."""
    parts: list[list[np.ndarray]] = [[] for _ in windows]
    for rows in score(executor, windows, max_rows):
        assert rows.first == sum(map(len, parts[rows.window]))
        parts[rows.window].append(rows.logprobs.copy())
    return [np.concatenate(part) for part in parts]


def test_steps_change_no_bit(executor: Executor, windows: list[Window]) -> None:
    whole = collect(executor, windows, 1000)
    assert [len(values) for values in whole] == [window.num_scored for window in windows]
    for max_rows in (1, 69, 70, 71, 150):
        for values, expected in zip(collect(executor, windows, max_rows), whole, strict=True):
            assert (values == expected).all()


def test_the_engine_says_the_same(executor: Executor, windows: list[Window]) -> None:
    with LLM(str(builtin.draft_path()), weights="int8", num_blocks=64) as llm:
        expected = llm.score([window.token_ids for window in windows])
    for values, theirs in zip(collect(executor, windows, 512), expected, strict=True):
        assert values.tolist() == theirs


def test_logits_are_those_of_the_logprobs(executor: Executor, windows: list[Window]) -> None:
    for rows in score(executor, windows[:2], 50, with_logits=True):
        assert rows.logits is not None
        first = rows.first + 1
        targets = windows[rows.window].token_ids[first : first + len(rows.logprobs)]
        found = log_softmax(rows.logits)[np.arange(len(targets)), targets]
        np.testing.assert_allclose(found, rows.logprobs, atol=1e-5)


def test_blocks_needed_are_enough_and_no_more(windows: list[Window]) -> None:
    checkpoint = open_checkpoint(builtin.draft_path())
    for max_rows in (30, 150, 1000):
        blocks = blocks_needed(windows, 16, max_rows)
        for num_blocks in (blocks, blocks - 1):
            executor = CpuExecutor(checkpoint, ExecutorConfig(num_blocks=num_blocks))
            if num_blocks == blocks:
                collect(executor, windows, max_rows)
            else:
                with pytest.raises(ConfigError, match="blocks of KV cache"):
                    collect(executor, windows, max_rows)
            executor.close()


def test_a_window_beyond_the_context_is_refused(executor: Executor) -> None:
    with pytest.raises(ConfigError, match="context of"):
        collect(executor, [Window([1] * (executor.spec.max_context + 1), 1)], 64)


def test_logits_that_are_not_finite_are_an_error(executor: Executor, windows: list[Window]) -> None:
    class Broken:
        spec, capacity = executor.spec, executor.capacity

        def execute(self, batch: StepBatch) -> StepResult:
            result = executor.execute(batch)
            assert result.target_logprobs is not None
            result.target_logprobs[-1] = np.nan
            return result

    with pytest.raises(TrimtabError, match="not finite"):
        collect(Broken(), windows, 512)  # type: ignore[arg-type]


def test_divergence_is_what_torch_finds() -> None:
    import torch

    random = np.random.default_rng(0)
    baseline, logits = random.normal(0, 4, (2, 150, 90)).astype(np.float32)
    baseline[3, 7] = -np.inf  # ruled out
    targets = random.integers(0, 90, 150)
    found = divergence(baseline, logits, targets)
    log_p, log_q = (torch.tensor(x, dtype=torch.float64).log_softmax(1) for x in (baseline, logits))
    expected = torch.nn.functional.kl_div(log_q, log_p, reduction="none", log_target=True)
    np.testing.assert_allclose(found.kl, expected.nan_to_num(0.0).sum(1).numpy(), rtol=1e-9)
    assert (found.agrees == (log_p.argmax(1) == log_q.argmax(1)).numpy()).all()
    change = (log_q.exp() - log_p.exp())[torch.arange(150), torch.tensor(targets)]
    np.testing.assert_allclose(found.target_change, change.numpy(), atol=1e-12)


def test_divergence_of_two_known_distributions() -> None:
    p, q = np.array([[0.5, 0.25, 0.25]]), np.array([[0.25, 0.5, 0.25]])
    found = divergence(np.log(p) + 3, np.log(q) - 1, np.array([1]))
    assert found.kl[0] == pytest.approx(0.25 * np.log(2))
    assert not found.agrees[0]
    assert found.target_change[0] == pytest.approx(0.25)
    assert divergence(np.log(p), np.log(p), np.array([0])).kl[0] == 0
