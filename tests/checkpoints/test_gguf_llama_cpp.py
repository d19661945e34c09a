"""Against llama.cpp itself: what its quantizer writes is read, and files mean here what they mean
there. Only with TRIMTAB_LLAMA_PYTHON, a Python that has llama-cpp-python."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import gguf_models
import numpy as np
import pytest
import spec_reference
import tiny_models
from test_families import expected_tensors

from trimtab.checkpoints import open_checkpoint
from trimtab.checkpoints.base import StoredTensor
from trimtab.numerics.stored import GroupedMatrix

LLAMA_PYTHON = os.environ.get("TRIMTAB_LLAMA_PYTHON", "")
pytestmark = pytest.mark.skipif(not LLAMA_PYTHON, reason="no TRIMTAB_LLAMA_PYTHON")

NUM_TOKENS = 100  # beyond the windows
FILE_TYPES = {  # llama_ftype
    "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "Q2_K": 10, "Q3_K_M": 12, "Q4_K_M": 15,
    "Q5_K_M": 17, "Q6_K": 18, "IQ4_NL": 25, "IQ4_XS": 30, "BF16": 32,
}  # fmt: skip

LOGITS = """
import json, sys
import llama_cpp as api
import numpy as np

ids, files = json.load(sys.stdin)
for file in files:
    model = api.llama_model_load_from_file(file.encode(), api.llama_model_default_params())
    params = api.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = 256
    params.n_threads = params.n_threads_batch = 1
    params.type_k = params.type_v = 0
    params.flash_attn_type = 0
    params.swa_full = True
    context = api.llama_init_from_model(model, params)
    batch = api.llama_batch_init(len(ids), 0, 1)
    batch.n_tokens = len(ids)
    for i, token in enumerate(ids):
        batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, i, 1
        batch.seq_id[i][0], batch.logits[i] = 0, 1
    assert api.llama_decode(context, batch) == 0
    size = api.llama_vocab_n_tokens(api.llama_model_get_vocab(model))
    logits = np.ctypeslib.as_array(api.llama_get_logits(context), (len(ids), size))
    np.save(file + ".npy", logits)
"""

QUANTIZE = """
import json, sys
import llama_cpp as api

source, jobs = json.load(sys.stdin)
for path, file_type in jobs:
    params = api.llama_model_quantize_default_params()
    params.ftype, params.nthread = file_type, 1
    assert api.llama_model_quantize(source.encode(), path.encode(), params) == 0
"""


def run_llama(script: str, *data: Any) -> None:
    found = subprocess.run(
        [LLAMA_PYTHON, "-c", script], input=json.dumps(data), capture_output=True, text=True
    )
    assert found.returncode == 0, found.stderr[-2000:]


# llama.cpp knows no windows of Qwen 2 and Mistral.
NAMES = [name for name in tiny_models.FAMILIES if name not in ("qwen2-windows", "mistral")]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every family in F32, with the logits of llama.cpp beside it."""
    directory = tmp_path_factory.mktemp("families")
    paths = {}
    for name in NAMES:
        # The scale of Gemma must be what llama.cpp takes it to be.
        changes = {"query_pre_attn_scalar": 16} if name.startswith("gemma") else {}
        if name.startswith("gemma"):
            changes["layer_types"] = pattern(name)
        model = tiny_models.build(name, **changes)
        paths[name] = gguf_models.write(model, directory / f"{name}.gguf")
    run_llama(LOGITS, token_ids(), [str(path) for path in paths.values()])
    return paths


def pattern(name: str) -> list[str]:
    period, layers = (2, 3) if name == "gemma2" else (6, 7)
    return [
        "full_attention" if (i + 1) % period == 0 else "sliding_attention" for i in range(layers)
    ]


def token_ids() -> list[int]:
    ids: list[int] = np.random.default_rng(0).integers(0, 101, NUM_TOKENS).tolist()
    return ids


@pytest.mark.parametrize("name", NAMES)
def test_the_same_logits(name: str, files: dict[str, Path]) -> None:
    theirs = np.load(f"{files[name]}.npy")
    ours = spec_reference.logits(open_checkpoint(files[name]), token_ids())
    bound = 4e-3 if name.startswith("gemma") else 1e-5  # its GELU is a table of float16
    assert np.abs(ours - theirs).max() < bound * theirs.std()


@pytest.mark.parametrize("name", ["llama", "phi3"])
def test_what_its_quantizer_writes(name: str, tmp_path: Path) -> None:
    import gguf

    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 8}
    model = tiny_models.build(name, **sizes, num_key_value_heads=2, num_hidden_layers=1)
    source = gguf_models.write(model, tmp_path / "F32.gguf")
    jobs = [(str(tmp_path / f"{kind}.gguf"), number) for kind, number in FILE_TYPES.items()]
    run_llama(QUANTIZE, str(source), jobs)
    seen = set()
    for path, _ in jobs:
        stored = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
        seen |= {tensor.tensor_type.name for tensor in stored.values()}
        checkpoint = open_checkpoint(path)
        for tensor_name, original in expected_tensors(name, model).items():
            matrix = checkpoint.matrix(tensor_name)
            assert isinstance(matrix, StoredTensor | GroupedMatrix)
            values = matrix.to_float32()
            assert (checkpoint.tensor(tensor_name).to_float32() == values).all()
            error = np.sqrt(np.mean((values - original.numpy()) ** 2)) / original.std().item()
            assert error < 0.35  # two bits; rows in other places would be far beyond 1
        check_bytes(checkpoint, stored)
    assert seen >= {"Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "Q5_1", "F32"}


def check_bytes(checkpoint: Any, stored: dict[str, Any]) -> None:
    """Matrices whose rows stay in their places: as the gguf package reads them, bit for bit."""
    import gguf

    places = {
        "embed": "token_embd",
        "layers.0.down": "blk.0.ffn_down",
        "layers.0.o": "blk.0.attn_output",
    }
    for ours, theirs in places.items():
        tensor = stored[f"{theirs}.weight"]
        expected = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        assert (checkpoint.matrix(ours).to_float32() == expected).all()
