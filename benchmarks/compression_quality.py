"""The quality of one compressed checkpoint, and the engine that it runs on."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from compression_subjects import Made, num_weights
from trimtab import builtin
from trimtab.checkpoints import open_checkpoint
from trimtab.checkpoints.base import Checkpoint, MatrixFormat, StoredTensor
from trimtab.config import ExecutorConfig, parse_weights
from trimtab.engine.engine import Engine
from trimtab.engine.llm import LLM
from trimtab.evaluation.scoring import score
from trimtab.evaluation.tasks import read_tasks, task_quality
from trimtab.evaluation.text_quality import rows_of_step, text_quality
from trimtab.evaluation.windows import Window, text_windows
from trimtab.executors.base import KVCapacity, StepBatch, StepResult
from trimtab.executors.cpu import CpuExecutor
from trimtab.models.spec import ModelSpec
from trimtab.tokenization import load_tokenizer

FLOAT32 = ExecutorConfig(weights="f32", kv_cache="f32")
SPEED_BLOCKS = 192  # 8 streams of 256 tokens, and some


class Baseline:
    """What the model says in float32 throughout: computed once, kept in two files."""

    def __init__(self, stem: Path, num_windows: int, length: int) -> None:
        text = builtin.heldout_path().read_text(encoding="utf-8")
        self.tokenizer = load_tokenizer(builtin.target_path())
        self.windows = text_windows(self.tokenizer, [text], length, num_windows)
        settings = {"windows": len(self.windows), "length": length}
        self._logits, self._about = stem.with_suffix(".logits"), stem.with_suffix(".json")
        if not self._about.exists() or json.loads(self._about.read_text())["made"] != settings:
            self._compute(settings)
        self.spec = open_checkpoint(builtin.target_path()).spec
        self.logprobs = np.load(self._logits.with_suffix(".npy"))

    def _compute(self, settings: dict[str, int]) -> None:
        executor = CpuExecutor(open_checkpoint(builtin.target_path()), FLOAT32)
        max_rows = rows_of_step(executor.spec.vocab_size, with_logits=True)
        logprobs = []
        with self._logits.open("wb") as file:
            for rows in score(executor, self.windows, max_rows, with_logits=True):
                assert rows.logits is not None
                file.write(rows.logits.tobytes())
                logprobs.append(rows.logprobs.copy())
        executor.close()
        np.save(self._logits.with_suffix(".npy"), np.concatenate(logprobs))
        self._about.write_text(json.dumps({"made": settings}))

    def logits(self) -> np.ndarray[Any, np.dtype[np.float32]]:
        """[scored tokens, vocab], in the order of the windows."""
        mapped = np.memmap(self._logits, np.float32, mode="r")
        return mapped.reshape(-1, self.spec.vocab_size)


class Replay:
    """An executor that says again what the baseline said, in the same steps."""

    identity = "baseline"

    def __init__(self, baseline: Baseline, capacity: KVCapacity) -> None:
        self.spec: ModelSpec = baseline.spec
        self.capacity = capacity
        self._logits, self._logprobs = baseline.logits(), baseline.logprobs
        self._first = 0

    def execute(self, batch: StepBatch) -> StepResult:
        rows = slice(self._first, self._first + len(batch.logit_rows))
        self._first = rows.stop
        nothing = np.zeros((len(batch.logit_rows), 0), np.float32)
        return StepResult(
            tokens=np.zeros(len(batch.logit_rows), np.int32),
            logprobs=self._logprobs[rows],
            top_ids=nothing.astype(np.int32),
            top_logprobs=nothing,
            target_logprobs=self._logprobs[rows],
            logits=self._logits[rows],
        )


class AsFloats:
    """A checkpoint whose integers come as the floats that they stand for."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint

    def __getattr__(self, name: str) -> Any:
        return getattr(self._checkpoint, name)

    @property
    def identity(self) -> str:
        return f"{self._checkpoint.identity} as floats"

    @property
    def weight_files(self) -> Sequence[Any]:
        return ()  # or the packed model of the integers would be found

    def names(self) -> Iterable[str]:
        return self._checkpoint.names()

    def format(self, name: str) -> MatrixFormat:
        return "f32"

    def matrix(self, name: str) -> StoredTensor:
        return self._checkpoint.tensor(name)


def engine_config(made: Made, num_blocks: int = 0) -> ExecutorConfig:
    name, group_size = parse_weights(made.subject.weights)
    return ExecutorConfig(
        weights=name,
        group_size=group_size,
        kv_cache=made.subject.kv_cache,  # type: ignore[arg-type]
        num_blocks=num_blocks,
    )


def open_engine(made: Made) -> Engine:
    config = engine_config(made, SPEED_BLOCKS)
    return Engine(CpuExecutor(open_checkpoint(made.path), config))


def quality(made: Made, baseline: Baseline, num_tasks: int) -> dict[str, Any]:
    """As the engine runs it; and of weights that are stored as integers alone, which is the model
    with these weights in float32 throughout."""
    checkpoint = open_checkpoint(made.path)
    executor = CpuExecutor(checkpoint, engine_config(made))
    found: dict[str, Any] = {
        "runs_as": executor.description,
        "packed_bytes": executor.weight_bytes,
        "num_weights": num_weights(checkpoint),
    }
    with LLM.from_engine(Engine(executor), baseline.tokenizer) as llm:
        found["text"] = _distance(executor, baseline)
        tasks = read_tasks(builtin.tasks_path())
        step = max(1, len(tasks) // num_tasks)
        found["tasks"] = task_quality(llm, tasks[::step][:num_tasks]).as_json()
    if made.subject.how != "load":
        weights = CpuExecutor(AsFloats(checkpoint), FLOAT32)
        found["weights_alone"] = _distance(weights, baseline)
        weights.close()
    return found


def _distance(executor: CpuExecutor, baseline: Baseline) -> dict[str, Any]:
    windows: Sequence[Window] = baseline.windows
    replay = Replay(baseline, executor.capacity)
    return text_quality(executor, windows, replay).as_json()  # type: ignore[arg-type]
