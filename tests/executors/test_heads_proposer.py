"""Drafts by a head in the engine: those of plain torch, whatever the schedule was."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import draft_heads
import numpy as np
import pytest
import torch
from cpu_models import Passage, make_batch, memory_model

from trimtab.checkpoints.draft_head import open_draft_head
from trimtab.config import ExecutorConfig, SchedulerConfig
from trimtab.engine.client import EngineRequest
from trimtab.engine.engine import Engine
from trimtab.engine.sampling_params import SamplingParams
from trimtab.engine.speculation import heads
from trimtab.engine.speculation.costs import StepCosts
from trimtab.engine.speculation.draft import Draft
from trimtab.engine.speculation.heads import HeadsProposer
from trimtab.engine.speculation.speculator import Speculator
from trimtab.executors.cpu import CpuExecutor
from trimtab.executors.cpu_draft_head import CpuDraftHead

TARGET = memory_model(embedding_scale=1.0)
VOCAB = TARGET.spec.vocab_size
FREE = StepCosts({1: 1.0, 512: 1.0})  # rows cost nothing: every guess pays
QUICK = StepCosts({1: 1e-6, 512: 1e-6})


def executor(num_blocks: int, **config: Any) -> CpuExecutor:
    values: dict[str, Any] = {"threads": 2, "weights": "f32", "kv_cache": "f32"}
    return CpuExecutor(TARGET, ExecutorConfig(num_blocks=num_blocks, **values | config))


class Recorded(HeadsProposer):
    """Keeps what was drafted for which tokens; in every second call, what is verified are tokens
    that turn out right, so that rows of drafts hold, too."""

    def __init__(self, head: CpuDraftHead, answers: dict[str, list[int]] | None = None) -> None:
        super().__init__(head, 16, QUICK)
        self.drafts: list[tuple[list[int], list[int]]] = []
        self.answers = answers or {}
        self.num_calls = 0

    def propose(self, drafts: Sequence[Draft]) -> None:
        super().propose(drafts)
        self.num_calls += 1
        for draft in drafts:
            self.drafts.append((draft.request.token_ids.tolist(), draft.token_ids.copy()))
            right = self.answers.get(draft.request.request_id, [])[draft.request.num_generated :]
            if self.num_calls % 2 and right:
                draft.cut(0)
                for token in right[: draft.limit - 1]:
                    draft.add(token, 15)


def write_head(path: Path) -> draft_heads.ReferenceHead:
    config = draft_heads.config_of(TARGET.spec, 40, 50)
    tensors = draft_heads.tensors_of(config, embeddings=False)
    draft_heads.write_head(path, config, tensors)
    embeds = torch.from_numpy(TARGET.tensor("embed").to_float32())
    return draft_heads.ReferenceHead(config, tensors, embeds)


def engine_with(
    target: CpuExecutor, path: Path, answers: dict[str, list[int]] | None, **config: Any
) -> tuple[Engine, Recorded]:
    head = CpuDraftHead(open_draft_head(path, target.spec), target)
    target.set_feature_layers(head.spec.layer_ids)
    proposer = Recorded(head, answers)
    settings = SchedulerConfig(**{"max_batch_tokens": 24, "prefix_cache": False} | config)
    speculator = Speculator([proposer], FREE, 4)
    return Engine(target, settings, debug=True, speculator=speculator), proposer


def requests(count: int, which: int, **params: Any) -> list[EngineRequest]:
    rng = Random(which)
    return [
        EngineRequest(
            f"{index}",
            [rng.randrange(VOCAB) for _ in range(rng.randint(2, 60))],
            SamplingParams(**{"temperature": 0.0, "max_tokens": 20, "ignore_eos": True} | params),
        )
        for index in range(count)
    ]


def run(engine: Engine, wanted: Sequence[EngineRequest], abort_share: float = 0) -> dict[str, Any]:
    """Answers by request; some arrive late, some are aborted."""
    rng = Random(5)
    answers: dict[str, list[int]] = {request.request_id: [] for request in wanted}
    waiting = list(wanted)
    while waiting or engine.num_live_requests:
        if waiting and (rng.random() < 0.6 or not engine.num_live_requests):
            engine.add_request(waiting.pop(0))
        engine.scheduler.estimate.tokens = 0  # admits as if completions ended at once
        for output in engine.step():
            assert output.error is None
            answers[output.request_id] += output.token_ids
        engine.check()
        for request_id in list(engine._requests):
            if rng.random() < abort_share:
                engine.abort(request_id)
                answers[request_id].append(-1)
    return answers


def plain_answers(wanted: Sequence[EngineRequest]) -> dict[str, list[int]]:
    return run(Engine(executor(64), SchedulerConfig(prefix_cache=False)), wanted)


class Reference:
    """What the head drafts behind a text, in torch, with the target's own features."""

    def __init__(self, head: draft_heads.ReferenceHead) -> None:
        self.head = head
        self.target = executor(16)
        self.target.set_feature_layers([0, 1, 2])

    def draft(self, tokens: list[int], count: int) -> list[int]:
        passage = Passage(tokens, list(range(16)))
        batch = make_batch([(passage, len(tokens) - 1)], features=True)
        features = self.target.execute(batch).features
        self.head.forget(0)
        logits, hidden = self.head.run(tokens[1:], torch.from_numpy(features))
        last, x, drafted = logits[-1], hidden[-1], []
        while True:
            drafted.append(int(last.argmax()))
            if len(drafted) == count:
                return drafted
            last, x = self.head.step(drafted[-1], x)


@pytest.mark.parametrize("num_blocks", [64, 9])  # enough; so few that requests are preempted
def test_drafts_are_those_of_the_reference(num_blocks: int, tmp_path: Path) -> None:
    reference = Reference(write_head(tmp_path))
    wanted = requests(6, 1)
    expected = plain_answers(wanted)
    engine, proposer = engine_with(executor(num_blocks), tmp_path, expected)
    assert run(engine, wanted) == expected
    assert (engine.stats().num_preemptions > 0) == (num_blocks == 9)
    assert sum(bool(draft) for _, draft in proposer.drafts) > 20
    assert max(len(draft) for _, draft in proposer.drafts) == 4
    for tokens, draft in proposer.drafts[::3]:
        if draft:
            assert draft == reference.draft(tokens, len(draft))
    speculation = engine.stats().speculation
    assert speculation is not None
    assert speculation.accepted_by_position[2] > 0
    engine.close()


def test_a_prefix_of_the_cache_brings_the_head_along(tmp_path: Path) -> None:
    reference = Reference(write_head(tmp_path))
    wanted = requests(1, 2)
    prompt = [Random(3).randrange(VOCAB) for _ in range(48)]
    wanted[0] = EngineRequest("0", [*prompt, 1, 2, 3], wanted[0].params)
    engine, proposer = engine_with(executor(64), tmp_path, None, prefix_cache=True)
    run(engine, wanted)
    proposer.drafts.clear()
    again = EngineRequest("1", [*prompt, 1, 2, 4, 5], wanted[0].params)
    run(engine, [again])
    assert engine.stats().num_cached_prompt_tokens == 48
    drafted = [(tokens, draft) for tokens, draft in proposer.drafts if draft]
    assert len(drafted) > 5
    for tokens, draft in drafted[::3]:
        assert draft == reference.draft(tokens, len(draft))
    engine.close()


@pytest.mark.parametrize("waiting_bytes", [0, 20_000, 1 << 27])
def test_no_schedule_changes_an_answer_or_leaves_anything(
    waiting_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heads, "MAX_WAITING_BYTES", waiting_bytes)
    write_head(tmp_path)
    for seed in range(3):
        wanted = requests(8, seed, temperature=0.7, seed=seed)
        expected = plain_answers(wanted)
        target = executor(9)
        engine, proposer = engine_with(target, tmp_path, expected, prefix_cache=seed != 1)
        answers = run(engine, wanted, abort_share=0.02 * seed)
        for request_id, tokens in answers.items():
            if -1 in tokens:
                assert tokens[:-1] == expected[request_id][: len(tokens) - 1]
            else:
                assert tokens == expected[request_id]
        assert proposer.drafts
        assert not proposer._states
        assert proposer._waiting_bytes == 0
        engine.close()


def test_drafts_at_a_temperature_take_the_noise_of_the_target(tmp_path: Path) -> None:
    """Alone or in company, early or late: the same request is drafted the same tokens."""
    write_head(tmp_path)
    wanted = requests(5, 4, temperature=1.0, seed=9)
    expected = plain_answers(wanted)
    found = []
    for max_num_requests in (1, 5):
        engine, proposer = engine_with(
            executor(64), tmp_path, expected, max_num_requests=max_num_requests
        )
        run(engine, wanted)
        found.append({tuple(tokens): draft for tokens, draft in proposer.drafts if draft})
        engine.close()
    both = found[0].keys() & found[1].keys()
    assert len(both) > 10
    for tokens in both:
        length = min(len(found[0][tokens]), len(found[1][tokens]))
        assert found[0][tokens][:length] == found[1][tokens][:length]


def test_without_features_there_are_no_drafts(tmp_path: Path) -> None:
    write_head(tmp_path)
    engine, proposer = engine_with(executor(64), tmp_path, None)
    proposer.needs_features = False
    wanted = requests(2, 6)
    assert run(engine, wanted) == plain_answers(wanted)
    assert all(not draft for _, draft in proposer.drafts)
    assert np.all(np.array(proposer._uses) == 0)
