"""A draft head on the CPU, against plain torch, and whole against damaged checkpoints."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import draft_heads
import numpy as np
import pytest
import torch
from cpu_models import Passage, greedy, make_batch, memory_model

from trimtab import _native
from trimtab.checkpoints.draft_head import open_draft_head
from trimtab.config import ExecutorConfig
from trimtab.errors import CheckpointError
from trimtab.executors.cpu import CpuExecutor
from trimtab.executors.cpu_draft_head import CpuDraftHead

TARGET = memory_model(embedding_scale=1.0)
VARIANTS: dict[str, dict[str, Any]] = {
    "own embeddings": {"hidden": 56, "draft_vocab": 33, "embeddings": True},
    "the target's": {"hidden": 40, "draft_vocab": 77, "embeddings": False},
    "norm first": {"hidden": 40, "draft_vocab": 50, "embeddings": False, "norm": True},
}


def target(**config: Any) -> CpuExecutor:
    values: dict[str, Any] = {"num_blocks": 32, "threads": 2, "weights": "f32", "kv_cache": "f32"}
    return CpuExecutor(TARGET, ExecutorConfig(**values | config))


def write(path: Path, hidden: int, draft_vocab: int, embeddings: bool, norm: bool = False) -> Any:
    changes = {"norm_before_residual": True} if norm else {}
    config = draft_heads.config_of(TARGET.spec, hidden, draft_vocab, **changes)
    tensors = draft_heads.tensors_of(config, embeddings)
    draft_heads.write_head(path, config, tensors)
    embeds = torch.from_numpy(TARGET.tensor("embed").to_float32())
    return draft_heads.ReferenceHead(config, tensors, embeds)


def features(rows: int, seed: int = 0) -> Any:
    size = 3 * TARGET.spec.hidden_size
    return np.random.default_rng(seed).standard_normal((rows, size)).astype(np.float32)


@pytest.mark.parametrize("isa", _native.available_isas())
@pytest.mark.parametrize("variant", VARIANTS)
def test_rows_and_chains_equal_torch(
    variant: str, isa: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRIMTAB_ISA", isa)
    reference = write(tmp_path, **VARIANTS[variant])
    executor = target()
    head = CpuDraftHead(open_draft_head(tmp_path, executor.spec), executor)
    tokens = np.random.default_rng(1).integers(0, 77, size=40).tolist()
    inputs = features(37)
    passage = Passage(tokens, [5, 2, 9])
    parts = []
    for count in (1, 20, 16):
        rows = inputs[passage.computed : passage.computed + count]
        parts.append(head.execute(make_batch([(passage, count)], features=True), rows))
        passage.computed += count
    expected, hidden = reference.run(tokens[:37], torch.from_numpy(inputs))
    ours = np.concatenate([part.logits for part in parts])
    allowed = np.isfinite(expected.numpy())
    assert (np.isfinite(ours) == allowed).all()
    scale = np.abs(expected.numpy()[allowed]).max()
    np.testing.assert_allclose(ours[allowed], expected.numpy()[allowed], atol=2e-4 * scale)
    assert (np.concatenate([part.tokens for part in parts]) == expected.argmax(-1).numpy()).all()

    given = parts[-1].features[-1:]
    np.testing.assert_allclose(given[0], hidden[-1].numpy(), atol=1e-3)
    for step in range(3):  # a chain goes on from its own hidden states
        result = head.execute(make_batch([(passage, 1)], features=True), given)
        passage.computed += 1
        logits, x = reference.step(tokens[37 + step], torch.from_numpy(given[0]))
        np.testing.assert_allclose(result.features[0], x.numpy(), atol=1e-3)
        assert result.tokens[0] == int(logits.argmax())
        given = result.features


@pytest.mark.parametrize("weights", ["bf16", "int8", "int4"])
def test_rows_do_not_depend_on_company(weights: str, tmp_path: Path) -> None:
    write(tmp_path, 56, 33, True)
    executor = target(weights=weights, kv_cache="bf16")
    head = CpuDraftHead(open_draft_head(tmp_path, executor.spec), executor)
    tokens, inputs = list(range(40)), features(40)
    alone = head.execute(make_batch([(Passage(tokens, [0, 1, 2]), 40)]), inputs).logits
    first, second = Passage(tokens, [3, 4, 5]), Passage(tokens, [6, 7, 8])
    one = head.execute(
        make_batch([(first, 9), (second, 30)]), np.concatenate([inputs[:9], inputs[:30]])
    ).logits
    first.computed, second.computed = 9, 30
    two = head.execute(
        make_batch([(first, 31), (second, 1)]), np.concatenate([inputs[9:], inputs[30:31]])
    ).logits
    assert alone is not None
    assert one is not None
    assert two is not None
    assert (np.concatenate([one[:9], two[:31]]) == alone).all()
    assert (np.concatenate([one[9:], two[31:]]) == alone[:31]).all()


def test_a_draft_is_chosen_with_the_noise_of_the_target(tmp_path: Path) -> None:
    """As `_native.sample` chooses from logits over the whole vocabulary."""
    write(tmp_path, 56, 33, True)
    executor = target()
    head = CpuDraftHead(open_draft_head(tmp_path, executor.spec), executor)
    sampling = replace(
        greedy(20),
        temperature=np.full(20, 1.5, np.float32),
        seeds=np.arange(20, dtype=np.uint64),
        positions=np.arange(2, 22, dtype=np.int32),
        num_logprobs=np.zeros(20, np.int32),
    )
    batch = make_batch([(Passage(list(range(20)), [0, 1]), 20)], sampling=sampling)
    result = head.execute(batch, features(20))
    tokens, logprobs, *_ = _native.sample(result.logits, sampling)
    assert (result.tokens == tokens).all()
    assert (result.logprobs == logprobs).all()
    assert (result.tokens != result.logits.argmax(-1)).any()


def test_inputs_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    write(tmp_path, 56, 33, True)
    executor = target()
    head = CpuDraftHead(open_draft_head(tmp_path, executor.spec), executor)
    batch = make_batch([(Passage([1, 2], [0]), 2)])
    for inputs in (features(1), features(2)[:, :-1].copy(), np.zeros((2, 40), np.float32)):
        with pytest.raises(ValueError, match="inputs"):
            head.execute(batch, inputs)
    with pytest.raises((TypeError, ValueError)):
        head.execute(batch, None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="inputs"):
        executor.native.step(batch, features(2))
    head.close()
    with pytest.raises(RuntimeError, match="closed"):
        head.execute(batch, features(2))


# ---- checkpoints


DAMAGES: dict[str, tuple[Any, str]] = {
    "no fc": (lambda c, t: t.pop("fc.weight"), "fc.weight is missing"),
    "no d2t": (lambda c, t: t.pop("d2t"), "d2t is missing"),
    "d2t too far": (lambda c, t: t["d2t"].add_(60), "d2t"),
    "d2t twice": (lambda c, t: t["d2t"].copy_(-torch.arange(33)), "d2t"),
    "d2t of floats": (lambda c, t: t.update(d2t=t["d2t"].float()), "d2t is F32"),
    "no embeddings": (lambda c, t: t.pop("embed_tokens.weight"), "embed_tokens.weight is missing"),
    "wrong shape": (lambda c, t: t.update({"norm.weight": torch.ones(3)}), "norm.weight has shape"),
    "integers": (
        lambda c, t: t.update({"fc.weight": t["fc.weight"].to(torch.int8)}),
        "fc.weight is stored as I8",
    ),
    "a stranger": (lambda c, t: t.update({"fc.bias": torch.ones(56)}), "fc.bias"),
    "other target": (lambda c, t: c.update(target_hidden_size=48), "the target's have 40"),
    "other vocabulary": (lambda c, t: c.update(vocab_size=78), "the target has 77"),
    "larger draft": (lambda c, t: c.update(draft_vocab_size=78), "draft_vocab_size"),
    "two layers": (lambda c, t: c.update(num_hidden_layers=2), "one layer"),
    "layer beyond": (
        lambda c, t: c.update(eagle_aux_hidden_state_layer_ids=[0, 1, 3]),
        "feature layer 3",
    ),
    "layers of text": (
        lambda c, t: c.update(eagle_aux_hidden_state_layer_ids=["0"]),
        "must be a few integers",
    ),
    "no default layers": (
        lambda c, t: c.pop("eagle_aux_hidden_state_layer_ids"),
        "no default for 2 layers",
    ),
    "no features": (
        lambda c, t: c.update(eagle_config={"use_aux_hidden_state": False}),
        "use_aux_hidden_state",
    ),
    "another kind": (lambda c, t: c.update(architectures=["LlamaForCausalLM"]), "not a draft head"),
    "unknown key": (lambda c, t: c.update(some_new_norm=True), "some_new_norm"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_heads_give_one_line(damage: str, tmp_path: Path) -> None:
    change, message = DAMAGES[damage]
    config = draft_heads.config_of(TARGET.spec, 56, 33)
    tensors = draft_heads.tensors_of(config, embeddings=True)
    change(config, tensors)
    draft_heads.write_head(tmp_path, config, tensors)
    with pytest.raises(CheckpointError, match=message) as error:
        open_draft_head(tmp_path, TARGET.spec)
    assert "\n" not in str(error.value)


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such directory"):
        open_draft_head(tmp_path / "nowhere", TARGET.spec)
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        open_draft_head(tmp_path, TARGET.spec)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="JSON"):
        open_draft_head(tmp_path, TARGET.spec)


def test_other_ways_to_publish_a_head(tmp_path: Path) -> None:
    """Names as vLLM's own, a nested config, and layers counted by their outputs."""
    config = draft_heads.config_of(TARGET.spec, 56, 33)
    tensors = draft_heads.tensors_of(config, embeddings=True)
    outer = {name: config.pop(name) for name in ("architectures", "draft_vocab_size")}
    outer["target_hidden_size"] = config.pop("target_hidden_size")
    config.pop("eagle_aux_hidden_state_layer_ids")
    nested = outer | {
        "transformer_layer_config": config,
        "speculators_model_type": "eagle3",
        "eagle_aux_hidden_state_layer_ids": [1, 2, 0],
    }
    renamed = {name.replace("midlayer.", "layers.0."): t for name, t in tensors.items()}
    draft_heads.write_head(tmp_path, nested, renamed)
    spec = open_draft_head(tmp_path, TARGET.spec).spec
    assert spec.layer_ids == (1, 2, 0)
    assert spec.norm_before_residual
    plain = {**config, **outer, "eagle_config": {"eagle_aux_hidden_state_layer_ids": [1, 0, 1]}}
    (tmp_path / "config.json").write_text(json.dumps(plain))
    spec = open_draft_head(tmp_path, TARGET.spec).spec
    assert spec.layer_ids == (2, 1, 2)
    assert not spec.norm_before_residual
