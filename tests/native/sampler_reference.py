"""The semantics of SamplingBatch once more, as plainly as numpy allows."""

from __future__ import annotations

from typing import Any

import numpy as np

from trimtab.executors.base import SamplingBatch

SCALARS = {
    "temperature": (np.float32, 1.0),
    "top_k": (np.int32, 0),
    "top_p": (np.float32, 1.0),
    "min_p": (np.float32, 0.0),
    "repetition_penalty": (np.float32, 1.0),
    "presence_penalty": (np.float32, 0.0),
    "frequency_penalty": (np.float32, 0.0),
    "seeds": (np.uint64, 0),
    "positions": (np.int32, 0),
    "num_logprobs": (np.int32, -1),
}


def ragged(lists: list[list[Any]], dtype: Any) -> tuple[np.ndarray, np.ndarray]:
    starts = np.cumsum([0] + [len(items) for items in lists]).astype(np.int32)
    return starts, np.array([x for items in lists for x in items], dtype)


def make_batch(rows: int, vocab: int, **fields: Any) -> SamplingBatch:
    """Defaults everywhere but in `fields`: a value for every row or one a row; `bias` [row] ->
    {id: value}; `banned`, `prompt`, `output` [row] -> ids; `allowed` [row] -> ids or None."""
    values: dict[str, Any] = {}
    for name, (dtype, default) in SCALARS.items():
        value = np.asarray(fields.pop(name, default), dtype)
        values[name] = np.ascontiguousarray(np.broadcast_to(value, (rows,)))
    bias = fields.pop("bias", [{}] * rows)
    values["bias_starts"], values["bias_ids"] = ragged([list(b) for b in bias], np.int32)
    _, values["bias_values"] = ragged([list(b.values()) for b in bias], np.float32)
    for name in ("banned", "prompt", "output"):
        lists = fields.pop(name, [[]] * rows)
        values[f"{name}_starts"], values[f"{name}_ids"] = ragged(lists, np.int32)
    allowed = fields.pop("allowed", [None] * rows)
    assert not fields, fields
    mask_rows, masks = [], []
    for ids in allowed:
        mask_rows.append(-1 if ids is None else len(masks))
        if ids is not None:
            words = np.zeros((vocab + 31) // 32, np.uint32)
            for token in ids:
                words[token // 32] |= np.uint32(1 << (token % 32))
            masks.append(words)
    values["mask_rows"] = np.array(mask_rows, np.int32)
    values["mask"] = np.array(masks, np.uint32).reshape(len(masks), (vocab + 31) // 32)
    return SamplingBatch(**values)


def philox(counter: list[np.ndarray], key: tuple[int, int]) -> list[np.ndarray]:
    """Philox4x32-10 in uint64 arithmetic; the counter words are arrays."""
    low = np.uint64(0xFFFFFFFF)
    c = [np.asarray(word, np.uint64) for word in counter]
    k0, k1 = key
    for _ in range(10):
        p0, p1 = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        c = [
            (p1 >> np.uint64(32)) ^ c[1] ^ np.uint64(k0),
            p1 & low,
            (p0 >> np.uint64(32)) ^ c[3] ^ np.uint64(k1),
            p0 & low,
        ]
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return c


def gumbel(seed: int, position: int, vocab: int) -> np.ndarray:
    quads = np.arange((vocab + 3) // 4, dtype=np.uint64)
    zero = np.zeros_like(quads)
    key = (seed % 2**32, seed >> 32)
    high, low = (
        np.stack(philox([zero + np.uint64(position), quads, zero + np.uint64(draw), zero], key))
        for draw in (0, 1)
    )
    bits = ((high << np.uint64(20)) | (low >> np.uint64(12))).T.ravel()[:vocab]
    v = (bits.astype(np.float64) + 0.5) * 2.0**-52
    return -np.log(-np.log1p(-v))


def adjusted_logits(logits: np.ndarray, batch: SamplingBatch, row: int) -> np.ndarray:
    x = logits.astype(np.float32).copy()

    def of(name: str) -> slice:
        starts = getattr(batch, f"{name}_starts")
        return slice(starts[row], starts[row + 1])

    np.add.at(x, batch.bias_ids[of("bias")], batch.bias_values[of("bias")])
    output = batch.output_ids[of("output")]
    seen = np.union1d(batch.prompt_ids[of("prompt")], output)
    penalty = batch.repetition_penalty[row]
    x[seen] = np.where(x[seen] > 0, x[seen] / penalty, x[seen] * penalty)
    ids, counts = np.unique(output, return_counts=True)
    x[ids] -= batch.frequency_penalty[row] * counts.astype(np.float32)
    x[ids] -= batch.presence_penalty[row]
    x[batch.banned_ids[of("banned")]] = -np.inf
    if batch.mask_rows[row] >= 0:
        bits = np.unpackbits(batch.mask[batch.mask_rows[row]].view(np.uint8), bitorder="little")
        x[bits[: len(x)] == 0] = -np.inf
    return x


def survivors(x: np.ndarray, batch: SamplingBatch, row: int) -> tuple[np.ndarray, np.ndarray]:
    """(ids, probabilities) after top-k, top-p and min-p; the probabilities sum to 1."""
    order = np.lexsort((np.arange(len(x)), -x.astype(np.float64)))
    order = order[x[order] > -np.inf]
    if batch.top_k[row] > 0:
        order = order[: batch.top_k[row]]
    scaled = (x[order].astype(np.float64) - x[order[0]]) / np.float64(batch.temperature[row])
    weights = np.exp(scaled)
    if batch.top_p[row] < 1:
        mass = np.cumsum(weights)
        keep = int(np.searchsorted(mass, np.float64(batch.top_p[row]) * mass[-1])) + 1
        order, weights = order[:keep], weights[:keep]
    kept = weights >= batch.min_p[row]
    return order[kept], weights[kept] / weights[kept].sum()


def choose(logits: np.ndarray, batch: SamplingBatch, row: int) -> int:
    x = adjusted_logits(logits, batch, row)
    if not np.all(logits < np.inf) or not np.any(x > -np.inf):
        return -1
    if batch.temperature[row] == 0:
        return int(np.argmax(x))
    ids, _ = survivors(x, batch, row)
    scaled = x[ids].astype(np.float64) / np.float64(batch.temperature[row])
    noise = gumbel(int(batch.seeds[row]), int(batch.positions[row]), len(x))[ids]
    return int(ids[np.argmax(scaled + noise)])


def log_softmax(logits: np.ndarray) -> np.ndarray:
    x = logits.astype(np.float64) - np.max(logits)
    return x - np.log(np.sum(np.exp(x)))
