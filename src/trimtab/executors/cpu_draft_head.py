"""A draft head on the CPU: the native decoder with one layer, on the target's threads.

Its KV cache has as many blocks as the target's, of the same size, so that a request's block table
serves both. Position q of a sequence is the head's row with features of q and token q + 1.

Weights are bf16, int8 or f32 as the target's configuration says (int8 where that says int4).
"""

from __future__ import annotations

from dataclasses import replace

from trimtab.checkpoints.draft_head import DraftHeadCheckpoint
from trimtab.config import ExecutorConfig
from trimtab.errors import CheckpointError, ConfigError
from trimtab.executors.base import Float32Array, StepBatch, StepResult
from trimtab.executors.cpu import CpuExecutor, native_format, native_shape
from trimtab.executors.formats import KernelFormat, Slot, formats_of_config
from trimtab.executors.weights import load_weights, stored_vector


class CpuDraftHead:
    """Not thread-safe; must be closed before the target.

    Raises, when loaded, CheckpointError for a tensor that cannot be used, and ConfigError for a
    shape that the kernels do not take or if the system refuses memory. `execute` raises ValueError,
    one line, for arrays that break their contract.
    """

    def __init__(self, checkpoint: DraftHeadCheckpoint, target: CpuExecutor) -> None:
        from trimtab import _native

        spec = checkpoint.spec
        config = _head_config(target.config)
        formats = formats_of_config(spec.decoder, config)
        if not checkpoint.has_embeddings:
            formats = replace(formats, embedding="other")
        self.spec = spec
        try:
            shape = native_shape(spec.decoder, config, formats)
            fc = native_format(_fc_slot(config))
            shape.set_draft(spec.num_features, spec.draft_vocab_size, spec.norm_before_residual, fc)
            builder = _native.ModelBuilder(shape, target.isa, target.pool)
            load_weights(builder, checkpoint, formats)
            builder.set_matrix(-1, "fc", [checkpoint.tensor("fc").data], [], checkpoint.release)
            builder.set_norm(-1, "hidden_norm", stored_vector(checkpoint.tensor("hidden_norm")))
            if checkpoint.target_ids is not None:
                builder.set_target_ids(checkpoint.target_ids)
            self._decoder: _native.Decoder | None = builder.build(
                target.capacity.num_blocks, None if checkpoint.has_embeddings else target.native
            )
        except RuntimeError as error:  # the system refused memory
            raise ConfigError(f"{checkpoint.path}: {error}") from None
        except ValueError as error:
            raise CheckpointError(f"{checkpoint.path}: {error}") from None
        self._decoder.set_feature_layers([1])

    def execute(self, batch: StepBatch, inputs: Float32Array) -> StepResult:
        """Run rows (x, token): `batch.token_ids` are the tokens behind the rows' positions,
        `inputs` [num_rows, num_features] the target's features, or [num_rows, hidden_size] the
        hidden states that the head gave for the positions before. Tokens are by the target's ids.

        `StepResult.features` [num_rows, hidden_size], if asked for, are those hidden states.
        """
        if self._decoder is None:
            raise RuntimeError("the draft head is closed")
        return StepResult(*self._decoder.step(batch, inputs))

    def close(self) -> None:
        """Idempotent."""
        self._decoder = None


def _head_config(config: ExecutorConfig) -> ExecutorConfig:
    """int4 would cost a head more of what it is for than it saves."""
    return replace(config, weights="int8", group_size=0) if config.weights == "int4" else config


def _fc_slot(config: ExecutorConfig) -> Slot:
    return Slot("fc", ("fc",), KernelFormat(config.weights, config.scale_group))
