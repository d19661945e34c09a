"""What the torch executor takes of a device's memory, predicted; `memory.py` is of the CPU's."""

from __future__ import annotations

from trimtab.bench.footprint import footprint
from trimtab.config import ExecutorConfig, SchedulerConfig
from trimtab.models.spec import ModelSpec

BLOCK_TOKENS = 16  # of gpu/capacity.py
LOGIT_ROWS = 256  # of gpu/executor.py: logits of so many rows exist at once, and their softmax


def device_block_bytes(spec: ModelSpec, executor: ExecutorConfig) -> int:
    return BLOCK_TOKENS * footprint(spec, executor).kv_bytes_per_token


def device_activation_bytes(
    spec: ModelSpec, executor: ExecutorConfig, scheduler: SchedulerConfig
) -> int:
    """Of the largest step, about: residual and normed rows, and the wider of attention (q, k, v,
    rotated q, what comes out) and of the gated layer. Plain torch holds some of it in float32."""
    width = 2 if executor.device == "cuda" and executor.weights != "f32" else 4
    queries, keys = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    widest = max(3 * queries + 2 * keys, 3 * spec.intermediate_size)
    rows = min(scheduler.max_batch_tokens, spec.max_context)
    return rows * width * (3 * spec.hidden_size + widest) + 2 * 4 * LOGIT_ROWS * spec.vocab_size
