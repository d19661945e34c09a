"""What the server asks of its engine beyond EngineClient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from trimtab.engine.client import EngineClient, EngineRequest, TokenOutput


class SupervisedEngine(EngineClient, Protocol):
    """An EngineClient that also says how its engine is, and pushes what it emits."""

    def submit(
        self, request: EngineRequest, sink: Callable[[TokenOutput | Exception], None]
    ) -> Callable[[], None]:
        """Begin a request, or raise as `generate` does. `sink` is called on the event loop with
        each output until one with a finish_reason, or with the exception that ends it. The function
        returned aborts it; idempotent, and nothing once it has ended."""
        ...

    @property
    def state(self) -> str: ...

    @property
    def healthy(self) -> bool: ...

    @property
    def num_restarts(self) -> int:
        """Engine processes that were lost since the first one was ready."""
        ...
