"""The residual stream of chosen layers, as draft heads read it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import oracle_models
import pytest
import torch
from cpu_models import Passage, make_batch, memory_model

from trimtab import _native
from trimtab.config import ExecutorConfig
from trimtab.executors.cpu import CpuExecutor

Array = npt.NDArray[np.float32]


def executor(checkpoint: Any, **config: Any) -> CpuExecutor:
    return CpuExecutor(checkpoint, ExecutorConfig(**{"num_blocks": 64, "threads": 2} | config))


def features_of(cpu: CpuExecutor, passage: Passage, count: int) -> Array:
    result = cpu.execute(make_batch([(passage, count)], features=True))
    passage.computed += count
    assert result.features is not None
    return result.features


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_feature_i_is_hidden_state_i_of_transformers(name: str, tmp_path: Path) -> None:
    """That is what layer i gets; the last of transformers is normed, ours is not."""
    model = oracle_models.build(name)
    cpu = executor(oracle_models.open_model(model, tmp_path), weights="f32", kv_cache="f32")
    tokens = oracle_models.random_tokens(4, 50)
    num_layers, size = cpu.spec.num_layers, cpu.spec.hidden_size
    ids = [1, num_layers - 1, 0, num_layers]
    cpu.set_feature_layers(ids)
    passage = Passage(tokens, list(range(4)))
    ours = np.concatenate([features_of(cpu, passage, 20), features_of(cpu, passage, 30)])
    assert ours.shape == (50, len(ids) * size)
    with torch.inference_mode():
        theirs = model.model(torch.tensor([tokens]), output_hidden_states=True).hidden_states
        for place, layer in enumerate(ids):
            part = torch.from_numpy(ours[:, place * size : (place + 1) * size])
            if layer == num_layers:
                part = model.model.norm(part)
            error = (part - theirs[layer][0]).abs().max() / theirs[layer][0].abs().max()
            assert error < 1e-4, (layer, float(error))


@pytest.mark.parametrize("isa", _native.available_isas())
def test_features_do_not_depend_on_the_batch(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIMTAB_ISA", isa)
    cpu = executor(memory_model(), weights="int8")
    cpu.set_feature_layers([0, 1, 2])
    rng = np.random.default_rng(0)
    texts = [rng.integers(0, 77, size=length).tolist() for length in (40, 33, 5)]
    alone = [features_of(cpu, Passage(text, list(range(3))), len(text)) for text in texts]
    passages = [Passage(text, list(range(10 + 3 * i, 13 + 3 * i))) for i, text in enumerate(texts)]
    first = cpu.execute(make_batch([(passages[0], 7), (passages[1], 32)], features=True)).features
    passages[0].computed, passages[1].computed = 7, 32
    pieces = [(passages[0], 33), (passages[1], 1), (passages[2], 5)]
    second = cpu.execute(make_batch(pieces, features=True)).features
    assert first is not None
    assert second is not None
    assert (np.concatenate([first[:7], second[:33]]) == alone[0]).all()
    assert (np.concatenate([first[7:], second[33:34]]) == alone[1]).all()
    assert (second[34:] == alone[2]).all()


def test_asking_changes_nothing_else() -> None:
    cpu = executor(memory_model())
    plain = cpu.execute(make_batch([(Passage(list(range(20)), [0, 1]), 20)]))
    assert plain.features is None
    cpu.set_feature_layers([1])
    asked = cpu.execute(make_batch([(Passage(list(range(20)), [0, 1]), 20)], features=True))
    assert (asked.logits == plain.logits).all()
    assert (asked.tokens == plain.tokens).all()


def test_what_cannot_be_asked_for_is_refused() -> None:
    cpu = executor(memory_model())
    with pytest.raises(ValueError, match="feature layers"):
        cpu.execute(make_batch([(Passage([1], [0]), 1)], features=True))
    for layers in ([-1], [3], [0, 7]):
        with pytest.raises(ValueError, match="feature layer"):
            cpu.set_feature_layers(layers)
