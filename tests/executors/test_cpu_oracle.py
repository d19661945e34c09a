"""The CPU executor against transformers: every family, odd shapes, every kernel path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import oracle_models
import pytest
from cpu_models import (
    Passage,
    advance,
    as_int32,
    greedy,
    make_batch,
    memory_model,
    run_alone,
)

from trimtab import _native
from trimtab.checkpoints.base import Checkpoint
from trimtab.config import ExecutorConfig
from trimtab.executors.cpu import CpuExecutor
from trimtab.numerics.quantization import quantize_weights_int4, quantize_weights_int8

FAMILIES = list(oracle_models.FAMILIES)
Array = npt.NDArray[np.float32]

# Each path once: the portable one is the reference, the best one is what users run.
PATHS = list(dict.fromkeys(["portable", _native.available_isas()[0]]))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Any:
    made: dict[str, tuple[Any, Checkpoint]] = {}

    def get(name: str) -> tuple[Any, Checkpoint]:
        if name not in made:
            model = oracle_models.build(name)
            directory = tmp_path_factory.mktemp(name.replace(".", "-"))
            made[name] = model, oracle_models.open_model(model, Path(directory))
        return made[name]

    return get


def executor(checkpoint: Any, **config: Any) -> CpuExecutor:
    return CpuExecutor(checkpoint, ExecutorConfig(**{"num_blocks": 200, "threads": 2} | config))


def worst_error(ours: Array, theirs: Array) -> float:
    """Largest difference of a row, as a part of the row's largest logit."""
    return float((np.abs(ours - theirs).max(axis=-1) / np.abs(theirs).max(axis=-1)).max())


def rms_error(ours: Array, theirs: Array) -> float:
    return float(np.sqrt(((ours - theirs) ** 2).mean() / (theirs**2).mean()))


@pytest.mark.parametrize("isa", PATHS)
@pytest.mark.parametrize("name", FAMILIES)
def test_float32_logits_and_greedy_tokens(
    name: str, isa: str, models: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRIMTAB_ISA", isa)
    model, checkpoint = models(name)
    cpu = executor(checkpoint, weights="f32", kv_cache="f32")
    for length in (1, 2, 17, 90):
        tokens = oracle_models.random_tokens(length, length)
        ours = run_alone(cpu, tokens, chunk=31)
        assert worst_error(ours, oracle_models.logits_of(model, tokens)) < 1e-4
    passage = Passage(oracle_models.random_tokens(3, 5), list(range(4)))
    chosen = advance(cpu, [(passage, 5)]).tokens[-1]
    for _ in range(20):
        passage.tokens.append(int(chosen))
        chosen = advance(cpu, [(passage, 1)]).tokens[-1]
    theirs = oracle_models.logits_of(model, passage.tokens)
    assert passage.tokens[5:] == theirs[4:-1].argmax(axis=-1).tolist()


@pytest.mark.parametrize("name", FAMILIES)
def test_hidden_states_behind_the_final_norm(name: str, models: Any) -> None:
    model, checkpoint = models(name)
    cpu = executor(checkpoint, weights="f32", kv_cache="f32")
    tokens = oracle_models.random_tokens(6, 40)
    passage = Passage(tokens, list(range(3)))
    batch = make_batch([(passage, 40)], hidden_rows=np.array([0, 7, 39], np.int32))
    result = cpu.execute(batch)
    assert result.hidden is not None
    theirs = oracle_models.hidden_of(model, tokens)[[0, 7, 39]]
    assert worst_error(result.hidden, theirs) < 1e-4
    # The same bits, alone and without any logits.
    none = np.zeros(0, np.int32)
    alone = make_batch(
        [(passage, 40)], hidden_rows=as_int32([7]), logit_rows=none, sampling=greedy(0)
    )
    again = cpu.execute(alone)
    assert again.hidden is not None
    assert (again.hidden[0] == result.hidden[1]).all()


def test_hidden_rows_that_do_not_exist_are_refused(models: Any) -> None:
    cpu = executor(models(FAMILIES[0])[1])
    for rows in ([40], [-1], [3, 3], [4, 2]):
        passage = Passage(list(range(40)), list(range(3)))
        with pytest.raises(ValueError, match="hidden_rows"):
            cpu.execute(make_batch([(passage, 40)], hidden_rows=as_int32(rows)))


@pytest.mark.parametrize(
    ("name", "length"), [("llama-3.1", 3000), ("mistral", 1500), ("gemma3", 700)]
)
def test_float32_logits_of_long_prompts(name: str, length: int, models: Any) -> None:
    model, checkpoint = models(name)
    tokens = oracle_models.random_tokens(8, length)
    ours = run_alone(executor(checkpoint, weights="f32", kv_cache="f32"), tokens, chunk=700)
    theirs = oracle_models.logits_of(model, tokens)
    assert worst_error(ours, theirs) < 1e-4


@pytest.mark.parametrize("name", FAMILIES)
def test_bf16_is_as_exact_as_transformers_in_bf16(name: str, models: Any) -> None:
    import torch

    model, checkpoint = models(name)
    tokens = oracle_models.random_tokens(4, 70)
    exact = oracle_models.logits_of(model, tokens)
    theirs = oracle_models.logits_of(model.to(torch.bfloat16), tokens)
    model.float()  # the weights stay rounded: tests of float32 must not follow in this module
    ours = run_alone(executor(checkpoint, weights="bf16", kv_cache="bf16"), tokens)
    assert rms_error(ours, exact) < 1.1 * rms_error(theirs, exact)
    assert worst_error(ours, exact) < 0.05


# ---- rounded weights: the oracle is our own float32 path with the same weights


def rounded_weight(name: str, weight: Array, weights: str, group: int) -> Array:
    """What int8 and int4 make of a matrix."""
    if weight.ndim != 2 or name == "embed":
        return weight
    if weights == "int8":
        rounded = quantize_weights_int8(weight, group)
    elif name == "lm_head":
        rounded = quantize_weights_int8(weight)
    else:
        rounded = quantize_weights_int4(weight, group)
    return rounded.dequantize()[:, : weight.shape[1]]


@pytest.mark.parametrize(
    ("weights", "group", "kv_cache"),
    [
        ("int8", 0, "bf16"),
        ("int8", 0, "int8"),
        ("int8", 64, "bf16"),
        ("int4", 32, "bf16"),
        ("int4", 128, "int8"),
    ],
)
def test_integer_formats_compute_with_the_rounded_weights(
    weights: str, group: int, kv_cache: str
) -> None:
    checkpoint = memory_model(3, tied_embeddings=False, hidden_size=168, intermediate_size=200)
    tokens = np.random.default_rng(1).integers(0, 77, size=60).tolist()
    oracle = checkpoint.map(lambda name, weight: rounded_weight(name, weight, weights, group))
    exact = run_alone(executor(oracle, weights="f32", kv_cache="f32"), tokens)
    ours = run_alone(
        executor(checkpoint, weights=weights, group_size=group, kv_cache=kv_cache), tokens
    )
    # What is left is the rounding of activations to 8 bits, and of K and V.
    assert rms_error(ours, exact) < 0.03
    original = run_alone(executor(checkpoint, weights="f32", kv_cache="f32"), tokens)
    limit = 0.04 if weights == "int8" else 0.3
    assert rms_error(ours, original) < limit
