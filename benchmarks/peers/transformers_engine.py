"""Hugging Face transformers: eager, SDPA attention, bf16, one static batch."""

from __future__ import annotations

import time
from pathlib import Path

import torch
import transformers
from worker import Generated, Options


class Stopwatch(transformers.generation.streamers.BaseStreamer):
    """Notes when the first token came. transformers gives it the prompt before that."""

    def __init__(self) -> None:
        self.moments: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        self.moments.append(time.perf_counter())

    def end(self) -> None:
        pass


class TransformersEngine:
    def __init__(self, model: Path, options: Options) -> None:
        torch.set_num_threads(options.threads)
        self._model = transformers.AutoModelForCausalLM.from_pretrained(
            model, dtype=torch.bfloat16
        ).eval()
        self.about = (
            f"transformers {transformers.__version__}, torch {torch.__version__}; eager, sdpa, "
            "KV bf16; static batch, no prefix cache"
        )

    @torch.inference_mode()
    def generate(self, prompts: list[list[int]], num_tokens: int) -> Generated:
        ids = torch.tensor(prompts)
        stopwatch = Stopwatch() if len(prompts) == 1 else None
        result = self._model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=num_tokens,
            min_new_tokens=num_tokens,
            do_sample=False,
            pad_token_id=0,
            streamer=stopwatch,
        )
        first_at = stopwatch.moments[1] if stopwatch else None
        return Generated(result[:, ids.shape[1] :].tolist(), first_at)


def load(model: Path, options: Options) -> TransformersEngine:
    return TransformersEngine(model, options)
