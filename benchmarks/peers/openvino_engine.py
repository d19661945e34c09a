"""OpenVINO GenAI: ContinuousBatchingPipeline over an IR that optimum-intel exported."""

from __future__ import annotations

import math
import time
from pathlib import Path

import numpy as np
import openvino
import openvino_genai
from worker import Generated, Options

BLOCK = 32
BATCH = 4096


class OpenVinoEngine:
    """KV cache u8, which is its default on CPUs; named so that the table can rely on it."""

    def __init__(self, model: Path, options: Options) -> None:
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.num_kv_blocks = math.ceil(options.max_tokens / BLOCK) + 2 * options.max_streams
        scheduler.max_num_batched_tokens = BATCH
        scheduler.max_num_seqs = options.max_streams
        scheduler.enable_prefix_caching = options.prefix_cache
        properties = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": options.threads,
            "KV_CACHE_PRECISION": "u8",
        }
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(
            str(model), scheduler, "CPU", properties
        )
        self.about = (
            f"openvino-genai {openvino_genai.__version__}, ContinuousBatchingPipeline; "
            f"latency hint, {BATCH} batched tokens, KV u8; prefix caching where measured"
        )

    def generate(self, prompts: list[list[int]], num_tokens: int) -> Generated:
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = config.min_new_tokens = num_tokens
        config.ignore_eos = True
        config.do_sample = False
        inputs = [openvino.Tensor(np.array([ids], dtype=np.int64)) for ids in prompts]
        start = time.perf_counter()
        results = self._pipeline.generate(inputs, [config] * len(prompts))
        tokens = [list(result.m_generation_ids[0]) for result in results]
        if len(prompts) > 1:
            return Generated(tokens)
        milliseconds = results[0].perf_metrics.get_ttft().mean
        return Generated(tokens, start + milliseconds / 1e3)


def load(model: Path, options: Options) -> OpenVinoEngine:
    return OpenVinoEngine(model, options)
