"""Packed models on disk: a second start gives the same bits, and only the same model is one."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cpu_models import memory_model, run_alone, tensor_shapes
from packed_checkpoints import (
    FORMATS,
    TOKENS,
    checkpoint_at,
    config,
    logits,
    packed_models,
    write_seed,
)

from trimtab import _native
from trimtab.builtin import draft_path
from trimtab.checkpoints import open_checkpoint
from trimtab.checkpoints.base import StoredTensor
from trimtab.executors import content_digest, cpu, packed_cache
from trimtab.executors.cpu import CpuExecutor
from trimtab.executors.formats import choose_formats
from trimtab.executors.packed_cache import PackedCache, WeightDigests
from trimtab.executors.weights import load_weights

# ---- hits


@pytest.mark.parametrize("weights", FORMATS)
def test_a_second_start_reads_no_weights_and_gives_the_same_bits(
    weights: str, cache: Path, seed: Path, settled: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = checkpoint_at(seed), checkpoint_at(seed)
    made = logits(first, config(weights))
    assert first.reads > 0
    (model,) = packed_models(cache)
    assert model.stat().st_mode & 0o077 == 0
    assert not list(cache.glob("*.tmp"))

    def refuse(*arguments: Any) -> bytes:
        raise AssertionError("the files are known: nothing is to be read")

    monkeypatch.setattr(packed_cache, "digest_file", refuse)
    assert (logits(second, config(weights)) == made).all()
    assert second.reads == 0
    monkeypatch.setenv("TRIMTAB_PACKED_CACHE", "off")
    assert (logits(checkpoint_at(seed), config(weights)) == made).all()


@pytest.mark.parametrize("weights", FORMATS)
def test_one_file_serves_every_kernel_path(
    weights: str, cache: Path, seed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits(checkpoint_at(seed), config(weights))
    for isa in _native.available_isas():
        monkeypatch.setenv("TRIMTAB_ISA", isa)
        mapped = checkpoint_at(seed)
        made = logits(mapped, config(weights))
        assert mapped.reads == 0
        assert (made == logits(checkpoint_at(seed).map(lambda name, x: x), config(weights))).all()


def test_a_real_checkpoint(cache: Path, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(draft_path(), tmp_path / "draft"))
    made = logits(open_checkpoint(directory))
    (model,) = packed_models(cache)
    before = model.stat().st_ino
    # Moved, its files touched: the content is the same.
    moved = directory.rename(tmp_path / "moved")
    os.utime(moved / "model.safetensors", (0, 0))
    assert (logits(open_checkpoint(moved)) == made).all()
    assert [path.stat().st_ino for path in packed_models(cache)] == [before]


def test_the_mapped_model_is_held_until_the_executor_closes(cache: Path, seed: Path) -> None:
    logits(checkpoint_at(seed))
    (model,) = packed_models(cache)
    executor = CpuExecutor(checkpoint_at(seed), config())
    assert not packed_cache._remove_unheld(model)
    executor.close()
    assert packed_cache._remove_unheld(model)
    assert not model.exists()


def test_a_removed_model_stays_mapped(cache: Path, seed: Path) -> None:
    made = logits(checkpoint_at(seed))
    executor = CpuExecutor(checkpoint_at(seed), config())
    shutil.rmtree(cache)
    assert (run_alone(executor, TOKENS) == made).all()


def test_the_kv_cache_leaves_room_for_mapped_weights(
    cache: Path, seed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "available_memory", lambda: 1 << 22)
    settings = config(num_blocks=0)
    packed = CpuExecutor(checkpoint_at(seed), settings)
    mapped = CpuExecutor(checkpoint_at(seed), settings)
    block = packed.capacity.bytes_per_block
    assert packed.capacity.num_blocks == (1 << 22) // 4 // block
    free = (1 << 22) - mapped.weight_bytes
    assert mapped.capacity.num_blocks == free // 4 // block


# ---- what a model is


def test_changed_weights_are_a_miss_whatever_their_time_says(
    cache: Path, seed: Path, settled: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = seed.stat()
    old = logits(checkpoint_at(seed))
    write_seed(seed, 2)
    os.utime(seed, ns=(times.st_atime_ns, times.st_mtime_ns))
    changed = checkpoint_at(seed)
    new = logits(changed)
    assert changed.reads > 0
    assert (new != old).any()
    assert len(packed_models(cache)) == 2
    monkeypatch.setenv("TRIMTAB_PACKED_CACHE", "off")
    assert (new == logits(checkpoint_at(seed))).all()


def test_other_formats_and_configs_are_other_models(cache: Path, seed: Path) -> None:
    first = checkpoint_at(seed)
    logits(first)
    for settings in (config("int8"), config("int4-g64")):
        start = checkpoint_at(seed)
        logits(start, settings)
        assert start.reads > 0
    for other in (
        replace(checkpoint_at(seed), identity="another"),
        checkpoint_at(seed, norm_weight_offset=1.0),
    ):
        logits(other)
        assert other.reads > 0
    # What does not change the packed bytes does not pack again.
    same = checkpoint_at(seed)
    logits(same, config(kv_cache="int8", threads=1, num_blocks=9, max_context=99))
    assert same.reads == 0
    assert len(packed_models(cache)) == 5


def test_weights_that_change_while_they_are_packed_are_not_kept(cache: Path, seed: Path) -> None:
    start = checkpoint_at(seed)
    start.on_read = lambda: write_seed(seed, 3) if seed.read_text() == "0001" else None
    logits(start)
    assert packed_models(cache) == []
    # Nor those that have changed before the digest was taken.
    stale = replace(start, on_read=lambda: None)
    logits(stale)
    assert packed_models(cache) == []


def test_a_fresh_file_is_digested_again_after_packing(cache: Path, seed: Path) -> None:
    """Two writes within one tick of the clock look like one: then only the content can tell."""
    files = checkpoint_at(seed).weight_files
    keeper = PackedCache(cache, 1 << 30, 1)
    found = keeper.weight_digests(files)
    assert found is not None
    assert found.fresh == (True,)
    assert keeper.confirm(files, found)
    assert not keeper.confirm(files, WeightDigests((bytes(32),), (True,)))


PACKED_DIGESTS = {
    "f32": "dd0fab9ad23058b7",
    "bf16": "06e05d76462d3170",
    "int8": "35326170453c51c4",
    "int8-g32": "997e16145848a170",
    "int4-g32": "11533798c0d2b171",
}


@pytest.mark.parametrize("isa", _native.available_isas())
@pytest.mark.parametrize("weights", FORMATS)
def test_the_packed_bytes_belong_to_their_revision(weights: str, isa: str) -> None:
    """If this fails, packed files of earlier builds would be read wrongly: raise kPackedRevision
    in native/core/packed_model.h, and give the new digests here."""
    assert _native.PACKED_REVISION == 4
    checkpoint = memory_model()
    numbers = np.arange(1 << 16, dtype=np.int64)
    for name, shape in tensor_shapes(checkpoint.spec).items():
        count = int(np.prod(shape))
        values = (numbers[:count] * 7919 + len(name) * 31) % 2003 - 1001
        data = (values / 1024).astype(np.float32).reshape(shape)
        checkpoint.tensors[name] = StoredTensor(data, "f32")
    formats = choose_formats(checkpoint, config(weights))
    native_shape = cpu.native_shape(checkpoint.spec, config(weights), formats)
    builder = _native.ModelBuilder(native_shape, isa, _native.ThreadPool(2))
    load_weights(builder, checkpoint, formats)
    parts = [builder.packed_arena().data, memoryview(builder.packed_vectors())]
    digest = content_digest.digest_memory(parts, 1)
    assert digest.hex()[:16] == PACKED_DIGESTS[weights]
