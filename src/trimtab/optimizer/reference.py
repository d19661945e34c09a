"""What the unmodified model says of the test text: computed once, for all variants.

    references/KEY/rows-0003.f32      8 windows: logits [rows, vocab], then logprobs [rows], float32
    references/KEY/answers-TASKS.json whether the answers to the first tasks are right
    references/KEY/text.json          the text, as tokens of each window (quality_text.py)

Whole rows are kept: with the most likely tokens alone, a divergence of 0.0001 nats cannot be told
from nothing. Reading a row back takes a hundredth of what computing it does (docs/plan.md).
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from trimtab.environment import optimizer_cache_bytes
from trimtab.evaluation.scoring import blocks_needed, score
from trimtab.evaluation.text_quality import rows_of_step
from trimtab.evaluation.windows import Window
from trimtab.optimizer.cache import check_space, make_room, read_json, touch, write_atomically

if TYPE_CHECKING:
    from trimtab.executors.base import Executor

BATCH = 8  # windows of a file
REVISION = 1


@dataclass(frozen=True)
class ReferenceWindow:
    logits: npt.NDArray[np.float32]  # [n, vocab], n the window's scored tokens; mapped, read-only
    logprobs: npt.NDArray[np.float32]  # [n] of the text's own tokens


class ReferenceRows:
    """Windows come in batches of BATCH, by number."""

    def __init__(self, directory: Path, windows: Sequence[Window], vocab_size: int) -> None:
        self.directory = directory
        self._windows = windows
        self._vocab = vocab_size

    @property
    def num_batches(self) -> int:
        return -(-len(self._windows) // BATCH)

    def windows_of(self, batch: int) -> Sequence[Window]:
        return self._windows[batch * BATCH : (batch + 1) * BATCH]

    def has(self, batch: int) -> bool:
        try:
            return self._path(batch).stat().st_size == self._num_bytes(batch)
        except OSError:
            return False

    def load(self, batch: int) -> list[ReferenceWindow]:
        """Of a batch that is there. Raises OSError if it has vanished."""
        flat = np.memmap(self._path(batch), np.float32, "r")
        found, at = [], 0
        rows = [window.num_scored for window in self.windows_of(batch)]
        logprobs = flat[sum(rows) * self._vocab :]
        for i, count in enumerate(rows):
            logits = flat[at * self._vocab : (at + count) * self._vocab]
            found.append(
                ReferenceWindow(
                    logits.reshape(count, self._vocab),
                    logprobs[sum(rows[:i]) : sum(rows[: i + 1])],
                )
            )
            at += count
        return found

    def compute(self, executor: Executor, batches: Sequence[int]) -> None:
        """With the unmodified model. Raises OSError and ConfigError for a disk that is full, and
        what `score` raises."""
        needed = sum(self._num_bytes(batch) for batch in batches)
        self.directory.mkdir(mode=0o700, exist_ok=True)
        make_room(self.directory.parent, needed, optimizer_cache_bytes() // 2, self.directory)
        check_space(self.directory, needed, "the reference of the test text")
        for batch in batches:
            self._store(batch, executor)
        touch(self.directory)

    def _store(self, batch: int, executor: Executor) -> None:
        windows = self.windows_of(batch)
        descriptor, name = tempfile.mkstemp(dir=self.directory, suffix=".tmp")
        try:
            with os.fdopen(descriptor, "wb") as file:
                logprobs = []
                max_rows = rows_of_step(self._vocab, with_logits=True)
                for rows in score(executor, windows, max_rows, with_logits=True):
                    assert rows.logits is not None
                    file.write(np.ascontiguousarray(rows.logits, np.float32).data)
                    logprobs.append(rows.logprobs)
                file.write(np.ascontiguousarray(np.concatenate(logprobs), np.float32).data)
            Path(name).replace(self._path(batch))
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise

    def _path(self, batch: int) -> Path:
        return self.directory / f"rows-{batch:04}.f32"

    def _num_bytes(self, batch: int) -> int:
        return 4 * (self._vocab + 1) * sum(window.num_scored for window in self.windows_of(batch))


def reference_key(model_hash: str, settings: str, what: str, numerics: str = "") -> str:
    """Hex digest of the model, of how it is held and computed, and of the text. `numerics`: those
    of a device (DeviceFacts); empty: of device=cpu."""
    from trimtab.executors.cpu import NUMERICS_REVISION, select_isa

    parts = ["trimtab reference", str(REVISION)]
    parts += [numerics] if numerics else [str(NUMERICS_REVISION), select_isa()]
    return hashlib.sha256("\n".join([*parts, model_hash, settings, what]).encode()).hexdigest()


def windows_text(windows: Sequence[Window]) -> str:
    """What a key needs to know of them."""
    return json.dumps([window.token_ids for window in windows])


def read_answers(directory: Path, name: str) -> list[bool]:
    """Of the first tasks, as many as were answered."""
    found = read_json(directory / f"answers-{name}.json")
    if isinstance(found, list) and all(isinstance(one, bool) for one in found):
        return found
    return []


def keep_answers(directory: Path, name: str, answers: Sequence[bool]) -> None:
    """Raises OSError."""
    directory.mkdir(mode=0o700, exist_ok=True)
    write_atomically(directory / f"answers-{name}.json", json.dumps(list(answers)).encode())


def blocks_of(windows: Sequence[Window], block_size: int, vocab_size: int) -> int:
    """KV blocks for batches of them."""
    return blocks_needed(windows, block_size, rows_of_step(vocab_size, with_logits=True))
