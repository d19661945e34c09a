"""OpenVINO GenAI: ContinuousBatchingPipeline over an IR that optimum-intel exported."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import openvino
import openvino_genai
from worker import Options

BLOCK = 32


class OpenVinoEngine:
    def __init__(self, model: Path, options: Options) -> None:
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.num_kv_blocks = math.ceil(options.max_tokens / BLOCK) + 2 * options.max_streams
        scheduler.max_num_batched_tokens = 4096
        scheduler.max_num_seqs = options.max_streams
        scheduler.enable_prefix_caching = False
        properties = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": options.threads,
        }
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(
            str(model), scheduler, "CPU", properties
        )

    def generate(self, prompts: list[list[int]], num_tokens: int) -> list[list[int]]:
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = config.min_new_tokens = num_tokens
        config.ignore_eos = True
        config.do_sample = False
        inputs = [openvino.Tensor(np.array([ids], dtype=np.int64)) for ids in prompts]
        results = self._pipeline.generate(inputs, [config] * len(prompts))
        return [list(result.m_generation_ids[0]) for result in results]


def load(model: Path, options: Options) -> OpenVinoEngine:
    return OpenVinoEngine(model, options)
