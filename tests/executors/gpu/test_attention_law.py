"""A row's attention has the same bits whatever else is in the batch, however its prompt was cut,
and whichever kernel served it."""

from __future__ import annotations

import itertools
import random

import pytest
import torch

pytest.importorskip("triton")

from attention_cases import Case, Sequence, make_case

from trimtab.executors.gpu.cache import KVCacheFormat

FORMATS: list[tuple[KVCacheFormat, torch.dtype]] = [
    ("f32", torch.float32),
    ("bf16", torch.bfloat16),
    ("int8", torch.bfloat16),
]


def random_case(choose: random.Random, format: KVCacheFormat, dtype: torch.dtype) -> Case:
    contexts = [choose.randint(1, 400) for _ in range(3)]
    case = make_case(contexts, 4, 2, 16, format, dtype, seed=choose.randrange(100))
    return case.with_options(window=choose.choice([0, 90]), softcap=choose.choice([0.0, 2.0]))


@pytest.mark.parametrize("format", FORMATS, ids=str)
@pytest.mark.parametrize("seed", range(2))
def test_company_and_order_change_no_bit(
    seed: int, format: tuple[KVCacheFormat, torch.dtype]
) -> None:
    choose = random.Random(seed)
    case = random_case(choose, *format)
    sequences = {
        index: Sequence(len(q), min(len(q), choose.choice([1, 2, 6, 90])))
        for index, q in enumerate(case.queries)
    }
    alone = {index: case.run({index: one})[index] for index, one in sequences.items()}
    order = choose.sample(list(sequences), len(sequences))
    together = case.run(
        {index: sequences[index] for index in order},
        max_context=choose.choice([400, 5000]),
        programs=choose.choice([1, 3, 50]),
    )
    for index in sequences:
        assert torch.equal(alone[index], together[index])


@pytest.mark.parametrize("format", FORMATS, ids=str)
@pytest.mark.parametrize("seed", range(2))
def test_chunks_change_no_bit(seed: int, format: tuple[KVCacheFormat, torch.dtype]) -> None:
    """Whole, in chunks, and single rows by the kernel of decode."""
    choose = random.Random(seed)
    case = random_case(choose, *format)
    context = len(case.queries[0])
    whole = case.run({0: Sequence(context, context)})[0]
    cuts = sorted({0, context, *(choose.randint(0, context) for _ in range(2))})
    for start, end in itertools.pairwise(cuts):
        part = case.run({0: Sequence(end, end - start)})[0]
        assert torch.equal(part, whole[start:end])
    for position in [0, context - 1, *(choose.randrange(context) for _ in range(2))]:
        row = case.run({0: Sequence(position + 1, 1)})[0]
        assert torch.equal(row, whole[position : position + 1])


@pytest.mark.parametrize("group", [1, 5])
def test_drafts_change_no_bit(group: int) -> None:
    """Tiles of 64 rows (decode), of 128 (verification) and those of prefill."""
    case = make_case([290], group, 1, 32, "bf16", torch.bfloat16)
    whole = case.run({0: Sequence(290, 150)})[0]
    for rows in (1, 64 // group, 128 // group, 128 // group + 1):
        found = case.run({0: Sequence(290, rows)})[0]
        assert torch.equal(found, whole[-rows:])


def test_room_for_partial_results_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few rows are the flash kernel's when there is no room for their partial results."""
    case = make_case([600, 400], 2, 1, 16)
    sequences = {0: Sequence(600, 1), 1: Sequence(400, 50)}
    split = case.run(sequences, max_partitions=3 + 2)
    monkeypatch.setattr("trimtab.executors.gpu.attention.SCRATCH_BYTES", 0)
    flash = case.run(sequences)
    assert all(torch.equal(split[index], flash[index]) for index in sequences)
