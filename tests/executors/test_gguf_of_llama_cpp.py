"""GGUF files made by llama.cpp's own quantizer give the logits that llama.cpp computes.

Needs an environment with llama.cpp: TRIMTAB_LLAMA_PYTHON names its Python.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import gguf_models
import numpy as np
import pytest
import torch
import transformers
from cpu_models import run_alone

from trimtab.checkpoints import open_checkpoint
from trimtab.checkpoints.base import Checkpoint, MatrixFormat, StoredMatrix, StoredTensor
from trimtab.config import ExecutorConfig, WeightFormat
from trimtab.executors.cpu import CpuExecutor

PYTHON = os.environ.get("TRIMTAB_LLAMA_PYTHON")
pytestmark = pytest.mark.skipif(not PYTHON, reason="TRIMTAB_LLAMA_PYTHON names no llama.cpp")

# llama_ftype of llama.h
FILE_TYPES = {
    "Q4_0": 2,
    "Q4_1": 3,
    "Q8_0": 7,
    "Q5_0": 8,
    "Q5_1": 9,
    "Q2_K": 10,
    "Q3_K_M": 12,
    "Q4_K_M": 15,
    "Q5_K_M": 17,
    "Q6_K": 18,
    "IQ4_NL": 25,
    "IQ4_XS": 30,
}
TOKENS = np.random.default_rng(3).integers(3, 300, 60).astype(np.int32)


@pytest.fixture(scope="module", params=["llama", "qwen3"])
def files(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of NAME.gguf and NAME.npy, the logits that llama.cpp computes."""
    directory = tmp_path_factory.mktemp(request.param)
    sizes = {
        "vocab_size": 320,
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "max_position_embeddings": 256,
        "tie_word_embeddings": request.param == "qwen3",
        "initializer_range": 0.08,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    torch.manual_seed(0)
    if request.param == "llama":
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes))
    else:
        model = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**sizes))
    gguf_models.write(model, directory / "F32.gguf")
    np.save(directory / "tokens.npy", TOKENS)
    child = Path(__file__).with_name("llama_cpp_child.py")
    assert PYTHON is not None
    types = [f"{name}={number}" for name, number in FILE_TYPES.items()]
    done = subprocess.run(
        [PYTHON, child, directory / "F32.gguf", directory / "tokens.npy", directory, *types],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return directory


class Dequantized:
    """A checkpoint whose matrices come as float32."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint

    def __getattr__(self, name: str) -> Any:
        return getattr(self._checkpoint, name)

    def format(self, name: str) -> MatrixFormat:
        return "f32"

    def matrix(self, name: str) -> StoredMatrix:
        return self.tensor(name)

    def tensor(self, name: str) -> StoredTensor:
        return StoredTensor(self._checkpoint.tensor(name).to_float32(), "f32")


def logits(checkpoint: Any, weights: WeightFormat = "bf16") -> np.ndarray:
    settings = ExecutorConfig(weights=weights, num_blocks=16, threads=2, kv_cache="f32")
    executor = CpuExecutor(checkpoint, settings)
    try:
        return run_alone(executor, [int(token) for token in TOKENS])
    finally:
        executor.close()


def distance(found: np.ndarray, other: np.ndarray) -> float:
    return float(np.sqrt(((found - other) ** 2).mean() / other.var()))


def test_without_quantization(files: Path) -> None:
    found = logits(open_checkpoint(files / "F32.gguf"), weights="f32")
    assert distance(found, np.load(files / "F32.npy")) < 1e-4


@pytest.mark.parametrize("name", FILE_TYPES)
def test_the_logits_are_those_of_llama_cpp(files: Path, name: str) -> None:
    """Neither rounds weights again. Both round activations to 8 bits, in different groups: each is
    so far from the product without that rounding, and no further from the other than two errors
    that know nothing of each other."""
    checkpoint = open_checkpoint(files / f"{name}.gguf")
    exact = logits(Dequantized(checkpoint), weights="f32")
    theirs, found = np.load(files / f"{name}.npy"), logits(checkpoint)
    their_error, our_error = distance(theirs, exact), distance(found, exact)
    assert 0 < our_error < 1.1 * their_error
    assert distance(found, theirs) < 1.2 * np.hypot(our_error, their_error)
    assert their_error < 0.1
