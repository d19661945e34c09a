"""What a server holds in memory, by part: predicted from the model and the settings, and measured
of the processes that run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from trimtab.bench.footprint import footprint
from trimtab.config import ExecutorConfig, SchedulerConfig
from trimtab.executors.formats import ModelFormats, formats_of_config
from trimtab.models.spec import ModelSpec
from trimtab.optimizer.device_memory import device_activation_bytes, device_block_bytes
from trimtab.optimizer.process_memory import ProcessMemory, process_memory

LOGITS_FLOATS = 16 << 20  # kLogitsChunkFloats of native/core/decoder.cpp
# Resident without weights and cache, measured (docs/plan.md): the engine with some requests; the
# front with a small tokenizer; of a tokenizer each token more, which the engine loads for grammars.
ENGINE_PYTHON_BYTES = 56 << 20
FRONT_PYTHON_BYTES = 76 << 20
TOKENIZER_BYTES_PER_TOKEN = 900
TORCH_BYTES = 256 << 20  # of the engine with torch in it, about


@dataclass(frozen=True)
class MemoryParts:
    """Bytes, when every part is as large as it gets."""

    weights: int
    kv_cache: int
    activations: int  # working memory of the largest step
    draft: int  # weights and cache of a model that guesses
    python: int  # interpreter, libraries, tokenizers: engine and front

    @property
    def total(self) -> int:
        return sum(getattr(self, one.name) for one in fields(self))

    def as_json(self) -> dict[str, int]:
        return {one.name: getattr(self, one.name) for one in fields(self)} | {"total": self.total}

    def lines(self) -> list[str]:
        return [
            f"{name:<12} {count / (1 << 20):>10,.1f} MiB" for name, count in self.as_json().items()
        ]


def predict_memory(
    spec: ModelSpec,
    executor: ExecutorConfig,
    scheduler: SchedulerConfig,
    num_blocks: int,
    formats: ModelFormats | None = None,
    draft: ModelSpec | None = None,
) -> MemoryParts:
    """`formats`: of a checkpoint (choose_formats); by default one of floats. `draft`: the model
    that guesses, held as the other one. With device=cuda, of the GPU's memory alone."""
    formats = formats or formats_of_config(spec, executor)
    model = footprint(spec, executor, formats)
    if executor.device != "cpu":
        return MemoryParts(
            weights=model.weight_bytes,
            kv_cache=num_blocks * device_block_bytes(spec, executor),
            activations=device_activation_bytes(spec, executor, scheduler),
            draft=0,
            python=0 if executor.device == "cuda" else python_bytes(spec.vocab_size) + TORCH_BYTES,
        )
    draft_bytes = 0
    if draft is not None:
        small = footprint(draft, executor)
        draft_bytes = small.weight_bytes + num_blocks * block_bytes(draft, executor)
        draft_bytes += activation_bytes(draft, scheduler)
    return MemoryParts(
        weights=model.weight_bytes,
        kv_cache=num_blocks * block_bytes(spec, executor),
        activations=activation_bytes(spec, scheduler, formats),
        draft=draft_bytes,
        python=python_bytes(spec.vocab_size),
    )


def block_bytes(spec: ModelSpec, executor: ExecutorConfig) -> int:
    from trimtab import _native

    return int(
        _native.kv_bytes_per_block(
            executor.kv_cache, spec.head_dim, spec.num_kv_heads, spec.num_layers
        )
    )


def activation_bytes(
    spec: ModelSpec, scheduler: SchedulerConfig, formats: ModelFormats | None = None
) -> int:
    """Of the largest step: what Decoder::reserve of native/core/decoder.cpp keeps."""
    queries, keys = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    has_up = formats is not None and any(slot.name == "up" for slot in formats.layers[0])
    floats = spec.hidden_size * (2 if spec.post_norms else 1)
    floats += 2 * queries + 2 * keys + spec.intermediate_size * (2 if has_up else 1)
    floats += len(spec.ropes) * spec.head_dim
    widest = max(spec.hidden_size, queries, spec.intermediate_size)
    per_row = 4 * floats + 4 * widest  # the input of a matrix, at most in float32
    rows = scheduler.max_batch_tokens
    logits = min(rows, scheduler.max_num_requests) * spec.vocab_size
    return rows * per_row + 4 * max(min(logits, LOGITS_FLOATS), spec.vocab_size)


def python_bytes(vocab_size: int) -> int:
    return ENGINE_PYTHON_BYTES + FRONT_PYTHON_BYTES + 2 * TOKENIZER_BYTES_PER_TOKEN * vocab_size


@dataclass(frozen=True)
class MeasuredMemory:
    """Of the processes of a server, from smaps_rollup. `proportional` counts what several hold once
    altogether; `mapped` is files, where packed weights are."""

    processes: int
    resident: int
    proportional: int
    anonymous: int
    mapped: int
    peak_resident: int

    def as_json(self) -> dict[str, int]:
        return {one.name: getattr(self, one.name) for one in fields(self)}


def measure_memory(pids: Mapping[str, int] | list[int]) -> MeasuredMemory | None:
    """The sum over processes of this user; None if none of them can be asked."""
    numbers = list(pids.values()) if isinstance(pids, Mapping) else pids
    found: list[ProcessMemory] = [one for one in map(process_memory, numbers) if one is not None]
    if not found:
        return None
    totals: dict[str, Any] = {
        name: sum(getattr(one, name) for one in found)
        for name in ("resident", "proportional", "anonymous", "mapped", "peak_resident")
    }
    return MeasuredMemory(processes=len(found), **totals)
