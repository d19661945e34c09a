"""llama.cpp through llama-cpp-python's C API: one batch of all sequences a step, greedy sampler."""

from __future__ import annotations

import time
from pathlib import Path

import llama_cpp as api
import numpy as np
from worker import Generated, Options

BATCH = 4096
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
        params.n_batch = BATCH
        params.n_ubatch = UBATCH
        params.n_seq_max = options.max_streams
        params.n_threads = params.n_threads_batch = options.threads
        params.kv_unified = True
        kv = "f16"
        if options.format == "F32":
            params.type_k = params.type_v = api.GGML_TYPE_F32
            kv = "f32"
        self._context = api.llama_init_from_model(self._model, params)
        if not self._context:
            raise RuntimeError("llama.cpp cannot make a context")
        self._memory = api.llama_get_memory(self._context)
        self._sampler = api.llama_sampler_init_greedy()
        self._batch = api.llama_batch_init(params.n_batch, 0, 1)
        self._vocab_size = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self._model))
        self._keep_prompt = options.prefix_cache
        self._kept: list[int] = []  # tokens whose K and V sequence 0 holds
        self.about = (
            f"llama-cpp-python {api.__version__}, built for this CPU ({features()}); "
            f"ubatch {UBATCH}, flash attention auto, KV {kv}; prefix: the last sequence is kept"
        )

    def generate(self, prompts: list[list[int]], num_tokens: int) -> Generated:
        known = self._forget_all_but_prefix(prompts)
        rows = [
            (token, position, seq, position == len(prompt) - 1)
            for seq, prompt in enumerate(prompts)
            for position, token in enumerate(prompt)
            if position >= known
        ]
        outputs: list[list[int]] = [[] for _ in prompts]
        for start in range(0, len(rows), BATCH):
            self._decode(rows[start : start + BATCH], outputs)
        first_at = time.perf_counter() if len(prompts) == 1 else None
        length = len(prompts[0])
        for step in range(num_tokens - 1):
            rows = [(out[-1], length + step, seq, True) for seq, out in enumerate(outputs)]
            self._decode(rows, outputs)
        self._kept = prompts[0] + outputs[0][:-1]
        return Generated(outputs, first_at)

    def logits(self, window: list[int]) -> np.ndarray:
        self._forget_all_but_prefix([window, []])
        rows = [(token, position, 0, True) for position, token in enumerate(window)]
        self._fill(rows)
        values = np.ctypeslib.as_array(
            api.llama_get_logits(self._context), (len(window), self._vocab_size)
        )
        return values.copy()

    def _forget_all_but_prefix(self, prompts: list[list[int]]) -> int:
        """How many tokens of the only prompt are in the cache and stay there."""
        if not self._keep_prompt or len(prompts) != 1:
            api.llama_memory_clear(self._memory, True)
            return 0
        pairs = zip(self._kept, prompts[0][:-1], strict=False)
        known = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
        if known is None:
            known = min(len(self._kept), len(prompts[0]) - 1)
        api.llama_memory_seq_rm(self._memory, 0, known, -1)
        return known

    def _decode(self, rows: list[tuple[int, int, int, bool]], outputs: list[list[int]]) -> None:
        self._fill(rows)
        for i, (_, _, seq, wanted) in enumerate(rows):
            if wanted:
                outputs[seq].append(api.llama_sampler_sample(self._sampler, self._context, i))

    def _fill(self, rows: list[tuple[int, int, int, bool]]) -> None:
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


def features() -> str:
    """What it was compiled with, of `CPU : SSE3 = 1 | AVX = 1 | ... = 0`."""
    parts = api.llama_print_system_info().decode().removeprefix("CPU :").split("|")
    pairs = (part.partition("=") for part in parts)
    return " ".join(name.strip() for name, _, value in pairs if value.strip() not in ("", "0"))


def load(model: Path, options: Options) -> LlamaCppEngine:
    return LlamaCppEngine(model, options)
