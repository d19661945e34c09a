"""Philox4x32-10 (Salmon et al., SC 2011) on int64 tensors, and the noise that sampling makes of it:
that of native/core/philox.h and native/core/sampler_race.cpp."""

from __future__ import annotations

import torch
from torch import Tensor

WORD = 0xFFFFFFFF


def philox4x32_10(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: Tensor) -> list[Tensor]:
    """Four words in [0, 2^32) for each counter; `key` int64, its low word first."""
    c0, c1, c2, c3 = counter
    k0, k1 = key & WORD, key >> 32 & WORD
    for _ in range(10):
        # The products overflow into the sign; their 64 bits are right nevertheless.
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (
            p1 >> 32 & WORD ^ c1 ^ k0,
            p1 & WORD,
            p0 >> 32 & WORD ^ c3 ^ k1,
            p0 & WORD,
        )
        k0, k1 = k0 + 0x9E3779B9 & WORD, k1 + 0xBB67AE85 & WORD
    return [c0, c1, c2, c3]


def gumbel_noise(seed: Tensor, position: Tensor, vocab: int) -> Tensor:
    """[vocab] float64: the noise of every token. `seed` int64 and `position` are scalars."""
    return gumbel_noise_rows(seed[None], position[None], vocab)[0]


def gumbel_noise_rows(seeds: Tensor, positions: Tensor, vocab: int) -> Tensor:
    """[R, vocab] float64, of seeds [R] int64 and positions [R]."""
    quads = torch.arange((vocab + 3) // 4, dtype=torch.int64, device=seeds.device)[None]
    zero = torch.zeros_like(quads)
    place, key = positions.to(torch.int64)[:, None] + zero, seeds[:, None]
    high = torch.stack(philox4x32_10((place, quads, zero, zero), key), 2)
    low = torch.stack(philox4x32_10((place, quads, zero + 1, zero), key), 2)
    bits = (high << 20 | low >> 12).flatten(1)[:, :vocab]
    v = (bits.to(torch.float64) + 0.5) * 2.0**-52
    return -torch.log(-torch.log1p(-v))
