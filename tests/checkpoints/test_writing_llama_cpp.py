"""Our GGUF files in llama.cpp itself: its tokenizer, its greedy text, its own quantizer's types.

`TRIMTAB_LLAMA_PYTHON` names a Python that has llama-cpp-python; without it, all of this is skipped.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import spec_reference
import tiny_models

from trimtab.builtin import heldout_path
from trimtab.checkpoints import open_checkpoint, resolve_model
from trimtab.checkpoints.gguf_types import FILE_TYPES
from trimtab.checkpoints.writing import write_gguf
from trimtab.engine.llm import LLM
from trimtab.engine.sampling_params import SamplingParams
from trimtab.tokenization import load_tokenizer

PYTHON = os.environ.get("TRIMTAB_LLAMA_PYTHON")
pytestmark = pytest.mark.skipif(not PYTHON, reason="TRIMTAB_LLAMA_PYTHON is not set")

PROMPTS = [
    "def quicksort(a):",
    "import os\n\n\nclass Path",
    "The function returns",
    "<|user|>What does os.getcwd do?<|end|><|assistant|>",
]

GENERATE = """
import json, sys
import llama_cpp
job = json.load(open(sys.argv[1]))
result = {}
for path in job["files"]:
    model = llama_cpp.Llama(path, n_ctx=512, n_threads=1, verbose=False, seed=0)
    texts = []
    for prompt in job["prompts"]:
        ids = model.tokenize(prompt.encode(), add_bos=True, special=True)
        out = []
        for token in model.generate(ids, temp=0.0, reset=True):
            out.append(token)
            if len(out) == job["count"]:
                break
        texts.append([ids, out])
    result[path] = texts
ids = model.tokenize(open(job["text"]).read().encode(), add_bos=True, special=False)
result["text"] = ids
json.dump(result, open(sys.argv[2], "w"))
"""

QUANTIZE = """
import ctypes, json, sys
import llama_cpp
for name, number in json.loads(sys.argv[2]).items():
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype, settings.nthread = number, 1
    out = f"{sys.argv[1]}/theirs-{name}.gguf"
    source = sys.argv[1] + "/ours-F32.gguf"
    done = llama_cpp.llama_model_quantize(source.encode(), out.encode(), ctypes.byref(settings))
    assert done == 0
"""


def run(script: str, *arguments: str) -> None:
    assert PYTHON is not None
    done = subprocess.run(
        [PYTHON, "-c", script, *arguments], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """By type: [prompt ids, 64 greedy ids] of each prompt; "text": the held-out text."""
    directory = tmp_path_factory.mktemp("llama")
    source = open_checkpoint(resolve_model("builtin"))
    files = {}
    for name in ("F16", "Q8_0", "Q4_0", "Q4_K_M"):
        files[name] = directory / f"{name}.gguf"
        write_gguf(source, files[name], name)
    job = {
        "files": [str(path) for path in files.values()],
        "prompts": PROMPTS,
        "count": 64,
        "text": str(heldout_path()),
    }
    (directory / "job.json").write_text(json.dumps(job))
    run(GENERATE, str(directory / "job.json"), str(directory / "answers.json"))
    found = json.loads((directory / "answers.json").read_text())
    by_type = {name: (path, found[str(path)]) for name, path in files.items()}
    return {**by_type, "text": found["text"]}


def test_text_becomes_the_same_tokens(answers: dict[str, Any]) -> None:
    tokenizer = load_tokenizer(resolve_model("builtin"))
    assert answers["text"] == tokenizer.encode(heldout_path().read_text())
    for prompt, (ids, _) in zip(PROMPTS, answers["F16"][1], strict=True):
        assert ids == tokenizer.encode(prompt)


@pytest.mark.parametrize(
    ("name", "closest"), [("F16", 0.02), ("Q8_0", 0.3), ("Q4_0", 0.3), ("Q4_K_M", 0.3)]
)
def test_greedy_text_is_that_of_our_arithmetic(
    name: str, closest: float, answers: dict[str, Any]
) -> None:
    """At each step llama.cpp takes the token that we take. Of quantized types it rounds the
    activations to 8 bits, so that among nearly equal logits it may take the other."""
    path, texts = answers[name]
    checkpoint = open_checkpoint(path)
    other = steps = 0
    for ids, out in texts:
        logits = spec_reference.logits(checkpoint, ids + out[:-1])[len(ids) - 1 :]
        behind = logits.max(axis=1) - logits[np.arange(len(out)), out]
        assert behind.max() <= closest
        other += int((behind > 0).sum())
        steps += len(out)
    assert steps == 64 * len(PROMPTS)
    assert other <= (0 if name == "F16" else 0.03 * steps)


def test_greedy_text_is_that_of_our_engine(answers: dict[str, Any]) -> None:
    """Of the file, and of the model that it was made from."""
    path, texts = answers["F16"]
    settings = SamplingParams(max_tokens=64, temperature=0, ignore_eos=True)
    for model in (str(path), "builtin"):
        with LLM(model, threads=1) as llm:
            for ids, out in texts:
                assert llm.generate([ids], settings)[0].outputs[0].token_ids == out


@pytest.mark.parametrize("tied", [True, False])
def test_each_tensor_has_the_type_that_llama_cpp_gives_it(tied: bool, tmp_path: Path) -> None:
    """And is the same, byte by byte, where its quantizer is a plain formula."""
    sizes = {"hidden_size": 256, "intermediate_size": 320, "num_hidden_layers": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": tied}
    model = tiny_models.build("llama", **sizes, **heads)
    source = open_checkpoint(tiny_models.save(model, tmp_path / "source"))
    names = ["Q4_0", "Q4_K_M"] if tied else [n for n in FILE_TYPES if n not in ("F32", "BF16")]
    for name in ("F32", *names):
        write_gguf(source, tmp_path / f"ours-{name}.gguf", name)
    numbers = {name: FILE_TYPES[name][0] for name in names}
    run(QUANTIZE, str(tmp_path), json.dumps(numbers))
    for name in names:
        ours, theirs = (
            {t.name: t for t in gguf.GGUFReader(tmp_path / f"{whose}-{name}.gguf").tensors}
            for whose in ("ours", "theirs")
        )
        kinds = {key: tensor.tensor_type.name for key, tensor in ours.items()}
        assert kinds == {key: tensor.tensor_type.name for key, tensor in theirs.items()}
        for key, tensor in ours.items():
            if not kinds[key].endswith("_K"):
                assert np.array_equal(tensor.data, theirs[key].data), (name, key)
