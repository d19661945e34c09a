"""Hugging Face transformers: eager, SDPA attention, bf16, one static batch."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM
from worker import Options


class TransformersEngine:
    def __init__(self, model: Path, options: Options) -> None:
        torch.set_num_threads(options.threads)
        self._model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16).eval()

    @torch.inference_mode()
    def generate(self, prompts: list[list[int]], num_tokens: int) -> list[list[int]]:
        ids = torch.tensor(prompts)
        result = self._model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=num_tokens,
            min_new_tokens=num_tokens,
            do_sample=False,
            pad_token_id=0,
        )
        return result[:, ids.shape[1] :].tolist()


def load(model: Path, options: Options) -> TransformersEngine:
    return TransformersEngine(model, options)
