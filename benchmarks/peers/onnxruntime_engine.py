"""onnxruntime-genai: one static batch (it has no continuous batching on the CPU)."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import onnxruntime
import onnxruntime_genai
from worker import Generated, Options


class OnnxRuntimeEngine:
    def __init__(self, model: Path, options: Options) -> None:
        config = onnxruntime_genai.Config(str(model))
        config.clear_providers()
        self._model = onnxruntime_genai.Model(config)
        self.about = (
            f"onnxruntime-genai {onnxruntime_genai.__version__}, onnxruntime "
            f"{onnxruntime.__version__}; KV f32; static batch, no prefix cache"
        )

    def generate(self, prompts: list[list[int]], num_tokens: int) -> Generated:
        length = len(prompts[0])
        params = onnxruntime_genai.GeneratorParams(self._model)
        # min_length keeps end tokens from being chosen.
        params.set_search_options(
            batch_size=len(prompts),
            max_length=length + num_tokens,
            min_length=length + num_tokens,
            do_sample=False,
        )
        generator = onnxruntime_genai.Generator(self._model, params)
        generator.append_tokens(np.array(prompts, dtype=np.int32))
        generator.generate_next_token()
        first_at = time.perf_counter() if len(prompts) == 1 else None
        for _ in range(num_tokens - 1):
            generator.generate_next_token()
        tokens = [
            list(generator.get_sequence(row)[length : length + num_tokens])
            for row in range(len(prompts))
        ]
        return Generated(tokens, first_at)


def load(model: Path, options: Options) -> OnnxRuntimeEngine:
    return OnnxRuntimeEngine(model, options)
