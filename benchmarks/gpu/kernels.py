"""The kernels on the device against their references in plain torch, on the same tensors.

Ragged batches like those of a server: prompts, chunks behind a context, single rows, rows of drafts
and empty sequences, in the shapes of the models. What both round to bf16 may differ by one step of
it where the sums, taken in another order, lie at a boundary; quantized values by one step.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpu.checkpoints import RandomCheckpoint
from gpu.context import Context
from gpu.kernel_cases import attention_cases, attention_inputs, kv_formats, rope_inputs
from gpu.kernel_sampling import sampling_cases
from gpu.shapes import spec_of

TESTS = Path(__file__).resolve().parents[2] / "tests" / "executors" / "gpu"
BF16_STEP = 2.0**-7  # relative, between neighbours at worst
SLACK = 2.0**-8  # of the root mean square: results near zero are differences of larger numbers
# Kernels round the weights of positions to bf16 for the matrix unit, the reference does not: a
# standard deviation of 0.1 % of the root mean square, and there are millions of elements.
ATTENTION_SLACK = 2.0**-7
ROWS = (1, 7, 64, 300)
TINY_ROWS = (1, 5)


def run(context: Context) -> None:
    from trimtab.executors.gpu.reference import ReferenceOps

    settings = context.settings
    kernels = kernel_operations(context)
    if kernels is None:
        return
    check = KernelCheck(kernels, ReferenceOps(), settings.device, settings.seed, settings.tiny)
    cases = all_cases(check)
    context.plan(cases)
    with torch.inference_mode():
        for name, work in cases.items():
            if context.has_time(name, 0.5):
                context.attempt(name, work)


def kernel_operations(context: Context) -> Any:
    """TritonOps; None, and the section is skipped, where there can be none. Not on a GPU: there,
    that they are missing is an error."""
    cuda = context.settings.device == "cuda"
    try:
        if not cuda:
            repair_interpreter()
        return importlib.import_module("trimtab.executors.gpu.triton_ops").TritonOps()
    except ModuleNotFoundError as error:
        missing = {
            "triton": "there is no Triton here",
            "trimtab.executors.gpu.triton_ops": "this tree has no TritonOps yet, only references",
        }
        if cuda or error.name not in missing:
            raise
        context.skip(missing[error.name])
        return None


def repair_interpreter() -> None:
    """The interpreter's own errors, as the tests of the kernels mend them."""
    sys.path.append(str(TESTS))
    importlib.import_module("interpreter_repairs").repair_interpreter()


def all_cases(check: KernelCheck) -> dict[str, Callable[[], dict[str, Any]]]:
    cases: dict[str, Callable[[], dict[str, Any]]] = {}
    for rows in TINY_ROWS if check.tiny else ROWS:
        cases[f"norms, {rows} rows"] = lambda rows=rows: check.norms(rows)
        cases[f"gated, {rows} rows"] = lambda rows=rows: check.gated(rows)
        for weights in ("bf16", "fp8", "int4"):
            cases[f"{weights} product, {rows} rows"] = lambda r=rows, w=weights: check.linear(r, w)
    for kv in kv_formats():
        cases[f"rope and write, {kv}"] = lambda kv=kv: check.rope(kv)
        for name in attention_cases(check.tiny):
            cases[f"attention, {name}, {kv}"] = lambda n=name, kv=kv: check.attention(n, kv)
    for name, sampling in sampling_cases(check.seed).items():
        cases[f"sampling, {name}"] = lambda sampling=sampling: check.sampling(sampling)
    return cases


class KernelCheck:
    """Every method compares the kernels of one kind, and gives the largest deviation that is
    allowed as 1."""

    def __init__(self, ops: Any, reference: Any, device: str, seed: int, tiny: bool) -> None:
        self.ops, self.reference = ops, reference
        self.device, self.seed, self.tiny = device, seed, tiny
        self.spec = spec_of("llama-3.1-8b", tiny)
        self._generator = torch.Generator(device)
        self._generator.manual_seed(seed)

    def random(self, *shape: int) -> Tensor:
        drawn = torch.randn(shape, generator=self._generator, device=self.device)
        return drawn.to(torch.bfloat16)

    def norms(self, rows: int) -> dict[str, Any]:
        found = {}
        for hidden in {self.spec.hidden_size, spec_of("qwen3-0.6b", self.tiny).hidden_size}:
            x, residual = self.random(rows, hidden), self.random(rows, hidden)
            weight = self.random(hidden).float()
            for offset in (0.0, 1.0):
                one = self.both("rms_norm", x, weight, 1e-5, offset)
                two = self.both("add_rms_norm", x, residual, weight, 1e-5, offset)
                found[f"{hidden} {offset}"] = max(deviation(*one), deviation(*two))
            for kind in ("int8", "fp8"):
                found[f"{hidden} {kind}"] = max(
                    quantized_deviation(*self.both("quantize_rows", x, kind)),
                    quantized_deviation(
                        *self.both("rms_norm_quantize", x, weight, 1e-5, 0.0, kind)
                    ),
                    quantized_deviation(
                        *self.both("add_rms_norm_quantize", x, residual, weight, 1e-5, 0.0, kind)
                    ),
                )
        return verdict(found)

    def gated(self, rows: int) -> dict[str, Any]:
        found = {}
        both = self.random(rows, 2 * self.spec.intermediate_size)
        for activation in ("silu", "gelu_tanh"):
            found[activation] = deviation(*self.both("gated", both, activation))
            for kind in ("int8", "fp8"):
                found[f"{activation} {kind}"] = quantized_deviation(
                    *self.both("gated_quantize", both, activation, kind)
                )
        return verdict(found)

    def linear(self, rows: int, weights: str) -> dict[str, Any]:
        """A layer's four products, and, of float weights, one with a bias and float32 results."""
        from trimtab.executors.gpu.matrix_loading import load_matrix

        checkpoint = RandomCheckpoint(
            self.spec, weights, self.device, self.seed, 32 if self.tiny else 128
        )
        found = {}
        for parts in (("q", "k", "v"), ("o",), ("gate", "up"), ("down",)):
            stored = [checkpoint.matrix(f"layers.0.{part}") for part in parts]
            matrix = load_matrix(stored, torch.bfloat16, self.device)
            x = self.random(rows, matrix.shape[1])
            bias = self.random(matrix.shape[0]).float()
            name = "+".join(parts)
            if matrix.kind is None:
                found[name] = deviation(*self.both("linear", x, matrix, None))
                wide = self.both("linear", x, matrix, bias, torch.float32)
                found[f"{name} bias"] = deviation(*wide)
            else:
                quantized = self.reference.quantize_rows(x, matrix.kind)
                pair = self.both("linear_quantized", quantized, matrix, bias, torch.bfloat16)
                found[name] = deviation(*pair)
        return verdict(found)

    def rope(self, kv: str) -> dict[str, Any]:
        found = {}
        for name, inputs in rope_inputs(self.spec, self.tiny, self.device, self.seed, kv).items():
            caches = inputs.caches()
            q = [
                ops.qk_norm_rope_write(*inputs.arguments, cache)
                for ops, cache in zip((self.ops, self.reference), caches, strict=True)
            ]
            found[f"{name} q"] = deviation(*q)
            for part in ("keys", "values"):
                stored = [dequantized(cache, part) for cache in caches]
                found[f"{name} {part}"] = deviation(*stored, step=stored_step(kv))
        return verdict(found)

    def attention(self, name: str, kv: str) -> dict[str, Any]:
        case = attention_cases(self.tiny)[name]
        inputs = attention_inputs(case, kv, self.device, self.seed)
        pair = self.both("attention", *inputs)
        return verdict({name: deviation(*pair, slack=ATTENTION_SLACK)})

    def sampling(self, sampling: Any) -> dict[str, Any]:
        """Tokens are to be the same ones; log-probabilities nearly."""
        logits, batch = sampling.on_device(self.device)
        ours, expected = (ops.sample(logits, batch) for ops in (self.ops, self.reference))
        different = int((ours.tokens != expected.tokens).sum())
        worst = (
            float((ours.logprobs - expected.logprobs).abs().max()) if batch.wants_logprobs else 0.0
        )
        return {
            "passed": different == 0 and worst < 1e-3,
            "different_tokens": different,
            "rows": len(ours.tokens),
            "logprob_difference": worst,
        }

    def both(self, name: str, *arguments: Any) -> tuple[Any, Any]:
        ours, expected = (getattr(ops, name)(*arguments) for ops in (self.ops, self.reference))
        return ours, expected


def deviation(ours: Any, expected: Any, step: float = BF16_STEP, slack: float = SLACK) -> float:
    """Largest difference, as a multiple of what is allowed; infinite if something is not finite.
    Of several tensors the worst."""
    if isinstance(ours, tuple):
        return max(deviation(a, b, step, slack) for a, b in zip(ours, expected, strict=True))
    a, b = ours.float(), expected.float()
    if a.shape != b.shape or not bool(torch.isfinite(a).all()):
        return float("inf")
    allowed = step * b.abs() + slack * b.square().mean().sqrt() + 1e-30
    return float(((a - b).abs() / allowed).max()) if a.numel() else 0.0


def quantized_deviation(ours: Any, expected: Any) -> float:
    """Of (values, scales[, the sum]): by what they stand for, one step apart at most."""
    step = 2.0**-3 if ours[0].dtype == torch.float8_e4m3fn else 0.0
    ours_values, values = (one[0].float() * one[1][:, None] for one in (ours, expected))
    whole = expected[1][:, None] * (1.02 if step == 0 else 2.0**-9)
    allowed = step * values.abs() * 1.02 + whole + 1e-30
    worst = float(((ours_values - values).abs() / allowed).max())
    scales = float(((ours[1] - expected[1]).abs() / (expected[1].abs() * 1e-2 + 1e-30)).max())
    rest = deviation(ours[2], expected[2]) if len(ours) > 2 else 0.0
    return max(worst, scales, rest)


def dequantized(cache: Any, part: str) -> Tensor:
    stored = getattr(cache, part).float()
    scales = getattr(cache, {"keys": "key_scales", "values": "value_scales"}[part])
    return stored if scales is None else stored * scales.float()[..., None]


def stored_step(kv: str) -> float:
    """Neighbours, relative to the larger: of int8 they are as far apart near zero as elsewhere, so
    it is the slack that bounds them."""
    return {"f32": 1e-5, "bf16": BF16_STEP, "fp8": 2.0**-3}.get(kv, 2.0**-5)


def verdict(found: dict[str, float]) -> dict[str, Any]:
    worst = max(found, key=lambda name: found[name])
    return {"passed": found[worst] <= 1, "worst": found[worst], "where": worst}
