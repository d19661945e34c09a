"""Sampling in torch, all rows at once, without waiting for the device: what `SamplingBatch` says.

Everything is elementwise but for sorting and the first of equal maxima, which have no order of
addition; sums are trees and prefix sums are doublings over the vocabulary, so a row's result does
not depend on how many there are. Behind the adjusted logits it is float64, as in
reference_sampling.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trimtab.executors.gpu.ops import DeviceSampling, SampleResult
from trimtab.executors.gpu.philox import gumbel_noise_rows

INFINITY = float("inf")


def sample(logits: Tensor, batch: DeviceSampling) -> SampleResult:
    usable = _usable(logits)
    x = adjusted_logits(logits, batch) if batch.adjusts else logits
    tokens = x.argmax(1)
    if batch.samples:
        greedy = (batch.temperature == 0) | (batch.top_k == 1)
        tokens = torch.where(greedy, tokens, _choose(x, batch))
    found = usable & _usable(x) if batch.adjusts else usable
    tokens = torch.where(found, tokens, -1).to(torch.int32)
    rows, width, device = len(logits), batch.top_width, logits.device
    result = SampleResult(
        tokens=tokens,
        logprobs=torch.zeros(rows, device=device),
        top_ids=torch.full((rows, width), -1, dtype=torch.int32, device=device),
        top_logprobs=torch.zeros((rows, width), device=device),
        target_logprobs=None,
    )
    if batch.wants_logprobs or batch.targets is not None:
        _score(logits, usable, batch, result)
    return result


def adjusted_logits(logits: Tensor, batch: DeviceSampling) -> Tensor:
    """Steps 1 to 3, in float32."""
    x = torch.cat([logits, logits[:1]])  # a spare row for entries of rows that are not here
    x.index_put_(_places(batch.bias_starts, batch.bias_ids), batch.bias_values, accumulate=True)
    counts = torch.zeros(x.shape, dtype=torch.int32, device=x.device)
    ones = torch.ones_like(batch.output_ids)
    counts.index_put_(_places(batch.output_starts, batch.output_ids), ones, accumulate=True)
    seen = counts > 0
    true = torch.ones_like(batch.prompt_ids, dtype=torch.bool)
    seen.index_put_(_places(batch.prompt_starts, batch.prompt_ids), true)
    repetition = batch.repetition_penalty[:, None]
    impossible = torch.zeros(x.shape, dtype=torch.bool, device=x.device)
    true = torch.ones_like(batch.banned_ids, dtype=torch.bool)
    impossible.index_put_(_places(batch.banned_starts, batch.banned_ids), true)
    x, counts, seen = x[:-1], counts[:-1], seen[:-1]
    x = torch.where(seen, torch.where(x > 0, x / repetition, x * repetition), x)
    x = x - batch.frequency_penalty[:, None] * counts.float()
    x = x - batch.presence_penalty[:, None] * (counts > 0).float()
    x = torch.where(impossible[:-1], -INFINITY, x)
    if len(batch.mask):
        every = torch.arange(x.shape[1], device=x.device)
        words = batch.mask[batch.mask_rows.long().clamp(min=0)][:, every >> 5]
        allowed = (words >> (every & 31).int() & 1).bool() | (batch.mask_rows < 0)[:, None]
        x = torch.where(allowed, x, -INFINITY)
    return x


def _choose(x: Tensor, batch: DeviceSampling) -> Tensor:
    """Steps 4 to 8 of every row, as if none were greedy."""
    temperature = torch.where(batch.temperature == 0, 1, batch.temperature)[:, None]
    scaled = (x - x.amax(1, keepdim=True)) / temperature
    survives = x > -INFINITY
    if batch.filters:
        survives = survives & _filtered(x, scaled.double().exp(), batch)
    noise = gumbel_noise_rows(batch.seeds, batch.positions, x.shape[1])
    return torch.where(survives, scaled.double() + noise, -INFINITY).argmax(1)


def _filtered(x: Tensor, weights: Tensor, batch: DeviceSampling) -> Tensor:
    order = torch.sort(x, dim=1, descending=True, stable=True).indices
    ranks = torch.arange(x.shape[1], device=x.device)
    top_k = torch.where(batch.top_k > 0, batch.top_k, x.shape[1])[:, None]
    inside = ranks < top_k
    ordered = torch.where(inside, weights.gather(1, order), 0.0)
    mass = prefix_sums(ordered)
    target = batch.top_p.double()[:, None] * mass[:, -1:]
    inside &= (mass - ordered < target) | (ranks == 0) | (batch.top_p >= 1)[:, None]
    inside &= ordered >= batch.min_p.double()[:, None]
    return torch.zeros_like(inside).scatter_(1, order, inside)


def _score(logits: Tensor, usable: Tensor, batch: DeviceSampling, result: SampleResult) -> None:
    """Log-softmax of the model's own logits."""
    wide = logits.double() - logits.amax(1, keepdim=True).double()
    log_sums = tree_sums(wide.exp()).log()[:, None]

    def logprobs(ids: Tensor) -> Tensor:
        return (wide.gather(1, ids.long().clamp(min=0)) - log_sums).float()

    wanted = batch.num_logprobs[:, None]
    given = (result.tokens >= 0)[:, None] & (wanted >= 0)
    result.logprobs = torch.where(given, logprobs(result.tokens[:, None]), 0.0)[:, 0]
    width = min(batch.top_width, logits.shape[1])
    if width:
        best = torch.sort(logits, dim=1, descending=True, stable=True).indices[:, :width]
        kept = given & (torch.arange(width, device=logits.device) < wanted)
        kept &= logits.gather(1, best) > -INFINITY
        result.top_ids[:, :width] = torch.where(kept, best.int(), -1)
        result.top_logprobs[:, :width] = torch.where(kept, logprobs(best), 0.0)
    if batch.targets is not None:
        scores = torch.where(usable, logprobs(batch.targets[:, None])[:, 0], float("nan"))
        result.target_logprobs = torch.where(batch.targets >= 0, scores, 0.0)


def tree_sums(x: Tensor) -> Tensor:
    """[R] sums of [R, V], halves upon halves."""
    while x.shape[1] > 1:
        half = (x.shape[1] + 1) // 2
        low, high = x[:, :half], x[:, half:]
        x = torch.cat([low[:, : high.shape[1]] + high, low[:, high.shape[1] :]], 1)
    return x[:, 0]


def prefix_sums(x: Tensor) -> Tensor:
    """[R, V] sums of each element and those before it (Hillis and Steele, 1986)."""
    distance = 1
    while distance < x.shape[1]:
        x = torch.cat([x[:, :distance], x[:, distance:] + x[:, :-distance]], 1)
        distance *= 2
    return x


def _usable(x: Tensor) -> Tensor:
    """[R]: no NaN, no +inf, and something that is possible."""
    return (x < INFINITY).all(1) & (x > -INFINITY).any(1)


def _places(starts: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """(row, id) of the entries of a ragged field of R rows; R of those that belong to none, since
    `starts` may lead into the midst of `ids`."""
    entries = torch.arange(len(ids), dtype=starts.dtype, device=ids.device)
    rows = torch.searchsorted(starts, entries, right=True) - 1
    last = len(starts) - 1
    return torch.where(rows < 0, last, rows), ids.long()
