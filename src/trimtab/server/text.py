"""What the front process knows of the model, and the threads that tokenize for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from trimtab.tokenization import Tokenizer

T = TypeVar("T")

INLINE_CHARACTERS = 4096  # a shorter text is not worth the way to another thread
NUM_THREADS = 2


@dataclass(frozen=True)
class FoundModel:
    name: str  # in the API
    path: str  # what the engine process loads


@dataclass(frozen=True)
class ServedModel:
    name: str  # in the API
    tokenizer: Tokenizer

    @property
    def has_chat_template(self) -> bool:
        return self.tokenizer.chat_template is not None


class TextWorkers:
    """Threads for long texts, so that tokenizing one does not hold up every stream."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="tokenize")

    async def run(self, num_characters: int, function: Callable[[], T]) -> T:
        if num_characters <= INLINE_CHARACTERS:
            return function()
        return await asyncio.get_running_loop().run_in_executor(self._pool, function)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
