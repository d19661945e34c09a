"""The forward pass of small steps, captured as CUDA graphs: one launch in place of hundreds.

A graph reads the staged arrays and the tokens of the step before at fixed addresses and leaves what
is behind the final norm in one buffer for all graphs, so its result lasts until the next step.
Logits and sampling are not captured: they differ from step to step, and the device has work queued.

Without CUDA, shapes are the same and each is run anew: what fills up a step can be tested anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trimtab.executors.gpu.model import Model
from trimtab.executors.gpu.padding import MAX_ROWS, ROWS, Shape, contexts
from trimtab.executors.gpu.rows import StagedRows
from trimtab.executors.gpu.staging import Views

WARM_RUNS = 2  # before a capture: what is compiled or set up at first use must not be captured


@dataclass(slots=True, eq=False)
class _Captured:
    graph: torch.cuda.CUDAGraph
    address: int  # of what it reads


class StepGraphs:
    def __init__(self, model: Model, chosen: Tensor, reserved_block: int, device: torch.device):
        self._model = model
        self._chosen = chosen
        self._reserved_block = reserved_block
        self._captures = device.type == "cuda"
        hidden, dtype = model.spec.hidden_size, model.weights.embed.dtype
        self._normed = torch.zeros(MAX_ROWS, hidden, dtype=dtype, device=device)
        self._captured: dict[Shape, _Captured] = {}
        self._pool: Any = None  # the memory that all of them share

    def run(self, shape: Shape, views: Views) -> Tensor:
        """[num_rows, H] behind the final norm, valid until the next step runs. `views`: the
        padded arrays, in the staging buffer. Captures a shape when it is first met."""
        if not self._captures:
            self._forward(shape, views)
            return self._normed[: shape.num_rows]
        found = self._captured.get(shape)
        if found is None:
            found = self._captured[shape] = self._capture(shape, views)
        if found.address != views["token_ids"].data_ptr():
            raise RuntimeError("a captured step would read another buffer")
        found.graph.replay()
        return self._normed[: shape.num_rows]

    def _capture(self, shape: Shape, views: Views) -> _Captured:
        """Runs the step that is staged: its K and V are written as they will be again."""
        current = torch.cuda.current_stream()
        stream = torch.cuda.Stream()
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            for _ in range(WARM_RUNS):
                self._forward(shape, views)
        current.wait_stream(stream)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            self._forward(shape, views)
        self._pool = self._pool or graph.pool()
        return _Captured(graph, views["token_ids"].data_ptr())

    def _forward(self, shape: Shape, views: Views) -> None:
        staged = StagedRows(
            token_ids=views["token_ids"],
            positions=views["positions"],
            sequences=views["sequences"],
            chosen_before=views["chosen_before"],
            seq_starts=views["seq_starts"],
            block_starts=views["block_starts"],
            block_ids=views["block_ids_and_beyond"],
            max_rows=shape.max_rows,
            max_context=shape.max_context,
        )
        block_size = self._model.caches[0].block_size
        rows = staged.on_device(self._chosen, self._reserved_block, block_size)
        normed, _ = self._model.forward(rows)
        self._normed[: shape.num_rows].copy_(normed)


def decode_shapes(max_requests: int, max_context: int) -> list[Shape]:
    """Of decodes of up to so many requests, the largest first: later ones fit into its memory."""
    needed = [rows for rows in ROWS if rows < max_requests]
    needed += [rows for rows in ROWS if rows >= max_requests][:1]
    return [
        Shape(rows, 1, context)
        for context in reversed(contexts(max_context))
        for rows in reversed(needed)
    ]


def each_with_progress(
    shapes: Iterable[Shape], run: Callable[[Shape], None], progress: Callable[[str], None]
) -> None:
    listed = list(shapes)
    for number, shape in enumerate(listed, 1):
        progress(
            f"capturing graph {number} of {len(listed)}: {shape.num_rows} rows, "
            f"{shape.max_context} tokens"
        )
        run(shape)
