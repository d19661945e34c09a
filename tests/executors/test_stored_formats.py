"""Checkpoints of integers on the CPU executor: the integers that are stored are multiplied."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cpu_models import (
    MemoryCheckpoint,
    Passage,
    advance,
    as_floats,
    memory_model,
    run_alone,
    tensor_shapes,
)
from packed_checkpoints import FileCheckpoint, checkpoint_at
from stored_matrices import KIND_IDS, KINDS, Kind, stored_matrix

from trimtab.config import ExecutorConfig
from trimtab.errors import CheckpointError
from trimtab.executors import weights
from trimtab.executors.cpu import CpuExecutor
from trimtab.executors.formats import choose_formats
from trimtab.numerics.stored import Fp8Matrix, GroupedMatrix

TOKENS = [int(token) for token in np.random.default_rng(7).integers(0, 77, 40)]
SIZES = {"hidden_size": 256, "intermediate_size": 256, "num_heads": 16, "num_kv_heads": 4}
MATRICES = ("q", "k", "v", "o", "gate", "up", "down")
Q4, Q6, AWQ = (KINDS[KIND_IDS.index(name)] for name in ("Q4_K", "Q6_K", "AWQ"))


def integers(kind: Kind, shape: tuple[int, ...], seed: int) -> GroupedMatrix:
    """Of about the size that weights have, so that activations stay where they belong."""
    rows, cols = shape
    steps = (1 << (kind.bits - 1)) * (32 if kind.scale_type == "super" else 1)
    return stored_matrix(kind, rows, cols, seed, spread=1 / (steps * np.sqrt(cols)))


def model(kinds: dict[str, Kind], **changes: Any) -> MemoryCheckpoint:
    """`kinds` by the end of a canonical name."""
    checkpoint = memory_model(**(SIZES | changes))
    shapes = tensor_shapes(checkpoint.spec)
    for seed, name in enumerate(checkpoint.tensors):
        kind = kinds.get(name.split(".")[-1])
        if kind is not None:
            checkpoint.tensors[name] = integers(kind, shapes[name], seed)
    return checkpoint


def floats(checkpoint: MemoryCheckpoint) -> MemoryCheckpoint:
    tensors = {name: as_floats(stored) for name, stored in checkpoint.tensors.items()}
    return replace(checkpoint, tensors=dict(tensors))


def logits(checkpoint: Any, chunk: int = 1 << 30, **config: Any) -> np.ndarray:
    settings: dict[str, Any] = {"num_blocks": 16, "threads": 2, "kv_cache": "f32"}
    executor = CpuExecutor(checkpoint, ExecutorConfig(**(settings | config)))
    try:
        return run_alone(executor, TOKENS, chunk)
    finally:
        executor.close()


def distance(found: np.ndarray, exact: np.ndarray) -> float:
    return float(np.sqrt(((found - exact) ** 2).mean() / exact.var()))


@pytest.mark.parametrize("kind", KINDS, ids=KIND_IDS)
def test_every_kind_is_near_its_dequantized_model(kind: Kind) -> None:
    stored = model(dict.fromkeys(MATRICES, kind))
    assert distance(logits(stored), logits(floats(stored), weights="f32")) < 0.05
    assert np.array_equal(logits(stored, chunk=7), logits(stored))


def test_projections_of_different_formats_are_matrices_of_their_own() -> None:
    kinds = dict.fromkeys(MATRICES, Q4) | {"v": Q6, "up": AWQ, "down": Q6}
    stored = model(kinds)
    names = [slot.name for slot in choose_formats(stored, ExecutorConfig()).layers[0]]
    assert names == ["q", "k", "v", "o", "gate", "up", "down"]
    assert distance(logits(stored), logits(floats(stored), weights="f32")) < 0.05
    assert np.array_equal(logits(stored, chunk=5), logits(stored))


def test_apart_or_together_a_matrix_gives_the_same() -> None:
    """q, k, v and gate, up in one matrix each, and the same with one that differs in name only."""
    together = model(dict.fromkeys(MATRICES, AWQ))
    apart = replace(together, tensors=dict(together.tensors))
    for layer in range(2):
        for name in ("v", "up"):
            matrix = together.tensors[f"layers.{layer}.{name}"]
            assert isinstance(matrix, GroupedMatrix)
            columns = np.arange(matrix.shape[1], dtype=np.int32)
            other = replace(matrix, columns=columns, order="as they are")
            apart.tensors[f"layers.{layer}.{name}"] = other
    assert len(choose_formats(apart, ExecutorConfig()).layers[0]) == 7
    assert np.array_equal(logits(apart), logits(together))


def test_columns_out_of_order() -> None:
    ordered = model(dict.fromkeys(MATRICES, AWQ))
    turned = replace(ordered, tensors=dict(ordered.tensors))
    for name, matrix in ordered.tensors.items():
        if isinstance(matrix, GroupedMatrix):
            columns = np.random.default_rng(1).permutation(matrix.shape[1]).astype(np.int32)
            turned.tensors[name] = replace(matrix, columns=columns, order=str(matrix.shape[1]))
    assert distance(logits(turned), logits(floats(turned), weights="f32")) < 0.05
    assert distance(logits(turned), logits(ordered)) > 0.5


@pytest.mark.parametrize("tied", [True, False])
def test_embeddings_and_head_of_integers(tied: bool) -> None:
    stored = model({"embed": Q6, "lm_head": Q4}, tied_embeddings=tied, embedding_scale=1.5)
    formats = choose_formats(stored, ExecutorConfig(weights="f32"))
    assert formats.embedding == ("head" if tied else "matrix")
    exact = logits(floats(stored), weights="f32")
    assert distance(logits(stored, weights="f32"), exact) < 0.05
    # what is only looked up is exact
    only_looked_up = replace(stored, tensors=dict(stored.tensors))
    if not tied:
        head = stored.tensors["lm_head"]
        only_looked_up.tensors["lm_head"] = as_floats(head)
        assert np.array_equal(logits(only_looked_up, weights="f32"), exact)


def test_float8_is_held_exactly() -> None:
    stored = memory_model(**SIZES)
    random = np.random.default_rng(0)
    for name, shape in tensor_shapes(stored.spec).items():
        if name.split(".")[-1] in MATRICES:
            bits = random.integers(0, 120, shape) + 128 * random.integers(0, 2, shape)
            blocks = (-(-shape[0] // 128), -(-shape[1] // 128))
            scales = np.full(blocks, 2.0**-10, np.float32)
            stored.tensors[name] = Fp8Matrix(bits.astype(np.uint8), scales, 128, 128)
    assert np.array_equal(logits(stored, weights="f32"), logits(floats(stored), weights="f32"))


def test_batches_and_threads_change_nothing() -> None:
    stored = model(dict.fromkeys(MATRICES, Q4) | {"v": Q6, "embed": Q6})
    alone = logits(stored, threads=1)
    executor = CpuExecutor(stored, ExecutorConfig(num_blocks=32, threads=3, kv_cache="f32"))
    passages = [Passage(TOKENS, [3 * i, 3 * i + 1, 3 * i + 2]) for i in range(5)]
    steps = np.random.default_rng(5)
    while any(passage.computed < len(TOKENS) for passage in passages):
        pieces = [
            (passage, int(min(steps.integers(1, 9), len(TOKENS) - passage.computed)))
            for passage in passages
            if passage.computed < len(TOKENS)
        ]
        advance(executor, pieces)
    executor.close()
    for passage in passages:
        assert np.array_equal(np.stack(passage.logits), alone)


def test_a_packed_model_is_mapped(
    cache: Path, seed: Path, settled: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = checkpoint_at(seed, **SIZES)
    stored = model(dict.fromkeys(MATRICES, AWQ) | {"v": Q6, "embed": Q4})
    turned = {}
    for name, matrix in stored.tensors.items():
        if name.endswith("down") and isinstance(matrix, GroupedMatrix):
            columns = np.arange(matrix.shape[1], dtype=np.int32)[::-1].copy()
            matrix = replace(matrix, columns=columns, order="backwards")
        turned[name] = matrix
    checkpoint = FileCheckpoint(file.spec, turned, weight_files=file.weight_files)
    first = logits(checkpoint)
    assert list(cache.glob("*.packed"))
    monkeypatch.setattr(weights, "load_weights", None)
    assert np.array_equal(logits(checkpoint), first)


def test_what_the_kernels_do_not_take() -> None:
    def refused(kind: Kind, message: str) -> None:
        with pytest.raises(CheckpointError, match=message):
            logits(model({"down": kind}))

    refused(Kind("", 4, 24), r"layers.0.down: groups of 24 columns: the kernels need a multiple")
    refused(Kind("", 4, 32, "bf16", "float"), "offsets beside scales of bf16")
    broken = model({"down": AWQ})
    matrix = broken.tensors["layers.1.down"]
    assert isinstance(matrix, GroupedMatrix)
    scales = matrix.scales + np.float32(1e-7)
    broken.tensors["layers.1.down"] = replace(matrix, scales=scales)
    with pytest.raises(CheckpointError, match="not of the type"):
        logits(broken)
