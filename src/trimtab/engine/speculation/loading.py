"""From settings to a speculator."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from trimtab.builtin import draft_path, heads_path, target_path
from trimtab.checkpoints import open_checkpoint, resolve_model
from trimtab.checkpoints.draft_head import open_draft_head
from trimtab.config import SchedulerConfig
from trimtab.engine.speculation.costs import measure_costs
from trimtab.engine.speculation.draft_model import DraftModel
from trimtab.engine.speculation.heads import HeadsProposer, measure_head
from trimtab.engine.speculation.lookup import LookupProposer, SharedLookup
from trimtab.engine.speculation.proposer import Proposer
from trimtab.engine.speculation.speculator import Speculator
from trimtab.errors import ConfigError
from trimtab.executors.base import Executor
from trimtab.executors.cpu import CpuExecutor
from trimtab.executors.cpu_draft_head import CpuDraftHead
from trimtab.tokenization import load_tokenizer

logger = logging.getLogger(__name__)


def load_speculator(executor: Executor, model: Path, config: SchedulerConfig) -> Speculator | None:
    """The proposers that `config` asks for, and what the steps of `executor` cost; None if nobody
    is to guess. Nothing may be in the executor's KV cache yet.

    ConfigError for a proposer that cannot work here, CheckpointError for a bad draft model.
    """
    names = _names(model, config, isinstance(executor, CpuExecutor))
    proposers = [_load(name, executor, model, config) for name in names]
    if not proposers:
        return None
    return Speculator(proposers, measure_costs(executor), config.max_draft_tokens)


def _names(model: Path, config: SchedulerConfig, on_cpu: bool) -> list[str]:
    """Elsewhere than on the CPU, guesses would keep the next step from being planned ahead: nobody
    guesses unless told to."""
    if config.speculative == "off":
        return []
    given = [name for name in ("heads", "draft") if _path_of(name, config) is not None]
    if config.speculative != "auto":
        for name in set(given).difference(config.proposers):
            raise ConfigError(
                f"{_SETTINGS[name]}={_path_of(name, config)}: speculative={config.speculative} "
                f"does not ask it; add +{name}"
            )
        return list(config.proposers)
    if not on_cpu and not given:
        return []
    if not given and model == target_path():
        given = ["draft"]
    return ["lookup", *given] if _has_native_core() else given


def _has_native_core() -> bool:
    """What `lookup` searches is native; `auto` does without it on a machine that has none."""
    try:
        from trimtab import _native  # noqa: F401
    except ImportError:
        logger.warning("the native core is not built here: no drafts by lookup")
        return False
    return True


_SETTINGS = {"heads": "draft_heads", "draft": "draft_model"}


def _path_of(name: str, config: SchedulerConfig) -> str | None:
    return config.draft_heads if name == "heads" else config.draft_model


def _load(name: str, executor: Executor, model: Path, config: SchedulerConfig) -> Proposer:
    if name == "lookup":
        return LookupProposer(SharedLookup() if config.shared_lookup else None)
    if not isinstance(executor, CpuExecutor):
        raise ConfigError(f"speculative={name}: runs beside device=cpu only; use lookup or off")
    if name == "draft":
        return _load_draft_model(executor, model, config)
    return _load_heads(executor, model, config)


def _load_draft_model(executor: CpuExecutor, model: Path, config: SchedulerConfig) -> DraftModel:
    if config.draft_model is not None:
        path = resolve_model(config.draft_model)
    elif model == target_path():
        path = draft_path()
    else:
        raise ConfigError("speculative=draft: say which model with draft_model")
    _check_tokenizers(model, path)
    draft_config = replace(
        executor.config, max_context=0, num_blocks=executor.capacity.num_blocks, kv_cache_gib=0
    )
    draft = CpuExecutor(open_checkpoint(path, 0), draft_config, executor.pool)
    return DraftModel(draft, executor.spec.vocab_size, measure_costs(draft))


def _load_heads(executor: CpuExecutor, model: Path, config: SchedulerConfig) -> HeadsProposer:
    """From then on, steps of the executor can give the features that the head reads."""
    if config.draft_heads is not None:
        path = Path(config.draft_heads)
    elif model == target_path():
        path = heads_path()
    else:
        raise ConfigError("speculative=heads: say which heads with draft_heads")
    head = CpuDraftHead(open_draft_head(path, executor.spec), executor)
    executor.set_feature_layers(head.spec.layer_ids)
    return HeadsProposer(head, executor.capacity.block_size, measure_head(head, executor))


def _check_tokenizers(model: Path, draft: Path) -> None:
    """ConfigError unless both mean the same by each token that both have."""
    files = [path / "tokenizer.json" for path in (model, draft)]
    if all(file.is_file() for file in files) and files[0].read_bytes() == files[1].read_bytes():
        return
    ours, theirs = load_tokenizer(model), load_tokenizer(draft)
    count = min(ours.vocab_size, theirs.vocab_size)
    for token_id in range(count):
        if ours.token_bytes(token_id) != theirs.token_bytes(token_id):
            raise ConfigError(
                f"draft_model={draft}: token {token_id} is {theirs.token_bytes(token_id)!r} there, "
                f"but {ours.token_bytes(token_id)!r} in {model}: a draft needs the same tokenizer"
            )
