"""Sampling in plain torch, one row at a time: what `SamplingBatch` says, in float64 behind the
adjusted logits."""

from __future__ import annotations

import torch
from torch import Tensor

from trimtab.executors.gpu.ops import DeviceSampling, SampleResult
from trimtab.executors.gpu.philox import gumbel_noise

INFINITY = float("inf")


def sample(logits: Tensor, batch: DeviceSampling) -> SampleResult:
    """Asks the device for every row: for tests and for executors on the CPU."""
    rows, device = logits.shape[0], logits.device
    result = SampleResult(
        tokens=torch.full((rows,), -1, dtype=torch.int32, device=device),
        logprobs=torch.zeros(rows, device=device),
        top_ids=torch.full((rows, batch.top_width), -1, dtype=torch.int32, device=device),
        top_logprobs=torch.zeros((rows, batch.top_width), device=device),
        target_logprobs=None if batch.targets is None else torch.zeros(rows, device=device),
    )
    for row in range(rows):
        _sample_row(logits[row].clone(), batch, row, result)
    return result


def _sample_row(logits: Tensor, batch: DeviceSampling, row: int, result: SampleResult) -> None:
    target = -1 if batch.targets is None else int(batch.targets[row])
    if not bool((logits < INFINITY).all()) or not bool((logits > -INFINITY).any()):
        if result.target_logprobs is not None and target >= 0:
            result.target_logprobs[row] = float("nan")
        return
    adjusted = adjusted_logits(logits, batch, row) if batch.adjusts else logits
    if bool((adjusted < INFINITY).all()) and bool((adjusted > -INFINITY).any()):
        result.tokens[row] = choose(adjusted, batch, row)
    token, wanted = int(result.tokens[row]), int(batch.num_logprobs[row])
    if wanted < 0 and target < 0:
        return
    wide = logits.double() - logits.max().double()
    logprobs = (wide - wide.exp().sum().log()).float()
    if result.target_logprobs is not None and target >= 0:
        result.target_logprobs[row] = logprobs[target]
    if wanted < 0 or token < 0:
        return
    result.logprobs[row] = logprobs[token]
    best = ranked(logits)[:wanted]
    best = best[logits[best] > -INFINITY]
    result.top_ids[row, : len(best)] = best.int()
    result.top_logprobs[row, : len(best)] = logprobs[best]


def adjusted_logits(logits: Tensor, batch: DeviceSampling, row: int) -> Tensor:
    """Steps 1 to 3, in float32."""
    x = logits.clone()

    def ids(name: str) -> Tensor:
        first, last = getattr(batch, f"{name}_starts")[row : row + 2].tolist()
        found: Tensor = getattr(batch, f"{name}_ids")[first:last].long()
        return found

    first, last = batch.bias_starts[row : row + 2].tolist()
    for token, value in zip(ids("bias"), batch.bias_values[first:last], strict=True):
        x[token] += value
    output, counts = torch.unique(ids("output"), return_counts=True)
    seen = torch.unique(torch.cat([ids("prompt"), output]))
    repetition = batch.repetition_penalty[row]
    if float(repetition) != 1:
        x[seen] = torch.where(x[seen] > 0, x[seen] / repetition, x[seen] * repetition)
    x[output] -= batch.frequency_penalty[row] * counts.float()
    x[output] -= batch.presence_penalty[row]
    x[ids("banned")] = -INFINITY
    mask_row = int(batch.mask_rows[row])
    if mask_row >= 0:
        every = torch.arange(len(x), device=x.device)
        allowed = batch.mask[mask_row][every >> 5] >> (every & 31).int() & 1
        x[allowed == 0] = -INFINITY
    return x


def choose(x: Tensor, batch: DeviceSampling, row: int) -> int:
    """Steps 4 to 8."""
    temperature = batch.temperature[row]
    top_k = int(batch.top_k[row])
    order = ranked(x)
    if float(temperature) == 0 or top_k == 1:
        return int(order[0])
    scaled = (x - x[order[0]]) / temperature
    weights = scaled.double().exp()
    if top_k > 0:
        order = order[:top_k]
    order = order[x[order] > -INFINITY]
    top_p = float(batch.top_p[row])
    if top_p < 1:
        mass = weights[order].cumsum(0)
        order = order[: int((mass < top_p * mass[-1]).sum()) + 1]
    survivors = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    survivors[order] = True
    survivors &= weights >= batch.min_p[row]
    score = scaled.double() + gumbel_noise(batch.seeds[row], batch.positions[row], len(x))
    return int(torch.where(survivors, score, -INFINITY).argmax())


def ranked(x: Tensor) -> Tensor:
    """Token ids by logit, of equal ones the smaller id first."""
    return torch.sort(x, descending=True, stable=True).indices
