from __future__ import annotations

import pytest
import torch

from trimtab.executors.gpu.cache import DTYPES, KVCache, KVCacheFormat


@pytest.mark.parametrize("format", DTYPES)
def test_bytes_of_a_block_are_those_of_its_tensors(format: KVCacheFormat) -> None:
    cache = KVCache(7, 16, 3, 24, format, "cpu")
    stored = sum(tensor.numel() * tensor.itemsize for tensor in cache.tensors)
    assert stored == 7 * KVCache.bytes_per_block(16, 3, 24, format)
    assert all(tensor.is_contiguous() and len(tensor) == 7 for tensor in cache.tensors)


@pytest.mark.parametrize("format", ["bf16", "int8"])
def test_views_write_to_what_is_stored(format: KVCacheFormat) -> None:
    cache = KVCache(3, 16, 2, 8, format, "cpu")
    cache.keys[1, 5, 1] = 3
    assert cache.tensors[0][1, 1, 5].float().tolist() == [3.0] * 8
    cache.values[2, 0] = 4
    assert cache.tensors[1][2, :, 0].float().unique().tolist() == [4.0]
    if cache.key_scales is not None:
        cache.key_scales[1, 5, 1] = 0.5
        assert cache.tensors[2][1, 1, 5] == 0.5
        assert cache.tensors[2].dtype == torch.float32
