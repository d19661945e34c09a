"""MODEL to what each of the two processes needs of it."""

from __future__ import annotations

from pathlib import Path

from trimtab.config import ExecutorConfig, SchedulerConfig
from trimtab.engine.client import EngineClient
from trimtab.server.text import FoundModel


def load(model: str, executor: ExecutorConfig, scheduler: SchedulerConfig) -> EngineClient:
    """In the engine process. Raises UserError for a model or settings that cannot work."""
    from trimtab.engine.async_engine import AsyncEngine
    from trimtab.engine.loading import load_engine

    return AsyncEngine(load_engine(model, executor, scheduler))


def find_model(model: str, served_name: str | None) -> FoundModel:
    """In the front process. Downloads the model if need be; raises CheckpointError."""
    from trimtab.checkpoints import resolve_model

    path = resolve_model(model)
    return FoundModel(served_name or model_name(model, path), str(path))


def model_name(model: str, path: Path) -> str:
    """`builtin` and hub ids as they are; of a local path its last part."""
    if Path(model).expanduser() == path:
        return path.resolve().name
    return model
