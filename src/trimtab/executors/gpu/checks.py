"""What a StepBatch promises, checked once at the border: ValueError, one line, before anything is
written."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from trimtab.executors.base import Int32Array, KVCapacity, StepBatch
from trimtab.models.spec import ModelSpec


def check_batch(batch: StepBatch, capacity: KVCapacity, spec: ModelSpec, num_chosen: int) -> None:
    """`num_chosen`: tokens of the step before that rows may start from."""
    rows, seqs = batch.num_rows, batch.num_seqs
    starts, blocks = batch.seq_starts, batch.block_starts
    if rows < 1:
        raise ValueError("token_ids: a step has at least one row")
    if len(batch.positions) != rows:
        raise ValueError("positions: one for each of token_ids")
    _check_starts("seq_starts", starts, rows)
    if len(blocks) != seqs + 1:
        raise ValueError("block_starts: as long as seq_starts")
    _check_starts("block_starts", blocks, len(batch.block_ids))
    if (np.diff(starts) < 1).any():
        raise ValueError("seq_starts: a sequence without rows")
    check_ids("token_ids", batch.token_ids, spec.vocab_size)
    check_ids("block_ids", batch.block_ids, capacity.num_blocks)
    check_ids("positions", batch.positions, spec.max_context)
    steps = np.diff(batch.positions)
    steps[starts[1:-1] - 1] = 1
    if (steps != 1).any():
        raise ValueError("positions: not consecutive within a sequence")
    if (batch.positions[starts[1:] - 1] >= np.diff(blocks) * capacity.block_size).any():
        raise ValueError("block_ids: a sequence has fewer blocks than its positions need")
    _check_rows("logit_rows", batch.logit_rows, rows)
    count = len(batch.logit_rows)
    if batch.hidden_rows is not None:
        _check_rows("hidden_rows", batch.hidden_rows, rows)
    if batch.targets is not None:
        if len(batch.targets) != count:
            raise ValueError("targets: one for each of logit_rows")
        check_ids("targets", batch.targets, spec.vocab_size, least=-1)
    if batch.chosen_before is not None:
        if len(batch.chosen_before) != rows:
            raise ValueError("chosen_before: one for each of token_ids")
        check_ids("chosen_before", batch.chosen_before, num_chosen, least=-1)
    check_sampling(batch, spec.vocab_size)


def check_sampling(batch: StepBatch, vocab: int) -> None:
    sampling, count = batch.sampling, len(batch.logit_rows)
    for name in (
        "temperature",
        "top_k",
        "top_p",
        "min_p",
        "repetition_penalty",
        "presence_penalty",
        "frequency_penalty",
        "seeds",
        "positions",
        "num_logprobs",
        "mask_rows",
    ):
        if len(getattr(sampling, name)) != count:
            raise ValueError(f"sampling.{name}: one for each of logit_rows")
    if not (sampling.temperature >= 0).all():
        raise ValueError("sampling.temperature: must not be negative")
    for name in ("bias", "banned", "prompt", "output"):
        ids = getattr(sampling, f"{name}_ids")
        starts = getattr(sampling, f"{name}_starts")
        if len(starts) != count + 1:
            raise ValueError(f"sampling.{name}_starts: one more than logit_rows")
        _check_starts(f"sampling.{name}_starts", starts, len(ids))
        check_ids(f"sampling.{name}_ids", ids, vocab)
    if len(sampling.bias_values) != len(sampling.bias_ids):
        raise ValueError("sampling.bias_values: one for each of bias_ids")
    num_masks = len(sampling.mask)
    check_ids("sampling.mask_rows", sampling.mask_rows, num_masks, least=-1)
    if num_masks and sampling.mask.shape[1] != -(-vocab // 32):
        raise ValueError("sampling.mask: one bit for each token")


def check_ids(name: str, ids: npt.NDArray[np.signedinteger], limit: int, least: int = 0) -> None:
    if len(ids) and not (least <= ids.min() and ids.max() < limit):
        raise ValueError(f"{name}: must be in [{least}, {limit})")


def _check_starts(name: str, starts: Int32Array, end: int) -> None:
    if not len(starts) or starts[0] != 0 or starts[-1] != end or (np.diff(starts) < 0).any():
        raise ValueError(f"{name}: must ascend from 0 to {end}")


def _check_rows(name: str, numbers: Int32Array, rows: int) -> None:
    check_ids(name, numbers, rows)
    if (np.diff(numbers) < 1).any():
        raise ValueError(f"{name}: must ascend")
