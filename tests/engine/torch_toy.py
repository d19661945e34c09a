"""The torch executor in the toy's place: a random model of one small layer, in plain torch.

`logits`, `choose` and `score` are the definition, as `ToyExecutor.logits` is: of a list of tokens,
by an executor of its own that has nothing else to do.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from cpu_models import MemoryCheckpoint, Passage, as_int32, greedy, make_batch, memory_model

from trimtab.config import ExecutorConfig
from trimtab.engine.client import TokenLogprobs
from trimtab.executors.base import Int32Array, SamplingBatch, StepBatch, StepResult, UInt8Array
from trimtab.executors.gpu.executor import TorchExecutor
from trimtab.executors.gpu.host_blocks import HostBlocks
from trimtab.executors.gpu.sampling_batch import device_sampling, sampling_arrays
from trimtab.executors.gpu.staging import Staging
from trimtab.models.spec import LayerSpec, RopeSpec

DEFINITION_CONTEXT = 4096


@functools.cache
def checkpoint(
    vocab_size: int, max_context: int, eos_token_ids: tuple[int, ...], seed: int
) -> MemoryCheckpoint:
    return memory_model(
        seed,
        vocab_size=vocab_size,
        max_context=max_context,
        eos_token_ids=eos_token_ids,
        hidden_size=16,
        intermediate_size=16,
        num_heads=2,
        num_kv_heads=1,
        head_dim=8,
        layers=(LayerSpec(),),
        ropes=(RopeSpec((1.0, 0.3, 0.1, 0.03)),),
        qk_norm=False,
        post_norms=False,
        qkv_bias=False,
        tied_embeddings=False,
        embedding_scale=1.0,
        attention_softcap=0.0,
        logits_softcap=0.0,
    )


def settings(num_blocks: int) -> ExecutorConfig:
    return ExecutorConfig(device="torch-cpu", weights="f32", kv_cache="f32", num_blocks=num_blocks)


class Definition:
    """What follows tokens. Remembers what it computed."""

    def __init__(self, vocab_size: int, seed: int) -> None:
        model = checkpoint(vocab_size, DEFINITION_CONTEXT, (), seed)
        blocks = list(range(-(-DEFINITION_CONTEXT // 16)))
        self._executor = TorchExecutor(model, settings(len(blocks)))
        self._passage = Passage([], blocks)
        self._staging = Staging(1 << 20, torch.device("cpu"))
        self._found: dict[tuple[int, ...], tuple[Any, Any]] = {}

    def logits(self, token_ids: Sequence[int]) -> Any:
        return self._of(token_ids)[0].copy()

    def hidden(self, token_ids: Sequence[int]) -> list[float]:
        """Behind the final norm, of the last token."""
        found: list[float] = self._of(token_ids)[1].tolist()
        return found

    def choose(self, token_ids: Sequence[int], sampling: SamplingBatch) -> int:
        """The token of the only row."""
        return int(self._sample(token_ids, sampling).tokens[0])

    def score(self, token_ids: Sequence[int], token: int, num_top: int) -> TokenLogprobs:
        """Of `token` behind these."""
        sampling = greedy(1)
        sampling.num_logprobs[:] = num_top
        result = self._sample(token_ids, sampling, as_int32([token]))
        assert result.target_logprobs is not None
        top = zip(result.top_ids[0].tolist(), result.top_logprobs[0].tolist(), strict=True)
        return TokenLogprobs(float(result.target_logprobs[0]), list(top))

    def _sample(
        self, token_ids: Sequence[int], sampling: SamplingBatch, targets: Any = None
    ) -> Any:
        batch: Any = SimpleNamespace(sampling=sampling, targets=targets)
        views, _ = self._staging.upload(sampling_arrays(batch))
        logits = torch.from_numpy(self.logits(token_ids))[None]
        return self._executor.ops.sample(logits, device_sampling(batch, views))

    def _of(self, token_ids: Sequence[int]) -> tuple[Any, Any]:
        key = tuple(token_ids)
        if key not in self._found:
            self._compute(key)
        return self._found[key]

    def _compute(self, token_ids: tuple[int, ...]) -> None:
        """From where they part from those that were computed last."""
        passage = self._passage
        pairs = zip(passage.tokens, token_ids, strict=False)
        same = next((i for i, (a, b) in enumerate(pairs) if a != b), len(passage.tokens))
        first = passage.computed = min(same, len(token_ids) - 1)
        passage.tokens = list(token_ids)
        count = len(token_ids) - first
        rows = as_int32(range(count))
        result = self._executor.execute(make_batch([(passage, count)], hidden_rows=rows))
        assert result.logits is not None
        assert result.hidden is not None
        for row in range(count):
            key = token_ids[: first + row + 1]
            self._found[key] = result.logits[row], result.hidden[row]


@functools.cache
def definition(vocab_size: int, seed: int) -> Definition:
    return Definition(vocab_size, seed)


class TorchToy:
    """Implements `Executor`, as `ToyExecutor` does, with what its tests look at."""

    description = "torch toy"
    fill_up = False

    def __init__(
        self,
        num_blocks: int = 64,
        block_size: int = 4,
        vocab_size: int = 64,
        max_context: int = 256,
        eos_token_ids: tuple[int, ...] = (),
        weights_seed: int = 0,
    ) -> None:
        model = checkpoint(vocab_size, max_context, eos_token_ids, weights_seed)
        self.torch = TorchExecutor(
            model, settings(num_blocks), block_size=block_size, fill_up=self.fill_up
        )
        self.spec = self.torch.spec
        self.capacity = self.torch.capacity
        self.identity = self.torch.identity
        self.definition = definition(vocab_size, weights_seed)
        self.num_steps = 0
        self.num_computed_tokens = 0

    def host_blocks(self, num_slots: int) -> HostBlocks:
        """Room for so many of its blocks in host memory."""
        return HostBlocks(num_slots, self.torch._blocks, self.torch.device)

    def execute(self, batch: StepBatch) -> StepResult:
        self.num_steps += 1
        self.num_computed_tokens += batch.num_rows
        return self.torch.execute(batch)

    def logits(self, token_ids: Sequence[int]) -> Any:
        return self.definition.logits(token_ids)

    def copy_blocks(self, sources: Int32Array, destinations: Int32Array) -> None:
        self.torch.copy_blocks(sources, destinations)

    def export_blocks(self, block_ids: Int32Array) -> UInt8Array:
        return self.torch.export_blocks(block_ids)

    def import_blocks(self, block_ids: Int32Array, data: UInt8Array) -> None:
        self.torch.import_blocks(block_ids, data)

    def close(self) -> None:
        self.torch.close()
