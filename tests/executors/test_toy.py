"""The toy executor tells right batches from wrong ones, and its logits see every mistake."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from trimtab.executors.base import Executor, SamplingBatch, StepBatch
from trimtab.executors.toy import ToyExecutor, sample_row


def sampling(num_rows: int, positions: list[int], **fields: Any) -> SamplingBatch:
    none = np.zeros(0, np.int32)
    starts = np.zeros(num_rows + 1, np.int32)
    batch = SamplingBatch(
        temperature=np.zeros(num_rows, np.float32),
        top_k=np.zeros(num_rows, np.int32),
        top_p=np.ones(num_rows, np.float32),
        min_p=np.zeros(num_rows, np.float32),
        repetition_penalty=np.ones(num_rows, np.float32),
        presence_penalty=np.zeros(num_rows, np.float32),
        frequency_penalty=np.zeros(num_rows, np.float32),
        seeds=np.zeros(num_rows, np.uint64),
        positions=np.array(positions, np.int32),
        num_logprobs=np.full(num_rows, -1, np.int32),
        bias_starts=starts,
        bias_ids=none,
        bias_values=np.zeros(0, np.float32),
        banned_starts=starts,
        banned_ids=none,
        prompt_starts=starts,
        prompt_ids=none,
        output_starts=starts,
        output_ids=none,
        mask_rows=np.full(num_rows, -1, np.int32),
        mask=np.zeros((0, 0), np.uint32),
    )
    return replace(batch, **fields)


def batch_of(*sequences: tuple[list[int], int, list[int]], **fields: Any) -> StepBatch:
    """Of (tokens, first position, block table) for each sequence; the last rows get logits."""
    counts = [len(tokens) for tokens, _, _ in sequences]
    tables = [len(table) for _, _, table in sequences]
    positions = [start + i for tokens, start, _ in sequences for i in range(len(tokens))]
    rows = np.cumsum(counts) - 1
    batch = StepBatch(
        token_ids=np.array([t for tokens, _, _ in sequences for t in tokens], np.int32),
        positions=np.array(positions, np.int32),
        seq_starts=np.array([0, *np.cumsum(counts)], np.int32),
        block_starts=np.array([0, *np.cumsum(tables)], np.int32),
        block_ids=np.array([b for _, _, table in sequences for b in table], np.int32),
        logit_rows=rows.astype(np.int32),
        sampling=sampling(len(rows), [positions[row] + 1 for row in rows]),
        return_logits=True,
    )
    return replace(batch, **fields)


def make() -> ToyExecutor:
    return ToyExecutor(num_blocks=8, block_size=2, vocab_size=16, max_context=16)


def logits(executor: ToyExecutor, batch: StepBatch) -> list[list[float]]:
    result = executor.execute(batch)
    assert result.logits is not None
    return result.logits.tolist()  # type: ignore[no-any-return]


def test_it_is_an_executor() -> None:
    executor: Executor = make()
    assert executor.capacity.num_tokens == 16
    assert executor.identity == make().identity
    assert executor.identity != ToyExecutor(vocab_size=16, weights_seed=1).identity


def test_chunks_company_and_blocks_change_nothing() -> None:
    tokens = [3, 1, 4, 1, 5]
    expected = make().logits(tokens).tolist()
    whole = make()
    assert logits(whole, batch_of((tokens, 0, [2, 0, 7]))) == [expected]
    chunked = make()
    chunked.execute(batch_of((tokens[:3], 0, [5, 1])))
    company = batch_of(([9, 9], 0, [6]), (tokens[3:], 3, [5, 1, 4]))
    assert logits(chunked, company)[1] == expected


@pytest.mark.parametrize("table", [[1, 0, 2], [0, 2, 1], [3, 1, 2]])
def test_a_wrong_table_changes_the_logits(table: list[int]) -> None:
    executor = make()
    executor.execute(batch_of(([3, 1, 4, 1], 0, [0, 1])))
    assert logits(executor, batch_of(([5], 4, table))) != [make().logits([3, 1, 4, 1, 5]).tolist()]


def test_an_overwritten_block_changes_the_logits() -> None:
    executor = make()
    executor.execute(batch_of(([3, 1, 4, 1], 0, [0, 1])))
    executor.execute(batch_of(([3, 2], 0, [0])))
    assert logits(executor, batch_of(([5], 4, [0, 1, 2]))) != [
        make().logits([3, 1, 4, 1, 5]).tolist()
    ]


GOOD = batch_of(([3, 1, 4], 0, [0, 1]), ([7], 2, [2, 3]))


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        (replace(GOOD, positions=np.array([0, 1, 3, 2], np.int32)), "consecutive"),
        (replace(GOOD, positions=np.array([-1, 0, 1, 2], np.int32)), "consecutive"),
        (replace(GOOD, positions=np.array([14, 15, 16, 2], np.int32)), "max_context"),
        (replace(GOOD, block_ids=np.array([0, 8, 2, 3], np.int32)), "out of range"),
        (replace(GOOD, block_ids=np.array([0, -1, 2, 3], np.int32)), "negative"),
        (replace(GOOD, token_ids=np.array([3, 1, 16, 7], np.int32)), "token id"),
        (replace(GOOD, token_ids=np.array([3, 1, 4, 7], np.int64)), "int32"),
        (replace(GOOD, block_starts=np.array([0, 1, 4], np.int32)), "too short"),
        (replace(GOOD, logit_rows=np.array([3, 2], np.int32)), "ascending"),
        (replace(GOOD, logit_rows=np.array([2, 4], np.int32)), "logit_rows"),
        (replace(GOOD, seq_starts=np.array([0, 0, 4], np.int32)), "without rows"),
        (replace(GOOD, sampling=sampling(2, [3, 4])), "sampling.positions"),
        (replace(GOOD, sampling=sampling(1, [3])), "another length"),
        (batch_of(([3, 1], 0, [0]), ([7, 7], 0, [0])), "two sequences write"),
    ],
)
def test_a_wrong_batch_is_refused(batch: StepBatch, words: str) -> None:
    executor = make()
    executor.execute(GOOD)
    with pytest.raises(ValueError, match=words):
        executor.execute(batch)


def test_blocks_can_be_copied_and_moved_elsewhere() -> None:
    executor, other = make(), make()
    executor.execute(batch_of(([3, 1, 4, 1], 0, [0, 1])))
    executor.copy_blocks(np.array([0, 1], np.int32), np.array([5, 6], np.int32))
    data = executor.export_blocks(np.array([0, 1], np.int32))
    assert data.shape == (2, executor.capacity.bytes_per_block)
    other.import_blocks(np.array([7, 3], np.int32), data)
    expected = [make().logits([3, 1, 4, 1, 5]).tolist()]
    assert logits(executor, batch_of(([5], 4, [5, 6, 2]))) == expected
    assert logits(other, batch_of(([5], 4, [7, 3, 2]))) == expected


def row(values: list[float], **fields: Any) -> int:
    ragged: dict[str, Any] = {}
    for name in ("bias", "banned", "prompt", "output"):
        if name in fields:
            ids = np.array(fields.pop(name), np.int32)
            ragged |= {f"{name}_ids": ids, f"{name}_starts": np.array([0, len(ids)], np.int32)}
    arrays = {name: np.array([value], np.float32) for name, value in fields.items()}
    for name, kind in (("top_k", np.int32), ("seeds", np.uint64), ("mask_rows", np.int32)):
        if name in arrays:
            arrays[name] = arrays[name].astype(kind)
    if "bias_values" in arrays:
        arrays["bias_values"] = arrays["bias_values"][0]
    if "mask" in arrays:
        arrays["mask"] = np.array([fields["mask"]], np.uint32)
    return sample_row(np.array(values, np.float32), sampling(1, [1], **ragged, **arrays), 0)


def test_sampling_parameters_act() -> None:
    values = [1.0, 3.0, 2.0, -1.0]
    assert row(values) == 1
    assert row([3.0, 3.0]) == 0
    assert row(values, bias=[3], bias_values=[9.0]) == 3
    assert row(values, banned=[1, 2]) == 0
    assert row(values, output=[1], presence_penalty=2) == 2
    assert row(values, output=[1, 1, 1], frequency_penalty=0.5) == 2
    assert row(values, prompt=[1], repetition_penalty=2) == 2
    assert row(values, mask_rows=0, mask=[0b1001]) == 0
    assert row([1.0, float("nan")]) == -1
    draws = {row(values, temperature=5, seeds=seed) for seed in range(60)}
    assert draws == {0, 1, 2, 3}
    assert {row(values, temperature=5, top_k=2, seeds=s) for s in range(60)} == {1, 2}
    assert {row(values, temperature=1, top_p=0.1, seeds=s) for s in range(60)} == {1}
    assert {row(values, temperature=1, min_p=0.3, seeds=s) for s in range(60)} == {1, 2}


def test_frequencies_follow_the_softmax() -> None:
    values = [0.0, 1.0, 2.0]
    counts = np.zeros(3)
    for seed in range(1500):
        counts[row(values, temperature=1, seeds=seed)] += 1
    expected = np.exp(values) / np.exp(values).sum() * 1500
    assert ((counts - expected) ** 2 / expected).sum() < 13.8  # chi-square, 2 degrees, p = 0.001
