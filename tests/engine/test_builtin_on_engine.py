"""The model that ships with the package, on our own engine: as good as transformers finds it."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import pytest

from trimtab import LLM, SamplingParams, builtin
from trimtab.tokenization import load_tokenizer

pytest.importorskip("trimtab._native")


@pytest.fixture(scope="module", params=["bf16", "int8", "int4"])
def llm(request: pytest.FixtureRequest) -> Iterator[LLM]:
    model = LLM("builtin", weights=request.param, num_blocks=512)
    yield model
    model.close()


def test_tasks_are_answered(llm: LLM) -> None:
    lines = builtin.tasks_path().read_text(encoding="utf-8").splitlines()[::4]
    tasks = [json.loads(line) for line in lines]
    assert {task["kind"] for task in tasks} >= {"recall", "lookup", "arithmetic"}
    tokenizer = load_tokenizer(builtin.target_path())
    prompts = [tokenizer.encode_chat([{"role": "user", "content": t["prompt"]}]) for t in tasks]
    results = llm.generate(prompts, SamplingParams(max_tokens=48, temperature=0))
    right: dict[str, list[bool]] = {}
    for result, task in zip(results, tasks, strict=True):
        right.setdefault(task["kind"], []).append(result.outputs[0].text.strip() == task["answer"])
    for kind, marks in right.items():
        assert sum(marks) >= 0.6 * len(marks), kind


@pytest.mark.parametrize(("device", "length"), [("cpu", 2000), ("torch-cpu", 500)])
def test_held_out_text_has_the_likelihood_that_transformers_finds(device: str, length: int) -> None:
    import torch
    import transformers

    text = builtin.heldout_path().read_text(encoding="utf-8")[5000 : 5000 + length]
    model = LLM("builtin", device=device, weights="f32", kv_cache="f32", num_blocks=128)
    [scored] = model.score([text])
    model.close()
    tokenizer = transformers.AutoTokenizer.from_pretrained(builtin.target_path())
    ids = torch.tensor([tokenizer(text)["input_ids"]])

    oracle = transformers.LlamaForCausalLM.from_pretrained(
        builtin.target_path(), dtype=torch.float32
    )
    with torch.no_grad():
        logprobs = oracle(ids).logits[0].log_softmax(-1)
    expected = logprobs[torch.arange(ids.shape[1] - 1), ids[0, 1:]].numpy()
    np.testing.assert_allclose(scored, expected, rtol=1e-4, atol=1e-4)
