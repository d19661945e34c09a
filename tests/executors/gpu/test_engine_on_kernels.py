"""The engine on the kernels, those of sampling among them: on the card, or under Triton's
interpreter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cpu_models import memory_model
from engine_schedules import Answer, run

from trimtab.config import ExecutorConfig, SchedulerConfig
from trimtab.engine.client import EngineRequest
from trimtab.engine.engine import Engine
from trimtab.engine.sampling_params import SamplingParams
from trimtab.executors.gpu.executor import TorchExecutor
from trimtab.models.spec import LayerSpec

pytest.importorskip("triton")

from trimtab.executors.gpu.triton_ops import TritonOps

DEVICE = "cuda" if torch.cuda.is_available() else "torch-cpu"
SETTINGS: dict[str, dict[str, Any]] = {
    "filters": {"seed": 3, "top_k": 20, "top_p": 0.9, "min_p": 0.02, "logprobs": 2},
    "penalties": {"seed": 4, "repetition_penalty": 1.2, "logit_bias": {7: 2.0}},
    "bans": {"temperature": 0, "banned_sequences": ((4,),), "allowed_token_ids": (4, 5, 33)},
}


def requests() -> list[EngineRequest]:
    stem = [(7 * i) % 40 for i in range(7)]
    made = [
        EngineRequest(name, [*stem, place], SamplingParams(max_tokens=2, ignore_eos=True, **params))
        for place, (name, params) in enumerate(SETTINGS.items())
    ]
    scored = SamplingParams(max_tokens=1, temperature=0, ignore_eos=True)
    return [*made, EngineRequest("scored", stem, scored, prompt_logprobs=1)]


def test_company_changes_no_bit() -> None:
    model = memory_model(
        2,
        vocab_size=40,
        hidden_size=32,
        intermediate_size=48,
        num_heads=4,
        num_kv_heads=2,
        layers=(LayerSpec(),),
        tied_embeddings=False,
    )
    found: list[dict[str, Answer]] = []
    for fill_up, budget in ((False, 64), (True, 17)):
        config = ExecutorConfig(device=DEVICE, kv_cache="fp8", num_blocks=16)  # type: ignore[arg-type]
        executor = TorchExecutor(model, config, TritonOps(), fill_up=fill_up)
        engine = Engine(executor, SchedulerConfig(max_batch_tokens=budget), debug=True)
        if fill_up:
            found.append(run(engine, *requests()))
        else:
            found.append({})
            for one in requests():
                found[-1] |= run(engine, one)
    for name, answer in found[1].items():
        alone = found[0][name]
        assert answer.token_ids == alone.token_ids
        assert answer.logprobs == alone.logprobs
        assert answer.prompt_logprobs == alone.prompt_logprobs
    assert set(found[1]["bans"].token_ids) <= {5, 33}
    assert len(found[1]["filters"].logprobs) == 2
