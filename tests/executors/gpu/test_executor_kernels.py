"""The executor on its kernels: on the card, or under Triton's interpreter on tiny models."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from cpu_models import BLOCK, Passage, advance, as_int32, memory_model, run_alone

from trimtab.config import ExecutorConfig
from trimtab.executors.gpu.executor import TorchExecutor
from trimtab.models.spec import LayerSpec

pytest.importorskip("triton")

from trimtab.executors.gpu.triton_ops import TritonOps

DEVICE = "cuda" if torch.cuda.is_available() else "torch-cpu"
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 4,
    "num_kv_heads": 2,
    "layers": (LayerSpec(sliding_window=21, rope=1),),
    "tied_embeddings": False,
}
FORMATS = [("bf16", "bf16"), ("int8", "int8"), ("int4", "bf16"), ("fp8", "fp8")]


def executors(weights: str, kv_cache: str) -> tuple[TorchExecutor, TorchExecutor, TorchExecutor]:
    """On plain torch; on kernels; on kernels, small steps filled up."""
    formats: Any = {"weights": weights, "kv_cache": kv_cache, "num_blocks": 12}
    config = ExecutorConfig(device=DEVICE, **formats)  # type: ignore[arg-type]
    checkpoint = memory_model(1, **SIZES)
    return (
        TorchExecutor(checkpoint, ExecutorConfig(device="torch-cpu", **formats)),
        TorchExecutor(checkpoint, config, TritonOps(), fill_up=False),
        TorchExecutor(checkpoint, config, TritonOps(), fill_up=True),
    )


@pytest.mark.parametrize(("weights", "kv_cache"), FORMATS)
def test_kernels_give_about_the_logits_of_plain_torch_and_keep_the_law(
    weights: str, kv_cache: str
) -> None:
    plain, kernels, filled = executors(weights, kv_cache)
    rng = np.random.default_rng(3)
    prompts = [rng.integers(0, 77, size=n).tolist() for n in (21, 6, 1)]
    alone = [run_alone(kernels, prompt) for prompt in prompts]
    for ours, prompt in zip(alone, prompts, strict=True):
        theirs = run_alone(plain, prompt)
        difference = float(np.sqrt(((ours - theirs) ** 2).mean() / (theirs**2).mean()))
        assert difference < 0.03
    dice = random.Random(5)
    free = dice.sample(range(12), 12)
    passages = [Passage(p, [free.pop() for _ in range(-(-len(p) // BLOCK))]) for p in prompts]
    home, away = kernels, filled
    while live := [p for p in passages if p.computed < len(p.tokens)]:
        pieces = []
        for passage in dice.sample(live, dice.randint(1, len(live))):
            left = len(passage.tokens) - passage.computed
            pieces.append((passage, dice.choice([1, min(left, 3), left])))
        advance(home, pieces)
        used = as_int32([block for passage in live for block in passage.blocks])
        away.import_blocks(used, home.export_blocks(used))
        home, away = away, home
    for passage, expected in zip(passages, alone, strict=True):
        assert (np.stack(passage.logits) == expected).all()
