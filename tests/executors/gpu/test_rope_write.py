"""The norms, the rotation and what lies in the cache afterwards, against float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from attention_cases import DEVICE

from trimtab.executors.gpu.cache import KVCache, KVCacheFormat
from trimtab.executors.gpu.rope_write import qk_norm_rope_write
from trimtab.executors.gpu.row_reference import quantize_rows

HEADS, KV_HEADS, POSITIONS, EPS = 5, 3, 64, 1e-6


class Rows:
    """Random rows of one shape, and where they go."""

    def __init__(self, dim: int, rotary: int, dtype: torch.dtype, norm: bool, num: int = 6) -> None:
        generator = torch.Generator().manual_seed(dim + rotary)
        self.dim, self.rotary = dim, rotary
        width = (HEADS + 2 * KV_HEADS) * dim
        self.qkv = torch.randn(num, width, generator=generator).to(dtype).to(DEVICE)
        self.norms = [
            torch.randn(dim, generator=generator).to(DEVICE) if norm else None for _ in range(2)
        ]
        angles = torch.rand(POSITIONS, rotary // 2, generator=generator) * 6
        self.cos, self.sin = angles.cos().to(DEVICE), angles.sin().to(DEVICE)
        self.positions = torch.randperm(POSITIONS, generator=generator)[:num].int().to(DEVICE)
        self.slots = torch.randperm(4 * 16, generator=generator)[:num].to(DEVICE)

    def write(
        self, format: KVCacheFormat, rows: list[int] | slice = slice(None), offset: float = 0.0
    ) -> tuple[Tensor, KVCache]:
        cache = KVCache(4, 16, KV_HEADS, self.dim, format, DEVICE)
        q = qk_norm_rope_write(
            self.qkv[rows].contiguous(),
            *self.norms,
            EPS,
            offset,
            self.cos,
            self.sin,
            self.positions[rows].contiguous(),
            self.slots[rows].contiguous(),
            cache,
        )
        return q, cache

    def at_slots(self, tensor: Tensor, rows: list[int] | slice = slice(None)) -> Tensor:
        slots = self.slots[rows].cpu()
        return tensor.cpu().float()[slots // 16, slots % 16]

    def expected(self, offset: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
        """float64 q [rows, HEADS, dim], k, v [rows, KV_HEADS, dim]."""
        x = self.qkv.cpu().double().view(len(self.qkv), -1, self.dim)
        q, k, v = x.split([HEADS, KV_HEADS, KV_HEADS], 1)
        turned = []
        for part, norm in zip((q, k), self.norms, strict=True):
            if norm is not None:
                scale = torch.rsqrt(part.square().mean(-1, keepdim=True) + EPS)
                part = part * scale * (offset + norm.cpu().double())
            cos, sin = (
                table.cpu().double()[self.positions.cpu().long()][:, None]
                for table in (self.cos, self.sin)
            )
            half = self.rotary // 2
            one, two, rest = part[..., :half], part[..., half : 2 * half], part[..., 2 * half :]
            turned.append(torch.cat([one * cos - two * sin, two * cos + one * sin, rest], -1))
        return turned[0], turned[1], v


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize(("dim", "rotary"), [(16, 16), (64, 32), (40, 40), (8, 4), (24, 0)])
def test_q_k_v(dim: int, rotary: int, norm: bool) -> None:
    rows = Rows(dim, rotary, torch.float32, norm)
    q, cache = rows.write("f32", offset=1.0)
    expected_q, expected_k, expected_v = rows.expected(offset=1.0)
    assert torch.allclose(q.cpu().double(), expected_q, rtol=0, atol=5e-6)
    found = rows.at_slots(cache.keys).double()
    assert torch.allclose(found, expected_k, rtol=0, atol=5e-6)
    assert torch.equal(rows.at_slots(cache.values).double(), expected_v)
    written = torch.zeros(4 * 16, dtype=torch.bool)
    written[rows.slots.cpu()] = True
    rest = cache.values.cpu().reshape(64, -1)[~written]
    assert not rest.any()


@pytest.mark.parametrize(("format", "dtype"), [("bf16", torch.bfloat16), ("f16", torch.float16)])
def test_rounded_once(format: KVCacheFormat, dtype: torch.dtype) -> None:
    rows = Rows(32, 32, dtype, True)
    q, cache = rows.write(format)
    expected_q, expected_k, expected_v = rows.expected()
    ulp = torch.finfo(dtype).eps
    for found, expected in ((q.cpu(), expected_q), (rows.at_slots(cache.keys), expected_k)):
        assert ((found.double() - expected).abs() <= expected.abs() * ulp / 1.99 + 1e-6).all()
    assert torch.equal(rows.at_slots(cache.values).double(), expected_v)


@pytest.mark.parametrize("format", ["int8", "fp8"])
def test_quantized_as_rows_are(format: KVCacheFormat) -> None:
    """A token and head is stored as quantize_rows stores a row, bit for bit."""
    rows = Rows(64, 64, torch.float32, True)
    rows.qkv[2, -64:] = 0
    rows.qkv[3, -64:] = 1e-35
    _, plain = rows.write("f32")
    _, cache = rows.write(format)
    for wide, stored, scales in (
        (plain.keys, cache.keys, cache.key_scales),
        (plain.values, cache.values, cache.value_scales),
    ):
        assert scales is not None
        values, expected = quantize_rows(rows.at_slots(wide).flatten(0, 1), format)
        assert torch.equal(rows.at_slots(stored).flatten(0, 1), values.float())
        assert torch.equal(rows.at_slots(scales).flatten(), expected)


def test_rows_do_not_know_each_other() -> None:
    rows = Rows(32, 32, torch.bfloat16, True)
    q, cache = rows.write("int8")
    for index in range(len(rows.qkv)):
        own_q, own = rows.write("int8", [index])
        assert torch.equal(own_q[0], q[index])
        for one, all_ in zip(own.tensors, cache.tensors, strict=True):
            views = one.transpose(1, 2), all_.transpose(1, 2)
            assert torch.equal(*(rows.at_slots(view, [index]) for view in views))


def test_negative_slots_write_nothing() -> None:
    rows = Rows(16, 16, torch.float32, False)
    q, _ = rows.write("f32")
    rows.slots[:] = -1
    again, cache = rows.write("f32")
    assert torch.equal(q, again)
    assert not any(tensor.any() for tensor in cache.tensors)


@pytest.mark.parametrize("format", ["bf16", "f32", "int8", "fp8"])
def test_what_is_not_finite_is_told_by_the_key(format: KVCacheFormat) -> None:
    """Values stay finite: weights of zero would turn an infinity into NaN for every row."""
    rows = Rows(16, 16, torch.float32, False)
    rows.qkv[1, (HEADS + KV_HEADS) * 16 + 3] = torch.inf  # value of head 0
    rows.qkv[2, (HEADS + 1) * 16] = torch.nan  # key of head 1
    _, cache = rows.write(format)
    values = rows.at_slots(cache.values)
    if cache.key_scales is not None and cache.value_scales is not None:
        keys = rows.at_slots(cache.keys) * rows.at_slots(cache.key_scales)[..., None]
        values = values * rows.at_slots(cache.value_scales)[..., None]
    else:
        keys = rows.at_slots(cache.keys)
    assert values.isfinite().all()
    broken = keys.isnan().any(-1)
    assert broken.nonzero().tolist() == [[1, 0], [2, 1]]


def test_arguments_that_do_not_fit() -> None:
    rows = Rows(16, 16, torch.float32, False)
    rows.slots = rows.slots.int()
    with pytest.raises(ValueError, match="slots int64"):
        rows.write("f32")
    rows.slots = rows.slots.long()
    rows.cos = rows.cos[:, :4]
    with pytest.raises(ValueError, match="cos"):
        rows.write("f32")
    rows.cos = rows.sin
    rows.qkv = rows.qkv[:, :-1]
    with pytest.raises(ValueError, match="for 3 KV heads of 16"):
        rows.write("f32")
