"""The torch executor against transformers, every family; in plain torch on a CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import oracle_models
import pytest
from cpu_models import Passage, advance, as_int32, greedy, make_batch, memory_model, run_alone

from trimtab.checkpoints.base import Checkpoint
from trimtab.config import ExecutorConfig
from trimtab.errors import CheckpointError, ConfigError
from trimtab.executors.gpu.executor import TorchExecutor

FAMILIES = list(oracle_models.FAMILIES)


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


def executor(checkpoint: Any, **config: Any) -> TorchExecutor:
    values = {"device": "torch-cpu", "num_blocks": 40, "weights": "f32", "kv_cache": "f32"}
    return TorchExecutor(checkpoint, ExecutorConfig(**(values | config)))


def worst_error(ours: Any, theirs: Any) -> float:
    """Largest difference of a row, as a part of the row's largest logit."""
    return float((np.abs(ours - theirs).max(axis=-1) / np.abs(theirs).max(axis=-1)).max())


def rms_error(ours: Any, theirs: Any) -> float:
    return float(np.sqrt(((ours - theirs) ** 2).mean() / (theirs**2).mean()))


@pytest.mark.parametrize("name", FAMILIES)
def test_float32_logits_and_greedy_tokens(name: str, models: Any) -> None:
    model, checkpoint = models(name)
    ours = executor(checkpoint)
    tokens = oracle_models.random_tokens(90, 70)
    logits = run_alone(ours, tokens, chunk=31)
    assert worst_error(logits, oracle_models.logits_of(model, tokens)) < 1e-4
    passage = Passage(oracle_models.random_tokens(3, 5), list(range(4)))
    chosen = advance(ours, [(passage, 5)]).tokens[-1]
    for _ in range(8):
        passage.tokens.append(int(chosen))
        chosen = advance(ours, [(passage, 1)]).tokens[-1]
    theirs = oracle_models.logits_of(model, passage.tokens)
    assert passage.tokens[5:] == theirs[4:-1].argmax(axis=-1).tolist()


@pytest.mark.parametrize("name", ["llama-3.1", "gemma2"])
def test_long_prompts_over_partition_borders(name: str, models: Any) -> None:
    model, checkpoint = models(name)
    tokens = oracle_models.random_tokens(8, 550)
    ours = run_alone(executor(checkpoint), tokens, chunk=300)
    assert worst_error(ours, oracle_models.logits_of(model, tokens)) < 1e-4


@pytest.mark.parametrize("name", ["llama", "gemma3", "qwen3"])
def test_bf16_is_as_exact_as_transformers_in_bf16(name: str, models: Any) -> None:
    import copy

    import torch

    model, checkpoint = models(name)
    tokens = oracle_models.random_tokens(4, 50)
    exact = oracle_models.logits_of(model, tokens)
    theirs = oracle_models.logits_of(copy.deepcopy(model).to(torch.bfloat16), tokens)
    ours = run_alone(executor(checkpoint, weights="bf16", kv_cache="bf16"), tokens)
    assert rms_error(ours, exact) < 1.2 * rms_error(theirs, exact)


@pytest.mark.parametrize(
    ("weights", "group", "limit"), [("int8", 0, 0.03), ("int8", 32, 0.01), ("int4", 32, 0.03)]
)
def test_integers_are_those_of_the_cpu_executor(weights: str, group: int, limit: float) -> None:
    """The oracle is float32 with the rounded weights. What is left: activations in 8 bits, or
    weights and activations in bf16."""
    from trimtab.numerics.quantization import quantize_weights_int4, quantize_weights_int8

    def rounded(name: str, weight: Any) -> Any:
        if weight.ndim != 2 or name == "embed":
            return weight
        if weights == "int4" and name != "lm_head":
            found = quantize_weights_int4(weight, group)
        else:
            found = quantize_weights_int8(weight, group if weights == "int8" else 0)
        return found.dequantize()[:, : weight.shape[1]]

    checkpoint = memory_model(3, tied_embeddings=False, hidden_size=160, intermediate_size=192)
    tokens = np.random.default_rng(1).integers(0, 77, size=40).tolist()
    exact = run_alone(executor(checkpoint.map(rounded)), tokens)
    ours = run_alone(executor(checkpoint, weights=weights, group_size=group), tokens)
    assert 0 < rms_error(ours, exact) < limit
    original = run_alone(executor(checkpoint), tokens)
    assert rms_error(exact, original) > rms_error(ours, exact) / 2


def test_float8_weights_are_rounded_a_row_at_a_time_and_the_head_is_not() -> None:
    """The oracle is float32 with the rounded weights: what is left are activations in float8."""
    import torch

    from trimtab.executors.gpu.row_reference import quantize_rows

    def rounded(name: str, weight: Any) -> Any:
        if weight.ndim != 2 or name in ("embed", "lm_head"):
            return weight
        values, scales = quantize_rows(torch.from_numpy(weight), "fp8")
        return (values.float() * scales[:, None]).numpy()

    checkpoint = memory_model(3, tied_embeddings=False, hidden_size=160, intermediate_size=192)
    tokens = np.random.default_rng(1).integers(0, 77, size=40).tolist()
    exact = run_alone(executor(checkpoint.map(rounded)), tokens)
    original = run_alone(executor(checkpoint), tokens)
    ours = run_alone(executor(checkpoint, weights="fp8"), tokens)
    assert 0.005 < rms_error(exact, original) < 0.06
    assert 0.005 < rms_error(ours, exact) < 0.06
    worse = checkpoint.map(lambda _, weight: weight)
    worse.tensors["layers.1.up"].data[3, 5] = np.inf  # type: ignore[union-attr]
    with pytest.raises(CheckpointError, match=r"layers\.1\.gate: a weight is not finite"):
        executor(worse, weights="fp8")


@pytest.mark.parametrize(("kv_cache", "limit"), [("int8", 0.05), ("fp8", 0.1)])
def test_a_cache_of_8_bits_rounds_a_little(kv_cache: str, limit: float, models: Any) -> None:
    model, checkpoint = models("llama")
    tokens = oracle_models.random_tokens(4, 50)
    exact = oracle_models.logits_of(model, tokens)
    ours = run_alone(executor(checkpoint, kv_cache=kv_cache), tokens)
    assert 1e-4 < rms_error(ours, exact) < limit


@pytest.mark.parametrize("name", ["llama", "phi3", "gemma2"])
def test_hidden_states_behind_the_final_norm(name: str, models: Any) -> None:
    model, checkpoint = models(name)
    ours = executor(checkpoint)
    tokens = oracle_models.random_tokens(6, 40)
    passage = Passage(tokens, list(range(3)))
    result = ours.execute(make_batch([(passage, 40)], hidden_rows=as_int32([0, 7, 39])))
    assert result.hidden is not None
    theirs = oracle_models.hidden_of(model, tokens)[[0, 7, 39]]
    assert worst_error(result.hidden, theirs) < 1e-4
    # The same bits, alone and without any logits.
    alone = make_batch(
        [(passage, 40)],
        hidden_rows=as_int32([7]),
        logit_rows=np.zeros(0, np.int32),
        sampling=greedy(0),
        return_logits=False,
    )
    again = ours.execute(alone)
    assert again.hidden is not None
    assert len(again.tokens) == 0
    assert (again.hidden[0] == result.hidden[1]).all()


def test_targets_are_scored_and_features_are_the_residual_stream(models: Any) -> None:
    import torch

    model, checkpoint = models("llama")
    ours = executor(checkpoint)
    tokens = oracle_models.random_tokens(6, 20)
    ours.set_feature_layers((1, 2))
    targets = as_int32([*tokens[1:], -1])
    batch = make_batch([(Passage(tokens, [3, 1]), 20)], targets=targets, features=True)
    result = ours.execute(batch)
    theirs = torch.from_numpy(oracle_models.logits_of(model, tokens)).log_softmax(1).numpy()
    expected = theirs[np.arange(19), targets[:-1]]
    assert result.target_logprobs is not None
    np.testing.assert_allclose(result.target_logprobs[:-1], expected, rtol=1e-4, atol=1e-4)
    assert result.target_logprobs[-1] == 0
    with torch.inference_mode():
        streams = model.model(torch.tensor([tokens]), output_hidden_states=True).hidden_states
    assert result.features is not None
    assert result.features.shape == (20, 120)
    np.testing.assert_allclose(result.features[:, :60], streams[1][0].numpy(), atol=1e-3)
    with pytest.raises(ValueError, match="feature layers"):
        ours.set_feature_layers((3,))


def test_logits_that_are_not_finite_give_no_token() -> None:
    checkpoint = memory_model(2)
    poisoned = checkpoint.map(
        lambda name, weight: np.full_like(weight, np.nan) if name == "final_norm" else weight
    )
    passage = Passage(list(range(5)), [0])
    targets = as_int32([3] * 5)
    result = executor(poisoned).execute(make_batch([(passage, 5)], targets=targets))
    assert (result.tokens == -1).all()
    assert result.target_logprobs is not None
    assert np.isnan(result.target_logprobs).all()


def test_identity_covers_weights_formats_and_device(models: Any) -> None:
    checkpoint = models("llama")[1]
    found = {
        executor(checkpoint).identity,
        executor(models("mistral")[1]).identity,
        executor(checkpoint, weights="bf16").identity,
        executor(checkpoint, kv_cache="bf16").identity,
        executor(checkpoint, weights="fp8").identity,
        executor(checkpoint, kv_cache="fp8").identity,
    }
    assert len(found) == 6
    assert executor(checkpoint, num_blocks=3).identity in found


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_rows": as_int32([40])}, "hidden_rows"),
        ({"hidden_rows": as_int32([4, 2])}, "hidden_rows"),
        ({"logit_rows": as_int32([3, 3])}, "logit_rows"),
        ({"block_ids": as_int32([0, 1])}, "block_starts"),
        ({"block_ids": as_int32([0, 1, 40])}, "block_ids"),
        ({"token_ids": as_int32([131] * 40)}, "token_ids"),
        ({"positions": as_int32([5] * 40)}, "positions"),
        ({"targets": as_int32([131] * 40)}, "targets"),
        ({"chosen_before": as_int32([-1] * 39 + [0])}, "chosen_before"),
    ],
)
def test_what_breaks_the_contract_is_refused(changes: Any, message: str, models: Any) -> None:
    ours = executor(models("llama")[1])
    tokens = list(range(40))
    expected = run_alone(ours, tokens)
    batch = make_batch([(Passage(tokens[::-1], list(range(3))), 40)], **changes)
    fresh = executor(models("llama")[1])
    with pytest.raises(ValueError, match=message) as caught:
        fresh.execute(batch)
    assert "\n" not in str(caught.value)
    assert (run_alone(fresh, tokens) == expected).all()


def test_what_cannot_work_is_one_line(models: Any) -> None:
    import torch

    checkpoint = models("llama")[1]
    with pytest.raises(ConfigError, match="max_context"):
        executor(checkpoint, max_context=1 << 20)
    with pytest.raises(ConfigError, match="GiB"):
        executor(checkpoint, num_blocks=1 << 40)
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="no GPU"):
            executor(checkpoint, device="cuda")
    memory = memory_model(2)
    del memory.tensors["layers.1.o"]
    with pytest.raises(CheckpointError, match=r"layers\.1\.o"):
        executor(memory)


def test_a_closed_executor_says_so(models: Any) -> None:
    ours = executor(models("llama")[1])
    ours.close()
    ours.close()
    with pytest.raises(RuntimeError, match="closed"):
        ours.execute(make_batch([(Passage([1], [0]), 1)]))
