"""The schedule never changes the answer of the torch executor: logits with ==."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from cpu_models import BLOCK, MemoryCheckpoint, Passage, advance, as_int32, memory_model, run_alone

from trimtab.config import ExecutorConfig
from trimtab.executors.gpu.executor import TorchExecutor
from trimtab.executors.gpu.reference import ReferenceOps

NUM_BLOCKS = 40
FORMATS = [("f32", "f32"), ("bf16", "bf16"), ("bf16", "int8"), ("fp8", "fp8")]


def executor(
    checkpoint: MemoryCheckpoint, weights: str, kv_cache: str, fill_up: bool = False
) -> TorchExecutor:
    config: Any = {"weights": weights, "kv_cache": kv_cache, "num_blocks": NUM_BLOCKS}
    return TorchExecutor(checkpoint, ExecutorConfig(device="torch-cpu", **config), fill_up=fill_up)


def play(workers: list[TorchExecutor], prompts: list[list[int]], seed: int) -> list[np.ndarray]:
    """In random company, chunks and blocks; moved to other blocks and executors on the way."""
    dice = random.Random(seed)
    free = dice.sample(range(NUM_BLOCKS), NUM_BLOCKS)
    passages = [
        Passage(prompt, [free.pop() for _ in range(-(-len(prompt) // BLOCK))]) for prompt in prompts
    ]
    home = 0
    while live := [p for p in passages if p.computed < len(p.tokens)]:
        pieces = []
        for passage in dice.sample(live, dice.randint(1, len(live))):
            left = len(passage.tokens) - passage.computed
            pieces.append((passage, dice.choice([1, min(left, 3), left, -(-left // 2)])))
        advance(workers[home], pieces)
        mover = dice.choice(live)
        fresh = free[: len(mover.blocks)]
        if len(fresh) == len(mover.blocks) and dice.random() < 0.5:
            workers[home].copy_blocks(as_int32(mover.blocks), as_int32(fresh))
            free, mover.blocks = free[len(fresh) :] + mover.blocks, fresh
        if dice.random() < 0.3:
            used = as_int32([block for passage in live for block in passage.blocks])
            data = workers[home].export_blocks(used)
            assert data.shape == (len(used), workers[home].capacity.bytes_per_block)
            home = 1 - home
            workers[home].import_blocks(used, data)
    return [np.stack(passage.logits) for passage in passages]


@pytest.mark.parametrize(("weights", "kv_cache"), FORMATS)
def test_any_schedule_gives_the_same_logits(weights: str, kv_cache: str) -> None:
    """One of the executors fills small steps up, as if they were captured."""
    workers = [executor(memory_model(1), weights, kv_cache, fill_up) for fill_up in (False, True)]
    for seed in range(2):
        rng = np.random.default_rng(seed)
        prompts = [rng.integers(0, 77, size=n).tolist() for n in (1, 2, *rng.integers(3, 60, 3))]
        expected = [run_alone(workers[0], prompt) for prompt in prompts]
        assert all(np.isfinite(logits).all() for logits in expected)
        for logits, alone in zip(play(workers, prompts, seed), expected, strict=True):
            assert (logits == alone).all()


def test_decode_over_partition_borders_gives_the_bits_of_prefill() -> None:
    tokens = np.random.default_rng(5).integers(0, 77, size=520).tolist()
    one = executor(memory_model(1, num_heads=2, num_kv_heads=1), "bf16", "bf16")
    whole = run_alone(one, tokens)
    passage = Passage(tokens, list(range(33)), computed=508)
    while passage.computed < 520:
        advance(one, [(passage, 1)])
        assert (passage.logits[-1] == whole[passage.computed - 1]).all()


@pytest.mark.parametrize("kv_cache", ["f32", "bf16", "int8", "fp8"])
def test_what_a_block_held_before_does_not_matter(kv_cache: str) -> None:
    """Every byte of the cache 0xff, which is NaN in every float format."""
    tokens = np.random.default_rng(6).integers(0, 77, size=45).tolist()
    one = executor(memory_model(1), "bf16", kv_cache)
    clean = run_alone(one, tokens, chunk=7)
    everything = np.arange(NUM_BLOCKS, dtype=np.int32)
    shape = (NUM_BLOCKS, one.capacity.bytes_per_block)
    one.import_blocks(everything, np.full(shape, 255, np.uint8))
    assert (run_alone(one, tokens, chunk=11) == clean).all()


@pytest.mark.parametrize("fill_up", [False, True])
def test_attention_is_told_how_many_partitions_the_contexts_reach_into(fill_up: bool) -> None:
    """It bounds its scratch; steps that share a captured graph have no such number."""
    seen: list[int] = []

    class Listening(ReferenceOps):
        def attention(self, *arguments: Any) -> Any:
            seen.append(arguments[-1])
            return super().attention(*arguments)

    config = ExecutorConfig(device="torch-cpu", num_blocks=NUM_BLOCKS)
    one = TorchExecutor(memory_model(1), config, Listening(), fill_up=fill_up)
    lengths = (257, 256, 3)
    passages = [Passage([1] * n, list(range(17)), computed=n - 2) for n in lengths]
    advance(one, [(passage, 2) for passage in passages])
    assert seen == [0 if fill_up else 2 + 1 + 1] * 2


def test_blocks_that_do_not_exist_are_refused() -> None:
    one = executor(memory_model(1), "f32", "f32")
    data = one.export_blocks(as_int32([1]))
    with pytest.raises(ValueError, match="block_ids"):
        one.export_blocks(as_int32([NUM_BLOCKS]))
    with pytest.raises(ValueError, match="block_ids"):
        one.copy_blocks(as_int32([0]), as_int32([-1]))
    with pytest.raises(ValueError, match="destinations"):
        one.copy_blocks(as_int32([0]), as_int32([1, 2]))
    with pytest.raises(ValueError, match="uint8"):
        one.import_blocks(as_int32([1]), data[:, 1:])


@pytest.mark.parametrize("fill_up", [False, True])
def test_tokens_of_the_step_before_need_not_come_to_the_host(fill_up: bool) -> None:
    """A chain of steps queued at once, each from the tokens that the one before chose."""
    one = executor(memory_model(1), "f32", "f32")
    first, second = Passage(list(range(9)), [3, 7]), Passage([5], [1])
    expected: list[list[int]] = [[], []]
    for _ in range(4):
        tokens = advance(one, [(first, 9 if first.computed == 0 else 1), (second, 1)]).tokens
        for passage, token, chosen in zip(
            (first, second), (tokens[-2], tokens[-1]), expected, strict=True
        ):
            passage.tokens.append(int(token))
            chosen.append(int(token))
    again = executor(memory_model(1), "f32", "f32", fill_up)
    start, short = Passage(list(range(9)), [3, 7]), Passage([5], [1])
    pending = [again.execute_async(step([(start, 9), (short, 1)], [8, 9], None))]
    for _ in range(3):
        for passage in (start, short):
            passage.tokens.append(0)  # not looked at
        pieces = [(start, 1), (short, 1)]
        pending.append(again.execute_async(step(pieces, [0, 1], as_int32([0, 1]))))
    found = [one.result().tokens.tolist() for one in pending]
    assert found == [list(pair) for pair in zip(*expected, strict=True)]


def step(pieces: list[tuple[Passage, int]], logit_rows: list[int], chosen_before: Any) -> Any:
    from cpu_models import greedy, make_batch

    batch = make_batch(
        pieces,
        logit_rows=as_int32(logit_rows),
        sampling=greedy(len(logit_rows)),
        return_logits=False,
        chosen_before=chosen_before,
    )
    for passage, count in pieces:
        passage.computed += count
    return batch
