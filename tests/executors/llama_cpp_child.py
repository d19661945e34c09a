"""Runs in an environment that has llama.cpp (TRIMTAB_LLAMA_PYTHON), on one F32 file:

    python llama_cpp_child.py F32.gguf TOKENS.npy OUT NAME=FILE_TYPE...

quantizes it to OUT/NAME.gguf and writes the logits of all tokens to OUT/NAME.npy.
"""

from __future__ import annotations

import sys
from pathlib import Path

import llama_cpp as api
import numpy as np


def logits(path: Path, tokens: np.ndarray) -> np.ndarray:
    model = api.llama_model_load_from_file(str(path).encode(), api.llama_model_default_params())
    params = api.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = 256
    params.n_threads = params.n_threads_batch = 1
    params.type_k = params.type_v = api.GGML_TYPE_F32
    params.flash_attn_type = api.LLAMA_FLASH_ATTN_TYPE_DISABLED  # on, it rounds to f16
    context = api.llama_init_from_model(model, params)
    batch = api.llama_batch_init(len(tokens), 0, 1)
    batch.n_tokens = len(tokens)
    for i, token in enumerate(tokens):
        batch.token[i], batch.pos[i], batch.n_seq_id[i] = int(token), i, 1
        batch.seq_id[i][0], batch.logits[i] = 0, True
    if api.llama_decode(context, batch) != 0:
        raise SystemExit(f"llama.cpp cannot run {path}")
    size = api.llama_vocab_n_tokens(api.llama_model_get_vocab(model))
    values = np.ctypeslib.as_array(api.llama_get_logits(context), (len(tokens), size)).copy()
    api.llama_batch_free(batch)
    api.llama_free(context)
    api.llama_model_free(model)
    return values


def main() -> None:
    source, tokens, out = Path(sys.argv[1]), np.load(sys.argv[2]), Path(sys.argv[3])
    api.llama_backend_init()
    np.save(out / "F32.npy", logits(source, tokens))
    for item in sys.argv[4:]:
        name, _, file_type = item.partition("=")
        params = api.llama_model_quantize_default_params()
        params.ftype = int(file_type)
        target = out / f"{name}.gguf"
        if api.llama_model_quantize(str(source).encode(), str(target).encode(), params) != 0:
            raise SystemExit(f"llama.cpp cannot quantize to {name}")
        np.save(out / f"{name}.npy", logits(target, tokens))


main()
