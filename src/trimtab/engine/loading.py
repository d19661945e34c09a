"""From MODEL and settings to an engine, for `LLM` and for the server's engine process."""

from __future__ import annotations

from pathlib import Path

from trimtab.config import ExecutorConfig, SchedulerConfig
from trimtab.engine.engine import Engine
from trimtab.tokenization import Tokenizer


def load_engine(
    model: str | Path,
    executor_config: ExecutorConfig | None = None,
    scheduler_config: SchedulerConfig | None = None,
    tokenizer: Tokenizer | None = None,
) -> Engine:
    """Load the weights into an executor; takes as long as reading the checkpoint does.

    `tokenizer`, the model's own, is read when the first grammar comes if it is not given.

    Raises CheckpointError for the model, ConfigError for settings that cannot work here.
    """
    from trimtab.checkpoints import open_checkpoint, resolve_model
    from trimtab.engine.llguidance_grammars import LlguidanceGrammars
    from trimtab.engine.speculation.loading import load_speculator
    from trimtab.executors.opening import open_executor
    from trimtab.tokenization import load_tokenizer

    executor_config = executor_config or ExecutorConfig()
    scheduler_config = scheduler_config or SchedulerConfig()
    path = resolve_model(str(model))
    checkpoint = open_checkpoint(path, executor_config.max_context)
    grammars = LlguidanceGrammars(
        lambda: tokenizer or load_tokenizer(path),
        checkpoint.spec.vocab_size,
        scheduler_config.grammar_cache_mib << 20,
    )
    max_step_rows = scheduler_config.max_batch_tokens + scheduler_config.max_draft_tokens
    executor = open_executor(
        checkpoint, executor_config, max_step_rows, scheduler_config.max_num_requests
    )
    speculator = load_speculator(executor, path, scheduler_config)
    return Engine(executor, scheduler_config, grammars=grammars, speculator=speculator)
