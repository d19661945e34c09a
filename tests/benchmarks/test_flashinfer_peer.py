"""What is asked of FlashInfer, by a stand-in that does what its documentation says: ragged pages in
the layout HND, rows at the end of their context. FlashInfer itself runs on CUDA alone."""

from __future__ import annotations

import importlib
import sys
from importlib.machinery import ModuleSpec
from itertools import pairwise
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


class StandIn:
    def __init__(self, workspace: Any, layout: str, use_tensor_cores: bool = False) -> None:
        assert workspace.dtype == torch.uint8
        assert layout == "HND"
        self.is_decode = use_tensor_cores

    def plan(self, *arguments: Any, causal: bool = False, sm_scale: float, **rest: Any) -> None:
        tensors = [one.tolist() for one in arguments if isinstance(one, torch.Tensor)]
        counts = [one for one in arguments if not isinstance(one, torch.Tensor)]
        assert causal == (not self.is_decode)
        if self.is_decode:
            tensors.insert(0, list(range(len(tensors[2]) + 1)))
        self.row_starts, self.page_starts, self.pages, self.last = tensors
        self.heads, self.kv_heads, self.dim, self.page_size = counts
        self.scale = sm_scale
        assert rest == {"q_data_type": torch.bfloat16}

    def run(self, q: Any, kv: tuple[Any, Any]) -> Any:
        out = torch.empty_like(q)
        for number, (first, end) in enumerate(pairwise(self.row_starts)):
            own = self.pages[self.page_starts[number] : self.page_starts[number + 1]]
            context = (len(own) - 1) * self.page_size + self.last[number]
            keys, values = (
                one[own].transpose(0, 1).reshape(self.kv_heads, -1, self.dim)[:, :context].float()
                for one in kv
            )
            group = self.heads // self.kv_heads
            keys, values = (one.repeat_interleave(group, 0) for one in (keys, values))
            scores = torch.einsum("thd,hcd->htc", q[first:end].float(), keys) * self.scale
            rows = torch.arange(context - (end - first), context)
            scores.masked_fill_(torch.arange(context)[None] > rows[:, None], -torch.inf)
            out[first:end] = torch.einsum("htc,hcd->thd", scores.softmax(-1), values).to(q.dtype)
        return out


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    module = ModuleType("flashinfer")
    module.__spec__ = ModuleSpec("flashinfer", None)
    module.BatchDecodeWithPagedKVCacheWrapper = StandIn  # type: ignore[attr-defined]
    module.BatchPrefillWithPagedKVCacheWrapper = StandIn  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flashinfer", module)
    monkeypatch.syspath_prepend(BENCHMARKS)
    return lambda name: importlib.import_module(f"gpu.{name}")


@pytest.mark.parametrize("row_counts", [[1, 1, 1], [5, 1, 17]])
def test_it_gets_our_cache_as_it_lies(gpu: Any, row_counts: list[int]) -> None:
    from trimtab.executors.gpu.cache import KVCache
    from trimtab.executors.gpu.reference import ReferenceOps

    generator = torch.Generator().manual_seed(1)
    contexts, scale = [33, 16, 17], 0.25
    tables = [[7, 2, 9], [4, 0, 0], [1, 8, 0]]
    cache = KVCache(10, 16, 2, 16, "bf16", "cpu")
    for tensor in cache.tensors:
        tensor.normal_(generator=generator)
    q = torch.randn(sum(row_counts), 4, 16, generator=generator).to(torch.bfloat16)
    found = gpu("flashinfer_peer").planned(q, cache, row_counts, contexts, tables, scale)()
    starts = [0, *torch.tensor(row_counts).cumsum(0).tolist()]
    positions = [
        position
        for count, context in zip(row_counts, contexts, strict=True)
        for position in range(context - count, context)
    ]
    integers = [torch.tensor(one, dtype=torch.int32) for one in (starts, positions, tables)]
    ours = ReferenceOps().attention(
        q, cache, *integers, scale, 0, 0.0, max(row_counts), max(contexts)
    )
    assert torch.allclose(found.reshape(len(q), -1).float(), ours.float(), atol=0.02)


def test_it_is_in_the_table(gpu: Any) -> None:
    from trimtab.executors.gpu.reference import ReferenceOps

    spec = gpu("shapes").spec_of("llama-3.1-8b", True)
    context = SimpleNamespace(settings=SimpleNamespace(device="cpu"))
    law_cost = gpu("law_cost")
    with torch.inference_mode():
        found = {
            "tiny attention 40": law_cost.attention(context, ReferenceOps(), spec, 40),
            "tiny decode 3 x 40": law_cost.decode_attention(context, ReferenceOps(), spec, 3, 40),
        }
    for one in found.values():
        assert one["passed"]
        assert one["flashinfer_s"] > 0
    table = gpu("tables")._law_cost({"sections": {"law cost": {"results": found}}})
    head, _, first, second = table.splitlines()[:4]
    assert head.endswith("| FlashInfer, us | it keeps the law |")
    assert first.count("|") == second.count("|") == head.count("|")


def test_a_failure_of_it_is_a_result(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from trimtab.executors.gpu.reference import ReferenceOps

    def broken(*_: Any) -> Any:
        raise RuntimeError("no kernel for this card")

    monkeypatch.setattr(StandIn, "run", broken)
    spec = gpu("shapes").spec_of("llama-3.1-8b", True)
    context = SimpleNamespace(settings=SimpleNamespace(device="cpu"))
    with torch.inference_mode():
        found = gpu("law_cost").attention(context, ReferenceOps(), spec, 40)
    assert found["passed"]
    assert found["flashinfer_error"] == "RuntimeError: no kernel for this card"
