"""The executor's logits against the eager float32 decoder that calibration uses
(trimtab.executors.torch_model), and against transformers where that is installed: small models of
every kind of layer that the spec knows, and the built-in model with its trained weights.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from gpu.batches import sequence_logits
from gpu.checkpoints import RandomCheckpoint
from gpu.context import Context, Settings
from gpu.executors import open_executor
from gpu.shapes import spec_of
from trimtab.config import KV_FORMATS
from trimtab.executors.base import Float32Array
from trimtab.models.spec import LayerSpec, ModelSpec, RopeSpec

if TYPE_CHECKING:
    from trimtab.checkpoints.base import Checkpoint

LENGTH = 100
TINY_LENGTH = 24
# Share of the logits' own deviation (root mean square) by which they may differ. bf16 keeps 8 bits,
# and rounds a dozen times a layer; fp8 and int8 round activations to 4 and 7 bits besides.
FLOAT_ERROR = 2e-4
ROUNDED_ERROR = {"bf16": 0.04, "int4": 0.04, "fp8": 0.15}
KV_ERROR = {"bf16": 0.04, "int8": 0.06, "fp8": 0.15}


def run(context: Context) -> None:
    settings = context.settings
    plain = small_specs()["plain"]
    context.plan(
        [
            *(f"f32 {name}" for name in small_specs()),
            *(f"{weights} weights" for weights in ROUNDED_ERROR),
            *(f"{kv} KV cache" for kv in KV_ERROR),
            "built-in model",
            "transformers",
        ]
    )
    for name, spec in small_specs().items():
        checkpoint = RandomCheckpoint(spec, "bf16", settings.device, settings.seed)
        context.attempt(
            f"f32 {name}",
            lambda: compare(settings, checkpoint, FLOAT_ERROR, weights="f32", kv_cache="f32"),  # noqa: B023
        )
    for weights, error in ROUNDED_ERROR.items():
        stored = RandomCheckpoint(plain, weights, settings.device, settings.seed, 32)
        context.attempt(
            f"{weights} weights",
            lambda: compare(settings, stored, error),  # noqa: B023
        )
    for kv, error in KV_ERROR.items():
        if kv not in KV_FORMATS:
            context.leave_out(f"{kv} KV cache", "no format of this tree")
            continue
        stored = RandomCheckpoint(plain, "bf16", settings.device, settings.seed)
        context.attempt(
            f"{kv} KV cache",
            lambda: compare(settings, stored, error, kv_cache=kv),  # noqa: B023
        )
    context.attempt("built-in model", lambda: compare(settings, builtin(), ROUNDED_ERROR["bf16"]))
    try:
        from gpu.transformers_logits import compare_with_transformers
    except Exception as error:  # its imports fail in many ways where a package is missing
        context.leave_out("transformers", f"cannot be imported: {error}"[:200])
        return
    context.attempt(
        "transformers",
        lambda: compare_with_transformers(settings, "qwen3-0.6b", FLOAT_ERROR),
    )


def small_specs() -> dict[str, ModelSpec]:
    """Every choice of ModelSpec once."""
    plain = replace(spec_of("llama-3.1-8b", True), max_context=256)
    qwen = replace(spec_of("qwen3-0.6b", True), max_context=256)
    rope = plain.ropes[0]
    windowed = LayerSpec(sliding_window=13)
    return {
        "plain": plain,
        "qk-norm, tied": qwen,
        "grouped 8 to 1, head 128": replace(plain, num_heads=8, num_kv_heads=1, head_dim=128),
        "one head each, head 64": replace(plain, num_kv_heads=4, head_dim=64),
        "biases": replace(plain, qkv_bias=True, output_bias=True, mlp_bias=True),
        "windows, soft caps, post-norms": replace(
            plain,
            architecture="Gemma2ForCausalLM",
            layers=(windowed, LayerSpec()),
            attention_softcap=20.0,
            logits_softcap=10.0,
            post_norms=True,
            norm_weight_offset=1.0,
            activation="gelu_tanh",
            embedding_scale=8.0,
            tied_embeddings=True,
        ),
        "two ropes, part of a head": replace(
            plain,
            layers=(LayerSpec(rope=0), LayerSpec(rope=1)),
            ropes=(rope, RopeSpec(tuple(0.1 * f for f in rope.inv_freq[:4]), amplitude=1.2)),
        ),
    }


def builtin() -> Checkpoint:
    from trimtab.builtin import target_path
    from trimtab.checkpoints import open_checkpoint

    return open_checkpoint(target_path())


def compare(
    settings: Settings, checkpoint: Checkpoint, most: float, **options: Any
) -> dict[str, Any]:
    """The executor, prompt in two chunks and then a few single rows, against the eager decoder."""
    from trimtab.executors.torch_model import model_logits

    ids = token_ids(settings, checkpoint.spec)
    executor = open_executor(settings, checkpoint, num_blocks=64, **options)
    try:
        first = 2 * len(ids) // 3
        ours = sequence_logits(executor, ids.tolist(), [first, len(ids) - first - 4, *[1] * 4])
    finally:
        executor.close()
    tokens = torch.from_numpy(ids)[None]
    with torch.inference_mode(), exact_products():
        expected = model_logits(checkpoint, tokens, device=settings.device)[0].cpu().numpy()
    return agreement(ours, expected, most)


def token_ids(settings: Settings, spec: ModelSpec) -> npt.NDArray[np.int64]:
    """Of one random sequence."""
    length = TINY_LENGTH if settings.tiny else LENGTH
    return np.random.default_rng(settings.seed).integers(0, spec.vocab_size, length)


def agreement(ours: Float32Array, expected: Float32Array, most: float) -> dict[str, Any]:
    """`error`: root mean square of the difference, as a share of that of the logits themselves
    around their mean; row by row, the worst one."""
    difference = np.sqrt(np.square(ours - expected).mean(axis=1))
    deviation = expected.std(axis=1)
    error = float((difference / deviation).max())
    same = float((ours.argmax(1) == expected.argmax(1)).mean())
    passed = bool(np.isfinite(ours).all() and error <= most)
    return {"passed": passed, "error": error, "at_most": most, "same_top_token": same}


class exact_products:  # noqa: N801
    """Float32 products of torch without TF32, inside."""

    def __enter__(self) -> None:
        self._before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")

    def __exit__(self, *_: object) -> None:
        torch.set_float32_matmul_precision(self._before)
