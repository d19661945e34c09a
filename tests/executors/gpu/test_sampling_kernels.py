"""The sampling kernels give the tokens of the native sampler, from the same logits."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from cpu_models import as_int32
from kernel_switch import DEVICE, floats_overflow  # noqa: F401
from sampler_reference import make_batch

from trimtab.executors.base import SamplingBatch, StepBatch
from trimtab.executors.gpu import sampling
from trimtab.executors.gpu.ops import DeviceSampling
from trimtab.executors.gpu.sampling_batch import device_sampling, sampling_arrays, sampling_rows
from trimtab.executors.gpu.staging import Staging

native = pytest.importorskip("trimtab._native")
test_sampler = pytest.importorskip("test_sampler")
pytestmark = pytest.mark.usefixtures("floats_overflow")


def on_device(batch: SamplingBatch, targets: Any = None) -> DeviceSampling:
    empty = as_int32([])
    step = StepBatch(empty, empty, empty, empty, empty, empty, batch, targets=targets)
    views, _ = Staging(1 << 22, torch.device(DEVICE)).upload(sampling_arrays(step))
    return device_sampling(step, views)


def check(logits: np.ndarray, batch: SamplingBatch, targets: np.ndarray | None = None) -> Any:
    tokens, logprobs, top_ids, top_logprobs, target_logprobs = native.sample(logits, batch, targets)
    held = on_device(batch, targets)
    x = torch.from_numpy(logits).to(DEVICE)
    found = sampling.sample(x, held)
    assert found.tokens.tolist() == tokens.tolist()
    assert found.top_ids.tolist() == top_ids.tolist()
    close = {"rtol": 1e-6, "atol": 2e-6}
    np.testing.assert_allclose(found.logprobs.cpu(), logprobs, **close)
    np.testing.assert_allclose(found.top_logprobs.cpu(), top_logprobs, **close)
    if targets is not None:
        np.testing.assert_allclose(found.target_logprobs.cpu(), target_logprobs, **close)
    assert torch.equal(x.cpu(), torch.from_numpy(logits)) or np.isnan(logits).any()
    # The law: a row alone.
    for first, last in ((len(logits) - 1, len(logits)),):
        part = sampling.sample(x[first:last], sampling_rows(held, first, last))
        for field in fields(part):
            if field.name == "target_logprobs" and targets is None:
                continue
            whole = getattr(found, field.name)[first:last]
            same = torch.equal(getattr(part, field.name).nan_to_num(), whole.nan_to_num())
            assert same, field.name
    return found


@pytest.mark.parametrize("vocab", [1, 65, 5003])
def test_equals_the_native_sampler(vocab: int) -> None:
    rng = np.random.default_rng(vocab + 1)
    rows = 8
    logits = test_sampler.random_logits(rng, rows, vocab)
    logits[0, vocab // 2] = np.nan
    logits[1, 0] = np.inf
    logits[2] = -np.inf
    batch = test_sampler.random_batch(rng, rows, vocab)
    batch = replace(batch, temperature=np.maximum(batch.temperature, np.float32(0.2)))
    check(logits, batch, rng.integers(-1, vocab, rows).astype(np.int32))


def test_a_large_vocabulary() -> None:
    rng = np.random.default_rng(7)
    vocab, rows = 9_001, 6
    logits = (rng.standard_normal((rows, vocab)) * [[0], [1], [3], [3], [1], [2]]).astype(
        np.float32
    )
    batch = make_batch(
        rows,
        vocab,
        temperature=[1, 1, 0.8, 0.6, 0, 1.3],
        top_p=[0.9, 0.3, 1, 0.9, 1, 1],
        top_k=[0, 0, 50, 3000, 0, 0],
        min_p=[0, 0, 0, 0, 0, 0.05],
        seeds=np.arange(rows),
        positions=np.arange(rows) * 1000,
        num_logprobs=5,
    )
    check(logits, batch)


def test_races_that_go_on() -> None:
    """Flat rows: the first winners lie outside top-p, again and again."""
    rng = np.random.default_rng(3)
    vocab, rows = 4000, 4
    logits = (rng.standard_normal((rows, vocab)) * 0.3).astype(np.float32)
    batch = make_batch(
        rows,
        vocab,
        temperature=1,
        top_p=[1e-3, 0.1, 0.1, 0.5],
        top_k=[0, 3900, 0, 2000],
        seeds=np.arange(rows),
    )
    check(logits, batch)


def test_ties_go_to_the_smaller_id() -> None:
    rng = np.random.default_rng(4)
    vocab, rows = 4200, 5
    logits = rng.integers(0, 3, (rows, vocab)).astype(np.float32)
    logits[:, ::7] = -0.0
    batch = make_batch(
        rows,
        vocab,
        temperature=1,
        top_k=[2, 17, 1300, 1600, 4100],
        top_p=[1] * 3 + [0.5] * 2,
        seeds=np.arange(rows),
        num_logprobs=[0, 3, 40, -1, 7],
    )
    check(logits, batch)


def test_tiny_temperatures_and_extreme_logits() -> None:
    largest = np.finfo(np.float32).max
    logits = np.zeros((4, 300), np.float32)
    logits[0, :3] = [largest, -largest, 0]
    logits[1] = np.linspace(-5, 5, 300)
    logits[2, 5:] = -np.inf
    logits[3, 299] = 200
    check(logits, make_batch(4, 300, temperature=1e-38, top_p=0.9, num_logprobs=2))
    check(logits, make_batch(4, 300, temperature=50.0, min_p=0.1, top_k=7))


def test_only_what_is_asked_for() -> None:
    """Greedy rows alone; no rows at all; seeds with their highest bit."""
    logits = np.random.default_rng(5).standard_normal((3, 70)).astype(np.float32)
    greedy = check(logits, make_batch(3, 70, temperature=0))
    assert greedy.tokens.tolist() == logits.argmax(1).tolist()
    empty = sampling.sample(torch.zeros(0, 70, device=DEVICE), on_device(make_batch(0, 70)))
    assert empty.tokens.shape == (0,)
    seeds = np.array([2**64 - 1, 2**63, 2**32 - 1], np.uint64)
    batch = make_batch(3, 70, temperature=1, seeds=seeds, positions=[2**31 - 1, 0, 5])
    check(logits, batch)
