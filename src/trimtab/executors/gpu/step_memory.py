"""What the largest step takes of a device's memory, beside K and V: run to see, or remembered."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import torch

from trimtab.config import KVFormat
from trimtab.executors.gpu.capacity import LOGIT_ROWS, open_caches
from trimtab.executors.gpu.model import Model, Rows
from trimtab.executors.gpu.warm_start import StepMemory, WarmStart


class DeviceMemory(Protocol):
    """Bytes of one device. Every call waits until nothing runs there."""

    total: int

    def in_use(self) -> int:
        """By everybody, without what torch's allocator keeps for later."""
        ...

    def allocated(self) -> int:
        """By tensors of this process."""
        ...

    def peak_of(self, work: Callable[[], None]) -> int:
        """The most that tensors had allocated while `work` ran."""
        ...


class CudaMemory:
    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.total = torch.cuda.mem_get_info(device)[1]

    def in_use(self) -> int:
        torch.cuda.synchronize(self._device)
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info(self._device)
        return int(total - free)

    def allocated(self) -> int:
        torch.cuda.synchronize(self._device)
        return int(torch.cuda.memory_allocated(self._device))

    def peak_of(self, work: Callable[[], None]) -> int:
        torch.cuda.synchronize(self._device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self._device)
        work()
        torch.cuda.synchronize(self._device)
        return int(torch.cuda.max_memory_allocated(self._device))


def open_memory(device: torch.device) -> DeviceMemory | None:
    """None on a CPU, whose K and V are sized without a step."""
    return CudaMemory(device) if device.type == "cuda" else None


def measure_step(memory: DeviceMemory, run: Callable[[], None]) -> StepMemory:
    """Of a step that leaves nothing allocated."""
    used, allocated = memory.in_use(), memory.allocated()
    peak = memory.peak_of(run)
    return StepMemory(max(0, peak - allocated), max(0, memory.in_use() - used))


class StepRoom:
    """How much a device has left for K and V beside the largest step, which is run if no start
    before told what it takes."""

    def __init__(
        self,
        memory: DeviceMemory,
        share: float,
        warm: WarmStart,
        key: Mapping[str, str],
        run: Callable[[], None],
    ) -> None:
        """`share` of all memory is ours. `key`: everything that a step's memory follows from."""
        self._memory = memory
        self._share = share
        self._warm = warm
        self._key = key
        self._run = run
        self._step = warm.recall_step(key)
        self.is_remembered = self._step is not None

    def free(self) -> int:
        """Bytes."""
        if self._step is None:
            self._step = measure_step(self._memory, self._run)
            self._warm.remember_step(self._key, self._step)
        step = self._step
        # What was run in this process has left in use what it leaves.
        taken = step.activations + (step.beside if self.is_remembered else 0)
        return max(0, int(self._memory.total * self._share) - self._memory.in_use() - taken)

    def forget(self) -> bool:
        """What was remembered does not fit: the next `free` runs the step. False if it did."""
        if not self.is_remembered:
            return False
        self._warm.forget_step(self._key)
        self._step = None
        self.is_remembered = False
        return True


def run_largest_step(model: Model, max_step_rows: int, block_size: int, kv_cache: KVFormat) -> None:
    """As much memory as a step can take; nothing of it stays, and the model has no caches then."""
    spec, device = model.spec, model.weights.embed.device
    rows = min(max_step_rows, spec.max_context)
    blocks = -(-rows // block_size)
    model.caches = open_caches(spec, kv_cache, blocks, block_size, device)
    places = torch.arange(rows, device=device)
    staged = Rows(
        token_ids=torch.zeros(rows, dtype=torch.int32, device=device),
        positions=places.int(),
        slots=places,
        seq_starts=torch.tensor([0, rows], dtype=torch.int32, device=device),
        block_tables=torch.arange(blocks, dtype=torch.int32, device=device)[None],
        max_rows=rows,
        max_context=rows,
        max_partitions=0,
    )
    normed, _ = model.forward(staged)
    logits = model.logits(normed[:LOGIT_ROWS])
    logits.softmax(1)  # about what sampling holds beside the logits
    model.caches = ()
