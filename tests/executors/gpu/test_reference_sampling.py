"""Sampling in torch gives the tokens of the native sampler, from the same logits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from cpu_models import as_int32
from sampler_reference import gumbel, make_batch

from trimtab.executors.base import SamplingBatch, StepBatch
from trimtab.executors.gpu import batched_sampling
from trimtab.executors.gpu.ops import DeviceSampling
from trimtab.executors.gpu.philox import gumbel_noise
from trimtab.executors.gpu.reference import ReferenceOps
from trimtab.executors.gpu.sampling_batch import (
    ARRAYS,
    device_sampling,
    sampling_arrays,
    sampling_rows,
)
from trimtab.executors.gpu.staging import Staging

native = pytest.importorskip("trimtab._native")

test_sampler = pytest.importorskip("test_sampler")


def on_device(sampling: SamplingBatch, targets: Any = None) -> DeviceSampling:
    empty = as_int32([])
    batch = StepBatch(empty, empty, empty, empty, empty, empty, sampling, targets=targets)
    views, _ = Staging(1 << 20, torch.device("cpu")).upload(sampling_arrays(batch))
    return device_sampling(batch, views)


def one_row(sampling: SamplingBatch, targets: np.ndarray, row: int) -> DeviceSampling:
    """A batch of its own."""
    fields = {}
    for name in ARRAYS:
        values = getattr(sampling, name)
        prefix = name.removesuffix("_ids").removesuffix("_values")
        if name == "mask":
            fields[name] = values
        elif name.endswith("_starts"):
            fields[name] = values[row : row + 2] - values[row]
        elif name.endswith(("_ids", "_values")):
            starts = getattr(sampling, f"{prefix}_starts")
            fields[name] = values[starts[row] : starts[row + 1]]
        else:
            fields[name] = values[row : row + 1]
    return on_device(SamplingBatch(**fields), targets[row : row + 1])


def check(logits: np.ndarray, sampling: SamplingBatch, targets: np.ndarray) -> None:
    tokens, logprobs, top_ids, top_logprobs, target_logprobs = native.sample(
        logits, sampling, targets
    )
    batch = on_device(sampling, targets)
    found = ReferenceOps().sample(torch.from_numpy(logits), batch)
    assert found.tokens.tolist() == tokens.tolist()
    assert found.top_ids.tolist() == top_ids.tolist()
    close = {"rtol": 1e-6, "atol": 2e-6}
    np.testing.assert_allclose(found.logprobs.numpy(), logprobs, **close)
    np.testing.assert_allclose(found.top_logprobs.numpy(), top_logprobs, **close)
    np.testing.assert_allclose(found.target_logprobs.numpy(), target_logprobs, **close)
    batched = batched_sampling.sample(torch.from_numpy(logits), batch)
    assert batched.tokens.tolist() == tokens.tolist()
    assert batched.top_ids.tolist() == top_ids.tolist()
    np.testing.assert_allclose(batched.logprobs.numpy(), logprobs, **close)
    np.testing.assert_allclose(batched.top_logprobs.numpy(), top_logprobs, **close)
    np.testing.assert_allclose(batched.target_logprobs.numpy(), target_logprobs, **close)
    for row in range(0, len(logits), 7):
        alone = batched_sampling.sample(
            torch.from_numpy(logits[row : row + 1]), one_row(sampling, targets, row)
        )
        assert alone.tokens[0] == batched.tokens[row]
        assert alone.logprobs[0] == batched.logprobs[row]
    # In pieces: the same.
    cut = len(logits) // 3
    parts = [(0, cut), (cut, len(logits))]
    pieces = [
        ReferenceOps().sample(torch.from_numpy(logits[a:b]), sampling_rows(batch, a, b))
        for a, b in parts
    ]
    assert torch.cat([piece.tokens for piece in pieces]).equal(found.tokens)
    pieces = [
        batched_sampling.sample(torch.from_numpy(logits[a:b]), sampling_rows(batch, a, b))
        for a, b in parts
    ]
    assert torch.cat([piece.tokens for piece in pieces]).equal(batched.tokens)
    assert torch.cat([piece.logprobs for piece in pieces]).equal(batched.logprobs)


@pytest.mark.parametrize("vocab", [1, 3, 33, 65, 1000])
def test_equals_the_native_sampler(vocab: int) -> None:
    rng = np.random.default_rng(vocab)
    rows = 60
    logits = test_sampler.random_logits(rng, rows, vocab)
    logits[0, vocab // 2] = np.nan
    logits[1, 0] = np.inf
    logits[2] = -np.inf
    batch = test_sampler.random_batch(rng, rows, vocab)
    check(logits, batch, rng.integers(-1, vocab, rows).astype(np.int32))


def test_equals_the_native_sampler_on_a_large_vocabulary() -> None:
    rng = np.random.default_rng(7)
    vocab, rows = 50_257, 8
    logits = (rng.standard_normal((rows, vocab)) * rng.choice([1, 2, 3], (rows, 1))).astype(
        np.float32
    )
    batch = make_batch(
        rows,
        vocab,
        temperature=[1, 1, 0.8, 1, 0.6, 0, 1.3, 1],
        top_p=[0.9, 0.95, 1, 0.999, 0.9, 1, 1, 1],
        top_k=[0, 0, 50, 0, 5000, 0, 0, 0],
        min_p=[0, 0, 0, 0, 0, 0, 0, 0.05],
        seeds=np.arange(rows),
        positions=np.arange(rows) * 1000,
        num_logprobs=5,
    )
    check(logits, batch, np.full(rows, 11, np.int32))


def test_noise_is_that_of_the_native_sampler() -> None:
    for seed, position in ((0, 0), (2**64 - 1, 2**31 - 1), (123456789012345, 77)):
        bits = torch.tensor([seed], dtype=torch.uint64).view(torch.int64)
        found = gumbel_noise(bits[0], torch.tensor(position), 130)
        np.testing.assert_allclose(found.numpy(), gumbel(seed, position, 130), rtol=1e-14)
        assert found[77].item() == pytest.approx(native.gumbel_noise(seed, position, 77), rel=1e-14)
