"""llama.cpp through llama-cpp-python's C API: one batch of all sequences a step, greedy sampler."""

from __future__ import annotations

from pathlib import Path

import llama_cpp as api
from worker import Options

UBATCH = 512


class LlamaCppEngine:
    def __init__(self, model: Path, options: Options) -> None:
        api.llama_backend_init()
        self._model = api.llama_model_load_from_file(
            str(model).encode(), api.llama_model_default_params()
        )
        if not self._model:
            raise RuntimeError(f"llama.cpp cannot load {model.name}")
        params = api.llama_context_default_params()
        params.n_ctx = options.max_tokens + 64 * options.max_streams
        params.n_batch = 4096
        params.n_ubatch = UBATCH
        params.n_seq_max = options.max_streams
        params.n_threads = params.n_threads_batch = options.threads
        params.kv_unified = True
        self._context = api.llama_init_from_model(self._model, params)
        if not self._context:
            raise RuntimeError("llama.cpp cannot make a context")
        self._sampler = api.llama_sampler_init_greedy()
        self._batch = api.llama_batch_init(params.n_batch, 0, 1)
        self._capacity = int(params.n_batch)

    def generate(self, prompts: list[list[int]], num_tokens: int) -> list[list[int]]:
        api.llama_memory_clear(api.llama_get_memory(self._context), True)
        outputs: list[list[int]] = [[] for _ in prompts]
        rows = [
            (token, position, seq, position == len(prompt) - 1)
            for seq, prompt in enumerate(prompts)
            for position, token in enumerate(prompt)
        ]
        for start in range(0, len(rows), self._capacity):
            self._decode(rows[start : start + self._capacity], outputs)
        length = len(prompts[0])
        for step in range(num_tokens - 1):
            rows = [(out[-1], length + step, seq, True) for seq, out in enumerate(outputs)]
            self._decode(rows, outputs)
        return outputs

    def _decode(self, rows: list[tuple[int, int, int, bool]], outputs: list[list[int]]) -> None:
        batch = self._batch
        batch.n_tokens = len(rows)
        for i, (token, position, seq, wanted) in enumerate(rows):
            batch.token[i] = token
            batch.pos[i] = position
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = seq
            batch.logits[i] = wanted
        if api.llama_decode(self._context, batch) != 0:
            raise RuntimeError("llama_decode failed")
        for i, (_, _, seq, wanted) in enumerate(rows):
            if wanted:
                outputs[seq].append(api.llama_sampler_sample(self._sampler, self._context, i))


def load(model: Path, options: Options) -> LlamaCppEngine:
    return LlamaCppEngine(model, options)
