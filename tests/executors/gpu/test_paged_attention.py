"""Attention kernels against float64, over random ragged batches in a paged cache whose every other
slot holds NaN."""

from __future__ import annotations

import random

import pytest
import torch

pytest.importorskip("triton")

from attention_cases import DEVICE, Case, Sequence, make_case

from trimtab.executors.gpu.attention import attention
from trimtab.executors.gpu.cache import KVCache, KVCacheFormat
from trimtab.executors.gpu.reference import ReferenceOps

BF16 = 2.0**-8  # values are of the order of one: half an ulp of bf16, of K, V, weights and result


def agrees(case: Case, sequences: dict[int, Sequence], error: float, **options: int) -> None:
    found = case.run(sequences, **options)
    for index, one in sequences.items():
        difference = (found[index].double().cpu() - case.expected(index, one)).abs()
        assert (difference < error).all(), (index, one, difference.max())


@pytest.mark.parametrize("seed", range(4))
def test_random_batches(seed: int) -> None:
    choose = random.Random(seed)
    group, dim = choose.choice([1, 2, 3, 7]), choose.choice([8, 16, 40, 64])
    contexts = [choose.choice([1, 15, 16, 17, 64, 255, 256, 257, 600]) for _ in range(5)]
    case = make_case(contexts, 2 * group, 2, dim, seed=seed).with_options(
        window=choose.choice([0, 1, 16, 100, 256]), softcap=choose.choice([0.0, 3.0])
    )
    sequences = {
        index: Sequence(context, min(context, choose.choice([1, 1, 2, 5, 70])))
        for index, context in enumerate(contexts)
    }
    agrees(case, sequences, 2e-6)


@pytest.mark.parametrize("rows", [1, 3, 20])
@pytest.mark.parametrize("format", ["bf16", "fp8", "int8"])
def test_formats_of_the_cache(format: KVCacheFormat, rows: int) -> None:
    case = make_case([300, 40], 12, 2, 32, format, torch.bfloat16)
    agrees(case, {0: Sequence(300, rows), 1: Sequence(40, rows)}, 3 * BF16)


def test_half_precision() -> None:
    agrees(make_case([270], 4, 4, 16, "f16", torch.float16), {0: Sequence(270, 2)}, 2.0**-10)


def test_large_heads() -> None:
    case = make_case([70], 4, 2, 256, "bf16", torch.bfloat16)
    agrees(case, {0: Sequence(70, 1)}, 3 * BF16)
    agrees(case, {0: Sequence(70, 33)}, 3 * BF16)


@pytest.mark.parametrize("rows", [1, 40])
def test_sharp_scores(rows: int) -> None:
    """Scores of hundreds: one position has nearly all the weight, the maximum moves often."""
    case = make_case([530], 2, 1, 16)
    for query in case.queries:
        query *= 200
    agrees(case, {0: Sequence(530, rows)}, 1e-4)


@pytest.mark.parametrize("format", ["f32", "int8"])
def test_plain_torch_agrees(format: KVCacheFormat) -> None:
    dtype = torch.float32 if format == "f32" else torch.bfloat16
    case = make_case([300, 31], 6, 2, 24, format, dtype).with_options(window=40, softcap=2.0)
    sequences = {1: Sequence(31, 20), 0: Sequence(300, 2)}
    plain = case.run(sequences, ReferenceOps().attention)
    error = 2e-6 if format == "f32" else 3 * BF16
    for index, found in case.run(sequences).items():
        assert torch.allclose(found, plain[index], rtol=0, atol=error)


@pytest.mark.parametrize("max_rows", [1, 40])
def test_sequences_without_rows(max_rows: int) -> None:
    """Padding of a captured batch, between sequences and behind them."""
    case = make_case([300, 20, 50], 2, 1, 16)
    sequences = {0: Sequence(300, 1), 1: Sequence(20, 0), 2: Sequence(50, max_rows)}
    agrees(case, sequences, 2e-6, max_context=1000)
    agrees(case, {0: Sequence(300, 0), 2: Sequence(50, max_rows), 1: Sequence(20, 0)}, 2e-6)
    empty = case.run({0: Sequence(300, 0), 1: Sequence(20, 0)}, max_rows=1)
    assert empty[0].numel() == 0


def test_rows_that_see_what_is_not_finite_become_nan_and_no_others() -> None:
    case = make_case([300], 2, 1, 16)
    clean = case.run({0: Sequence(300, 60)})[0]
    block = case.tables[0, 260 // 16]
    case.cache.keys[block, 260 % 16, 0, 0] = torch.nan  # its value is finite, as it was written
    for rows in (60, 7):
        found = case.run({0: Sequence(300, rows)})[0]
        seeing = torch.arange(300 - rows, 300) >= 260
        assert found[seeing.to(DEVICE)].isnan().all()
        assert torch.equal(found[~seeing.to(DEVICE)], clean[-rows:][~seeing.to(DEVICE)])


def test_arguments_that_do_not_fit() -> None:
    cache = KVCache(2, 16, 2, 16, "bf16", DEVICE)
    q = torch.zeros(1, 4, 16, device=DEVICE, dtype=torch.bfloat16)
    starts = torch.tensor([0, 1], dtype=torch.int32, device=DEVICE)
    position, table = starts[:1], torch.zeros(1, 1, dtype=torch.int32, device=DEVICE)

    def call(q=q, starts=starts, position=position, table=table, scale=1.0, softcap=0.0) -> None:
        attention(q, cache, starts, position, table, scale, 0, softcap, 1, 1)

    call()
    with pytest.raises(ValueError, match="for 2 KV heads of 16"):
        call(q=q[:, :3])
    with pytest.raises(ValueError, match="a cache of"):
        call(q=q.half())
    with pytest.raises(ValueError, match="int32"):
        call(starts=starts.long())
    with pytest.raises(ValueError, match="one block table a sequence"):
        call(table=table.repeat(2, 1))
    with pytest.raises(ValueError, match="above 0"):
        call(scale=0.0)
    with pytest.raises(ValueError, match="window and softcap"):
        call(softcap=-1.0)
    with pytest.raises(ValueError, match="up to 64 heads"):
        call(q=q.repeat(1, 33, 1))
