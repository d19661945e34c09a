"""What torch.compile would give: the operations of a step that are plain torch, as they are and
compiled, both as a captured graph would run them.

Why the executor does not use it is in docs/gpu.md; here is what that costs. Of each operation:
seconds, seconds of compilation for all numbers of rows, whether the bits are those of plain torch,
and whether a row's bits depend on how many there are.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpu.context import Context
from gpu.kernel_sampling import sampling_cases
from gpu.shapes import spec_of
from gpu.timing import device_seconds, median

ROWS = (1, 256)
PENALIZED_ROWS = (1, 24)
TINY_ROWS = (1, 3)
CASES = ("embedding", "block tables", "softcap", "penalties")
CONTEXT = 8192
TINY_CONTEXT = 64

Work = tuple[Callable[..., Any], tuple[Any, ...]]


def run(context: Context) -> None:
    tiny = context.settings.tiny
    context.plan(CASES)
    with torch.inference_mode():
        for name in CASES:
            rows = TINY_ROWS if tiny else PENALIZED_ROWS if name == "penalties" else ROWS
            if context.has_time(name, 1.0 if tiny else 6.0):
                context.attempt(name, lambda: compared(context, name, rows))  # noqa: B023


def compared(context: Context, name: str, row_counts: tuple[int, ...]) -> dict[str, Any]:
    torch._dynamo.reset()
    device, tiny = context.settings.device, context.settings.tiny
    backend = "eager" if tiny else "inductor"  # the same way through, without a compiler
    compiled: Any = None
    found: dict[str, Any] = {"compile_s": 0.0, "same_bits": True, "rows_invariant": True}
    alone: list[Tensor] = []
    for rows in row_counts:
        function, arguments = work_of(context, name, rows)
        compiled = compiled or torch.compile(function, backend=backend, dynamic=False)
        begin = time.perf_counter()
        results = flat(compiled(*arguments))
        if device == "cuda":
            torch.cuda.synchronize()
        found["compile_s"] += time.perf_counter() - begin
        found["same_bits"] &= alike(results, flat(function(*arguments)))
        firsts = [one[:1].clone() for one in results]
        alone = alone or firsts
        found["rows_invariant"] &= alike(firsts, alone)
        for kind, call in (("eager", function), ("compiled", compiled)):
            seconds = device_seconds([lambda call=call: call(*arguments)], device, 5)  # noqa: B023
            found[f"{kind}_{rows}_s"] = median(seconds)
    last = row_counts[-1]
    found["compiled_of_eager"] = found[f"compiled_{last}_s"] / found[f"eager_{last}_s"]
    return found


def work_of(context: Context, name: str, rows: int) -> Work:
    """Its first row is the same for every number of rows."""
    device, tiny = context.settings.device, context.settings.tiny
    spec = spec_of("llama-3.1-8b", tiny)
    torch.manual_seed(context.settings.seed)
    if name == "embedding":
        weight = torch.randn(spec.vocab_size, spec.hidden_size, device=device).bfloat16()
        return embedding, (weight, torch.arange(rows, dtype=torch.int32, device=device))
    if name == "softcap":
        return softcap, (torch.randn(ROWS[-1], spec.vocab_size, device=device)[:rows],)
    if name == "penalties":
        logits, batch = penalized(device, context.settings.seed, rows)
        return adjusted, (logits, batch)
    return tables, (staged(rows, TINY_CONTEXT if tiny else CONTEXT, device),)


def embedding(weight: Tensor, ids: Tensor) -> Tensor:
    """With the scale that some families have."""
    found = weight[ids.long()]
    return (found.float() * 8.0).to(found.dtype)


def softcap(logits: Tensor) -> Tensor:
    return 30.0 * torch.tanh(logits / 30.0)


def adjusted(logits: Tensor, batch: Any) -> Tensor:
    from trimtab.executors.gpu.batched_sampling import adjusted_logits

    return adjusted_logits(logits, batch)


def tables(rows: Any) -> tuple[Tensor, ...]:
    chosen = torch.zeros(1024, dtype=torch.int32, device=rows.positions.device)
    found = rows.on_device(chosen, 0, 16)
    return found.token_ids, found.slots, found.block_tables


def penalized(device: str, seed: int, rows: int) -> tuple[Tensor, Any]:
    """The first rows of the kernel checks' case."""
    from trimtab.executors.gpu.sampling_batch import sampling_rows

    logits, batch = sampling_cases(seed)["penalties"].on_device(device)
    return logits[:rows], sampling_rows(batch, 0, rows)


def staged(rows: int, context: int, device: str) -> Any:
    """Decodes, each far into its context."""
    from trimtab.executors.gpu.rows import StagedRows

    def ints(values: Any) -> Tensor:
        return torch.from_numpy(np.asarray(values, np.int32)).to(device)

    blocks = context // 16
    return StagedRows(
        token_ids=ints(np.zeros(rows)),
        positions=ints(np.full(rows, context - 1)),
        sequences=ints(np.arange(rows)),
        chosen_before=ints(np.full(rows, -1)),
        seq_starts=ints(np.arange(rows + 1)),
        block_starts=ints(np.arange(rows + 1) * blocks),
        block_ids=ints(np.arange(rows * blocks)),
        max_rows=1,
        max_context=context,
    )


def flat(result: Tensor | tuple[Tensor, ...]) -> list[Tensor]:
    return list(result) if isinstance(result, tuple) else [result]


def alike(some: list[Tensor], others: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(some, others, strict=True))
