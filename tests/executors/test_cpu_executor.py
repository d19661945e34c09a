"""CpuExecutor at its edges: settings, sizes, what it refuses, what it reports."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cpu_models import (
    Passage,
    advance,
    as_int32,
    greedy,
    make_batch,
    memory_model,
    run_alone,
    tensor_shapes,
)

from trimtab import _native
from trimtab.bench.footprint import footprint
from trimtab.checkpoints.base import StoredTensor
from trimtab.config import ExecutorConfig, parse_weights
from trimtab.errors import CheckpointError, ConfigError
from trimtab.executors import cpu
from trimtab.executors.cpu import CpuExecutor
from trimtab.models.spec import LayerSpec

TOKENS = [5, 70, 3, 3, 41, 9, 0, 76, 12, 30]


def make(checkpoint: Any = None, **config: Any) -> CpuExecutor:
    values = {"num_blocks": 8, "threads": 2} | config
    return CpuExecutor(checkpoint or memory_model(), ExecutorConfig(**values))


@pytest.fixture(scope="module")
def shared() -> CpuExecutor:
    return make()


# ---- settings


def test_description_identity_and_capacity() -> None:
    executor = make(weights="int4", group_size=32, kv_cache="int8")
    assert executor.description == f"cpu {executor.isa} int4-g32, KV int8, 2 threads"
    # 2 layers, 3 kv heads, (16 bytes of K and of V and 2 scales) for each of 16 tokens
    assert executor.capacity.bytes_per_block == 2 * 3 * 16 * (16 + 16 + 8)
    assert executor.capacity.num_tokens == 8 * 16
    assert executor.spec == memory_model().spec
    assert executor.weight_bytes > 0


def test_identity_is_of_what_makes_the_bits() -> None:
    base = {"weights": "int4", "group_size": 32, "kv_cache": "int8"}
    identity = make(**base).identity
    assert len(identity) == 64
    assert make(**base, threads=1, num_blocks=3, max_context=99).identity == identity
    others = [{"group_size": 64}, {"weights": "bf16"}, {"kv_cache": "bf16"}]
    others_identities = {make(**(base | other)).identity for other in others}
    assert len({identity, *others_identities}) == 4
    assert make(replace(memory_model(), identity="another"), **base).identity != identity


def test_isa_is_part_of_the_identity_and_can_be_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    identities = set()
    for isa in _native.available_isas():
        monkeypatch.setenv("TRIMTAB_ISA", isa)
        executor = make()
        assert executor.isa == isa
        identities.add(executor.identity)
    assert len(identities) == len(_native.available_isas())


def test_an_unavailable_isa_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIMTAB_ISA", "sse9")
    with pytest.raises(ConfigError, match="sse9"):
        make()
    missing = [isa for isa in ("avx512", "avx2", "neon") if isa not in _native.available_isas()]
    for isa in missing:
        monkeypatch.setenv("TRIMTAB_ISA", isa)
        with pytest.raises(ConfigError, match=f"{isa}.*missing"):
            make()


def test_default_threads_are_the_cores_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "available_cpus", lambda: 3)
    assert make(threads=0).threads == 3
    with pytest.raises(ConfigError, match="at most 1024"):
        make(threads=1025)


def test_max_context() -> None:
    assert make(max_context=100).spec.max_context == 100
    with pytest.raises(ConfigError, match="at most 4096"):
        make(max_context=4097)


def test_cache_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    block = make().capacity.bytes_per_block
    assert make(num_blocks=0, kv_cache_gib=10.5 * block / 2**30).capacity.num_blocks == 10
    # By default 16 sequences of max_context ...
    assert make(num_blocks=0, max_context=40).capacity.num_blocks == 16 * 3
    # ... but no more than a quarter of free memory
    monkeypatch.setattr(cpu, "_check_weights_fit", lambda spec, config: None)
    monkeypatch.setattr(cpu, "available_memory", lambda: 4 * 7 * block + 5)
    assert make(num_blocks=0).capacity.num_blocks == 7
    with pytest.raises(ConfigError, match=r"num_blocks=30: needs .* GiB .*free; set a smaller"):
        make(num_blocks=30)
    with pytest.raises(ConfigError, match="kv_cache_gib=1: needs"):
        make(num_blocks=0, kv_cache_gib=1)
    with pytest.raises(ConfigError, match="kv_cache_gib=1e-09: one block"):
        make(num_blocks=0, kv_cache_gib=1e-9)
    monkeypatch.setattr(cpu, "available_memory", lambda: 100)
    with pytest.raises(ConfigError, match="holds no block"):
        make(num_blocks=0)
    monkeypatch.setattr(cpu, "available_memory", lambda: None)
    assert make(num_blocks=30).capacity.num_blocks == 30
    with pytest.raises(ConfigError, match="the system gives no"):
        make(num_blocks=1 << 33)


@pytest.mark.parametrize("label", ["f32", "bf16", "int8", "int8-g32", "int4-g32"])
def test_weights_that_do_not_fit_are_refused(label: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"hidden_size": 256, "intermediate_size": 512, "vocab_size": 512}  # hardly any padding
    checkpoint = memory_model(**sizes)
    weights, group_size = parse_weights(label)
    config = ExecutorConfig(weights=weights, group_size=group_size, num_blocks=1)
    needed = CpuExecutor(checkpoint, config).weight_bytes
    size = footprint(checkpoint.spec, config)
    held = sum(size.part_bytes.values()) - size.part_bytes["norms"]
    assert 0.98 * held <= needed <= 1.01 * held  # scales of rows are not among them
    monkeypatch.setattr(cpu, "available_memory", lambda: needed - 1)
    assert config.weights_label == label
    with pytest.raises(ConfigError, match=f"weights={label}: needs .* GiB of memory are free; ch"):
        CpuExecutor(checkpoint, config)


def test_shapes_that_cannot_run() -> None:
    with pytest.raises(ConfigError, match=r"head_dim=24.*multiple of 16"):
        make(memory_model(head_dim=24))
    with pytest.raises(ConfigError, match="num_heads=4 is no multiple of num_kv_heads=3"):
        make(memory_model(num_heads=4))


# ---- weights


@pytest.mark.parametrize("weights", ["f32", "bf16", "int8", "int4"])
def test_stored_dtypes_agree(weights: str) -> None:
    """Weights that bf16 and f16 can both hold give the same bits from every stored dtype."""
    rng = np.random.default_rng(0)
    checkpoint = memory_model()
    made: dict[str, dict[str, StoredTensor]] = {"f32": {}, "f16": {}, "bf16": {}}
    for name, shape in tensor_shapes(checkpoint.spec).items():
        values = (rng.integers(-64, 65, size=shape) / 64).astype(np.float32)
        made["f32"][name] = StoredTensor(values, "f32")
        made["f16"][name] = StoredTensor(values.astype(np.float16), "f16")
        bits = (values.view(np.uint32) >> 16).astype(np.uint16)
        made["bf16"][name] = StoredTensor(bits, "bf16")
    logits = [
        run_alone(make(replace(checkpoint, tensors=tensors), weights=weights), TOKENS)
        for tensors in made.values()
    ]
    assert (logits[0] == logits[1]).all()
    assert (logits[0] == logits[2]).all()


def test_f16_denormals_and_bf16_rounding() -> None:
    values = np.array([[6e-8, -3e-5, 65504.0, 1.0]], np.float16)
    shape = {"vocab_size": 1, "hidden_size": 4, "post_norms": False}
    checkpoint = memory_model(**shape)
    checkpoint.tensors["embed"] = StoredTensor(values, "f16")
    wide = replace(checkpoint, tensors=dict(checkpoint.tensors))
    wide.tensors["embed"] = StoredTensor(values.astype(np.float32), "f32")
    for weights in ("f32", "bf16"):
        ours = run_alone(make(checkpoint, weights=weights), [0])
        assert np.isfinite(ours).all()
        assert (ours == run_alone(make(wide, weights=weights), [0])).all()


def test_missing_and_misshapen_tensors() -> None:
    checkpoint = memory_model()
    del checkpoint.tensors["layers.1.post_mlp_norm"]
    with pytest.raises(CheckpointError, match=r"layers\.1\.post_mlp_norm was never loaded"):
        make(checkpoint)
    checkpoint = memory_model(qkv_bias=False)
    checkpoint.tensors["layers.0.v"] = StoredTensor(np.zeros((47, 40), np.float32), "f32")
    with pytest.raises(CheckpointError, match=r"qkv has shape \[47, 40\], not \[48, 40\]"):
        make(checkpoint)


# ---- steps


def test_logprobs_targets_and_top(shared: CpuExecutor) -> None:
    passage = Passage(TOKENS, [0])
    rows = as_int32([1, 4, 9])
    sampling = replace(greedy(3), num_logprobs=as_int32([-1, 0, 4]))
    batch = make_batch(
        [(passage, 10)], logit_rows=rows, sampling=sampling, targets=as_int32([3, -1, 76])
    )
    result = shared.execute(batch)
    assert result.logits is not None
    assert result.target_logprobs is not None
    assert result.logits.shape == (3, 77)
    wide = result.logits.astype(np.float64)
    logprobs = wide - np.log(np.exp(wide).sum(axis=1, keepdims=True))
    best = wide.argmax(axis=1)
    assert result.tokens.tolist() == best.tolist()
    expected = [0, logprobs[1, best[1]], logprobs[2, best[2]]]
    np.testing.assert_allclose(result.logprobs, expected, atol=1e-5)
    assert result.top_ids.shape == (3, 4)
    assert result.top_ids[2].tolist() == np.argsort(-wide[2], kind="stable")[:4].tolist()
    assert (result.top_ids[:2] == -1).all()
    np.testing.assert_allclose(result.target_logprobs[[0, 2]], logprobs[[0, 2], [3, 76]], atol=1e-5)
    plain = shared.execute(replace(batch, targets=None, return_logits=False))
    assert plain.logits is None
    assert plain.target_logprobs is None
    assert (plain.tokens == result.tokens).all()
    nothing = shared.execute(make_batch([(passage, 10)], logit_rows=rows[:0], sampling=greedy(0)))
    assert nothing.tokens.shape == (0,)


def test_many_logit_rows_of_a_large_vocabulary_come_in_chunks() -> None:
    """More logits than the decoder holds at once: each row as if it were alone."""
    checkpoint = memory_model(vocab_size=120_001, hidden_size=16, intermediate_size=16)
    executor = make(checkpoint, num_blocks=20)
    tokens = np.random.default_rng(0).integers(0, 120_001, size=150).tolist()
    whole = run_alone(executor, tokens)
    assert (run_alone(executor, tokens, chunk=40)[[0, 139, 149]] == whole[[0, 139, 149]]).all()


@pytest.mark.parametrize("kv_cache", ["f32", "bf16", "int8"])
def test_logits_that_are_not_finite_fail_no_other_row(kv_cache: str) -> None:
    """Not those of other sequences, nor the earlier ones of the same sequence and block."""
    checkpoint = memory_model()
    embed = checkpoint.tensors["embed"].data.copy()
    embed[33] = np.inf
    checkpoint.tensors["embed"] = StoredTensor(embed, "f32")
    checkpoint = replace(checkpoint, spec=replace(checkpoint.spec, tied_embeddings=False))
    checkpoint.tensors["lm_head"] = memory_model().tensors["embed"]
    executor = make(checkpoint, kv_cache=kv_cache)
    good, bad = Passage(TOKENS, [0]), Passage([1, 33, 2], [1])
    result = advance(executor, [(good, 10), (bad, 3)])
    assert (result.tokens[:11] >= 0).all()
    assert (result.tokens[11:] == -1).all()
    assert (np.stack(good.logits) == run_alone(executor, TOKENS)).all()
    assert (bad.logits[0] == run_alone(executor, [1])[0]).all()


def test_progress_grows_with_the_parts_of_a_step_and_rests_between_steps() -> None:
    """A watchdog reads it from another thread, so that a long step is no hung one."""
    executor = make()
    before = executor.progress
    seen = set()
    stepping = threading.Thread(target=run_alone, args=(executor, TOKENS * 10))
    stepping.start()
    while stepping.is_alive():
        seen.add(executor.progress)
    stepping.join()
    after = executor.progress
    assert after - before > 4 * executor.spec.num_layers
    assert all(before <= one <= after for one in seen)
    assert executor.progress == after
    executor.close()
    assert executor.progress == 0


BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "token": ({"token_ids": as_int32([5, 77, 3])}, r"token_ids\[1\]=77"),
    "negative token": ({"token_ids": as_int32([5, -1, 3])}, r"token_ids\[1\]=-1"),
    "dtype": ({"token_ids": np.array([5, 1, 3])}, "token_ids: must be a contiguous array"),
    "strided": ({"token_ids": np.zeros(6, np.int32)[::2]}, "token_ids: must be a contiguous"),
    "too few positions": ({"positions": as_int32([0, 1])}, "positions: one for each"),
    "gap": ({"positions": as_int32([0, 1, 3])}, "not consecutive at row 2"),
    "negative position": ({"positions": as_int32([-1, 0, 1])}, "position -1"),
    "short table": ({"positions": as_int32([15, 16, 17])}, "1 blocks are too few for 18"),
    "far position": ({"positions": as_int32([2**31 - 3, 2**31 - 2, 2**31 - 1])}, "too few"),
    "no such block": ({"block_ids": as_int32([8])}, "block id 8 is outside"),
    "negative block": ({"block_ids": as_int32([-1])}, "block id -1 is outside"),
    "seq_starts": ({"seq_starts": as_int32([0, 2])}, "seq_starts ends at 2, not at 3"),
    "first start": ({"seq_starts": as_int32([1, 3])}, r"seq_starts\[0\] must be 0"),
    "empty sequence": (
        {"seq_starts": as_int32([0, 0, 3]), "block_starts": as_int32([0, 0, 1])},
        "at least one entry",
    ),
    "block_starts": ({"block_starts": as_int32([0, 2])}, "block_starts ends at 2"),
    "starts differ": ({"block_starts": as_int32([0])}, "block_starts: as long as"),
    "logit rows": ({"logit_rows": as_int32([0, 1, 3])}, r"logit_rows\[2\]=3"),
    "descending": ({"logit_rows": as_int32([0, 2, 1])}, r"logit_rows\[2\]=1"),
    "target": ({"targets": as_int32([0, 77, 1])}, r"targets\[1\]=77"),
    "too few targets": ({"targets": as_int32([0])}, "targets: one for each"),
    "sampling": ({"sampling": greedy(2)}, "sampling"),
    "no rows": (
        {
            "token_ids": as_int32([]),
            "positions": as_int32([]),
            "seq_starts": as_int32([0]),
            "block_starts": as_int32([0]),
            "block_ids": as_int32([]),
            "logit_rows": as_int32([]),
            "sampling": greedy(0),
        },
        "at least one row",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_batches_are_refused_before_anything_happens(case: str, shared: CpuExecutor) -> None:
    everything = np.arange(8, dtype=np.int32)
    before = shared.export_blocks(everything)
    changes, message = BROKEN[case]
    with pytest.raises(ValueError, match=message):
        shared.execute(make_batch([(Passage(TOKENS, [0]), 3)], **changes))
    assert (shared.export_blocks(everything) == before).all()


def test_two_writers_of_one_block_are_refused_and_readers_are_not(shared: CpuExecutor) -> None:
    tokens = (TOKENS * 3)[:20]
    first = Passage(tokens, [3, 4])
    advance(shared, [(first, 16)])
    second = Passage([*tokens[:16], 1, 2], [3, 5], computed=16)
    with pytest.raises(ValueError, match="block 4 would be written from two places"):
        advance(shared, [(first, 2), (Passage(second.tokens, [3, 4], computed=16), 2)])
    advance(shared, [(first, 4), (second, 2)])  # block 3 is only read
    assert (np.stack(second.logits) == run_alone(shared, second.tokens)[16:]).all()


def test_blocks_are_checked(shared: CpuExecutor) -> None:
    with pytest.raises(ValueError, match="block id 8"):
        shared.copy_blocks(as_int32([0]), as_int32([8]))
    with pytest.raises(ValueError, match="differ in length"):
        shared.copy_blocks(as_int32([0, 1]), as_int32([2]))
    with pytest.raises(ValueError, match="block id -1"):
        shared.export_blocks(as_int32([-1]))
    with pytest.raises(ValueError, match="bytes_per_block"):
        shared.import_blocks(as_int32([0]), np.zeros((1, 3), np.uint8))
    data = shared.export_blocks(as_int32([3, 3, 1]))
    assert data.shape == (3, shared.capacity.bytes_per_block)
    assert (data[0] == data[1]).all()


def test_close() -> None:
    executor = make()
    executor.close()
    executor.close()
    with pytest.raises(RuntimeError, match="closed"):
        run_alone(executor, TOKENS)


# ---- threads


def test_more_threads_than_cores_and_than_work() -> None:
    expected = run_alone(make(threads=1), TOKENS, chunk=3)
    assert (run_alone(make(threads=23), TOKENS, chunk=3) == expected).all()


def test_an_idle_pool_burns_no_cpu() -> None:
    """Eight threads that waited by spinning would burn whole cores of the half second."""
    executor = make(threads=8)
    run_alone(executor, TOKENS)
    time.sleep(0.1)
    before = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - before < 0.1
    executor.close()


def test_other_python_threads_run_during_a_step() -> None:
    executor = make(num_blocks=128, threads=1)
    tokens = np.random.default_rng(0).integers(0, 77, size=2000).tolist()
    ticks, done = [0], threading.Event()

    def tick() -> None:
        while not done.is_set():
            ticks[0] += 1
            time.sleep(0.0005)

    ticker = threading.Thread(target=tick)
    ticker.start()
    batch = make_batch([(Passage(tokens, list(range(125))), 2000)], return_logits=False)
    before = ticks[0]
    executor.execute(batch)
    during = ticks[0] - before
    done.set()
    ticker.join()
    assert during > 1  # a step that held the GIL would let at most the tick under way finish


def test_memory_of_a_checkpoint_is_not_kept() -> None:
    """Weights are copied: what the checkpoint mapped may go away or change."""
    checkpoint = memory_model()
    executor = make(checkpoint, weights="f32")
    before = run_alone(executor, TOKENS)
    for tensor in checkpoint.tensors.values():
        tensor.data[...] = np.nan
    assert (run_alone(executor, TOKENS) == before).all()
    assert Path("memory") == checkpoint.path


def test_a_large_kv_cache_takes_no_memory_for_what_is_not_in_it() -> None:
    def anonymous_bytes() -> int:
        lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
        (kib,) = (line.split()[1] for line in lines if line.startswith("Anonymous:"))
        return int(kib) << 10

    executor = make(memory_model(layers=(LayerSpec(),) * 40), num_blocks=4000)
    assert executor.capacity.num_blocks * executor.capacity.bytes_per_block > 400 << 20
    before = anonymous_bytes()
    run_alone(executor, TOKENS)
    assert anonymous_bytes() - before < 16 << 20  # a huge page for the cache, and scratch
