"""The schedule never changes the answer: logits compared with ==, over random schedules."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from cpu_models import BLOCK, Passage, advance, as_int32, memory_model, run_alone

from trimtab import _native
from trimtab.config import ExecutorConfig, KVFormat, parse_weights
from trimtab.executors.cpu import CpuExecutor

ISAS = _native.available_isas()
NUM_BLOCKS = 96
FORMATS: list[tuple[str, KVFormat]] = [
    ("f32", "f32"),
    ("f32", "bf16"),
    ("bf16", "bf16"),
    ("bf16", "int8"),
    ("int8", "bf16"),
    ("int8", "int8"),
    ("int8-g32", "bf16"),
    ("int4-g32", "bf16"),
    ("int4-g64", "f32"),
]


@contextmanager
def executors(
    isa: str,
    weights: str,
    kv_cache: KVFormat,
    thread_counts: tuple[int, ...],
    **changes: int,
) -> Iterator[list[CpuExecutor]]:
    checkpoint = memory_model(**changes)
    name, group_size = parse_weights(weights)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRIMTAB_ISA", isa)
        made = [
            CpuExecutor(
                checkpoint,
                ExecutorConfig(
                    weights=name,
                    kv_cache=kv_cache,
                    group_size=group_size,
                    threads=threads,
                    num_blocks=NUM_BLOCKS,
                ),
            )
            for threads in thread_counts
        ]
    yield made
    for executor in made:
        executor.close()


class Schedule:
    """Sequences in random company, chunks and blocks, moved between executors on the way."""

    def __init__(self, seed: int, workers: list[CpuExecutor]) -> None:
        self.random = random.Random(seed)
        self.workers = workers
        self.free = list(range(NUM_BLOCKS))
        self.random.shuffle(self.free)
        self.home = 0

    def start(self, tokens: list[int]) -> Passage:
        return Passage(tokens, [self.free.pop() for _ in range(-(-len(tokens) // BLOCK))])

    def run(self, prompts: list[list[int]]) -> list[np.ndarray]:
        sequences = [self.start(prompt) for prompt in prompts]
        while live := [s for s in sequences if s.computed < len(s.tokens)]:
            company = self.random.sample(live, self.random.randint(1, len(live)))
            pieces = []
            for sequence in company:
                left = len(sequence.tokens) - sequence.computed
                pieces.append(
                    (sequence, self.random.choice([1, min(left, 3), left, -(-left // 2)]))
                )
            advance(self.workers[self.home], pieces)
            self.random.choice([self.stay, self.move_blocks, self.move_house])(live)
        return [np.stack(sequence.logits) for sequence in sequences]

    def stay(self, live: list[Passage]) -> None:
        pass

    def move_blocks(self, live: list[Passage]) -> None:
        """Copy one sequence's blocks elsewhere; its old ones become garbage for others."""
        sequence = self.random.choice(live)
        if len(self.free) < len(sequence.blocks):
            return
        fresh = [self.free.pop() for _ in sequence.blocks]
        self.workers[self.home].copy_blocks(as_int32(sequence.blocks), as_int32(fresh))
        self.free += sequence.blocks
        self.random.shuffle(self.free)
        sequence.blocks = fresh

    def move_house(self, live: list[Passage]) -> None:
        """Go on with another executor, which has another number of threads."""
        there = self.random.randrange(len(self.workers))
        used = as_int32([block for sequence in live for block in sequence.blocks])
        data = self.workers[self.home].export_blocks(used)
        assert data.shape == (len(used), self.workers[0].capacity.bytes_per_block)
        self.workers[there].import_blocks(used, data)
        self.home = there


def random_prompts(seed: int) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    lengths = [1, 2, *rng.integers(3, 90, size=3)]
    return [rng.integers(0, 77, size=length).tolist() for length in lengths]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("weights", "kv_cache"), FORMATS)
def test_any_schedule_gives_the_same_logits(isa: str, weights: str, kv_cache: KVFormat) -> None:
    with executors(isa, weights, kv_cache, (1, 2, 3)) as workers:
        for seed in range(3):
            prompts = random_prompts(seed)
            expected = [run_alone(workers[0], prompt) for prompt in prompts]
            assert all(np.isfinite(logits).all() for logits in expected)
            for logits, alone in zip(Schedule(seed, workers).run(prompts), expected, strict=True):
                assert (logits == alone).all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kv_cache", ["bf16", "int8"])
def test_long_contexts_over_partition_borders(isa: str, kv_cache: KVFormat) -> None:
    """Contexts beyond 512 and 1024 keys, where few rows are spread over threads by partition."""
    tokens = np.random.default_rng(5).integers(0, 77, size=1040).tolist()
    heads = {"num_heads": 2, "num_kv_heads": 1}
    with executors(isa, "int8", kv_cache, (1, 3), **heads) as (one, three):
        whole = run_alone(one, tokens)
        assert (run_alone(three, tokens, chunk=500) == whole).all()
        # Decode the last tokens one by one, on the other's cache.
        sequence = Passage(tokens, list(range(-(-len(tokens) // BLOCK))), computed=1030)
        for executor in (three, one) * 5:
            advance(executor, [(sequence, 1)])
            expected = whole[sequence.computed - 1]
            assert (sequence.logits[-1] == expected).all()
            here = as_int32(sequence.blocks)
            three.import_blocks(here, one.export_blocks(here)) if executor is one else (
                one.import_blocks(here, three.export_blocks(here))
            )


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kv_cache", ["f32", "bf16", "int8"])
def test_what_a_block_held_before_does_not_matter(isa: str, kv_cache: KVFormat) -> None:
    """Every byte of the cache 0xff, which is NaN in every float format."""
    tokens = np.random.default_rng(6).integers(0, 77, size=45).tolist()
    with executors(isa, "bf16", kv_cache, (2,)) as (executor,):
        clean = run_alone(executor, tokens, chunk=7)
        everything = np.arange(NUM_BLOCKS, dtype=np.int32)
        shape = (NUM_BLOCKS, executor.capacity.bytes_per_block)
        executor.import_blocks(everything, np.full(shape, 255, np.uint8))
        assert (run_alone(executor, tokens, chunk=11) == clean).all()


@pytest.mark.parametrize("isa", ISAS)
def test_rejected_rows_leave_no_trace(isa: str) -> None:
    """Drafts that are not accepted are overwritten by the tokens that came instead."""
    rng = np.random.default_rng(7)
    tokens = rng.integers(0, 77, size=60).tolist()
    with executors(isa, "int8", "int8", (2,)) as (executor,):
        clean = run_alone(executor, tokens)
        sequence = Passage(tokens[:20], list(range(4)))
        advance(executor, [(sequence, 20)])
        while sequence.computed < 60:
            accepted, drafted = int(rng.integers(1, 5)), 5
            end = min(60, sequence.computed + accepted)
            good = tokens[sequence.computed : end]
            drafts = rng.integers(0, 77, size=drafted - len(good)).tolist()
            sequence.tokens = tokens[: sequence.computed] + good + drafts
            room = min(len(sequence.tokens), 64) - sequence.computed
            first = sequence.computed
            advance(executor, [(sequence, room)])
            del sequence.logits[end:]
            sequence.computed = end
            assert (np.stack(sequence.logits[first:end]) == clean[first:end]).all()
