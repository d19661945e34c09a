"""One variant against the unmodified model, in a process of its own: `evaluate`.

Never are both models in memory: the reference of some windows is computed, if it is not there, then
the variant is scored on them, a batch at a time, until everything that is asked for is decided; if
it is not, the same with twice as many windows.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trimtab.checkpoints import open_checkpoint
from trimtab.config import ExecutorConfig
from trimtab.errors import ConfigError
from trimtab.evaluation.divergence import divergence
from trimtab.evaluation.scoring import score
from trimtab.evaluation.tasks import Task, answers_right, read_tasks, task_tokens
from trimtab.evaluation.text_quality import rows_of_step
from trimtab.executors.opening import open_executor
from trimtab.optimizer.cache import cache_directory, writing
from trimtab.optimizer.content import path_digest
from trimtab.optimizer.evidence import Evidence, TermResult
from trimtab.optimizer.quality_need import QualityNeed, parse_quality
from trimtab.optimizer.quality_text import chosen_windows, written_windows
from trimtab.optimizer.reference import (
    BATCH,
    ReferenceRows,
    blocks_of,
    keep_answers,
    read_answers,
    reference_key,
    windows_text,
)
from trimtab.optimizer.trial import Progress
from trimtab.optimizer.variants import Variant, baseline_of
from trimtab.tokenization import load_tokenizer

if TYPE_CHECKING:
    from trimtab.executors.base import Executor

TASKS_AT_ONCE = 32
FIRST_TASKS = 64


@dataclass(frozen=True)
class Subject:
    """A checkpoint and how it is held."""

    path: Path
    config: ExecutorConfig

    def open(self, num_blocks: int) -> Executor:
        """For steps of `rows_of_step`."""
        config = replace(self.config, num_blocks=num_blocks, kv_cache_gib=0.0)
        checkpoint = open_checkpoint(self.path, config.max_context)
        rows = rows_of_step(checkpoint.spec.vocab_size, with_logits=True)
        return open_executor(checkpoint, config, rows, 1)


def evaluate(arguments: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """See `quality.measure_quality`, which fills the arguments. Raises UserError."""
    evaluation = _Evaluation(arguments, progress)
    return evaluation.run()


class _Evaluation:
    def __init__(self, arguments: dict[str, Any], progress: Progress) -> None:
        self.progress = progress
        self.need: QualityNeed = parse_quality(arguments["need"])
        self.floor: int = arguments["floor"]
        self.ceiling: int = arguments["ceiling"]
        self.stop_at_failure: bool = arguments["stop_at_failure"]
        path = Path(arguments["model"])
        base = ExecutorConfig(threads=arguments["threads"], device=arguments["device"])
        checkpoint = open_checkpoint(path)
        self.spec = checkpoint.spec
        variant = Variant.from_json(arguments["variant"])
        reference = baseline_of(checkpoint)
        self.baseline = Subject(path, reference.executor_config(base))
        self.subject = Subject(Path(arguments["artifact"]), variant.executor_config(base))
        self.tokenizer = load_tokenizer(path)
        place = cache_directory("references")

        def key_of(what: str) -> str:
            return reference_key(
                arguments["model_hash"], reference.label, what, arguments["numerics"]
            )

        length = min(arguments["window"], self.spec.max_context)
        if arguments["texts"]:
            texts = [Path(text) for text in arguments["texts"]]
            question = [length, self.ceiling, arguments["seed"], *map(path_digest, texts)]
            chosen = place / key_of(f"windows {question}")
            with writing(chosen):
                windows = chosen_windows(
                    self.tokenizer, chosen, texts, length, self.ceiling, arguments["seed"]
                )
            self.source = arguments["source"]
        else:
            written = place / key_of(f"written {length}")
            with writing(written):
                windows = written_windows(
                    lambda blocks: self.baseline.open(blocks),
                    self.tokenizer,
                    written,
                    length,
                    self.ceiling,
                    progress,
                )
            self.source = "written by the model"
        self.windows = windows[: self.ceiling]
        key = key_of(windows_text(self.windows))
        self.rows = ReferenceRows(place / key, self.windows, self.spec.vocab_size)
        self.evidence = Evidence()
        self.tasks = self._shuffled_tasks(arguments["tasks"], arguments["seed"])
        self.tasks_name = _name_of(self.tasks)
        self.answers_place = place / key_of("answers")

    def run(self) -> dict[str, Any]:
        terms = self._look_at_text()
        if self.need.needs_tasks and not self._is_over(terms, with_tasks=False):
            terms = self._look_at_tasks()
        return {
            "terms": [term.as_json() for term in terms],
            "source": self.source,
            "summary": self.evidence.summary(),
        }

    def _shuffled_tasks(self, path: str | None, seed: int) -> list[Task]:
        if path is None:
            if self.need.needs_tasks:
                raise ConfigError("the quality asks for tasks: name a file of them")
            return []
        tasks = read_tasks(Path(path))
        random.Random(seed).shuffle(tasks)
        return tasks

    def _is_over(self, terms: list[TermResult], with_tasks: bool = True) -> bool:
        if self.stop_at_failure and any(term.status == "fail" for term in terms):
            return True
        return with_tasks and all(term.status != "undecided" for term in terms)

    # ---- text

    def _look_at_text(self) -> list[TermResult]:
        """Twice as many windows, until everything about them is decided or there are no more."""
        asked = [term for term in self.need.terms if term.metric != "tasks"]
        text_need = QualityNeed(tuple(asked))
        done, count = 0, max(1, -(-self.floor // BATCH))
        last = self.rows.num_batches
        while True:
            count = min(count, last)
            self._ensure_reference(range(done, count))
            stopped = self._score(range(done, count), text_need)
            done = count
            if stopped or done == last or (not asked and done * BATCH >= self.floor):
                return self.evidence.judge(self.need)
            count *= 2

    def _ensure_reference(self, batches: range) -> None:
        missing = [batch for batch in batches if not self.rows.has(batch)]
        if not missing:
            return
        self.progress(f"the unmodified model reads {len(missing) * BATCH} windows")
        executor = self.baseline.open(self._blocks())
        try:
            with writing(self.rows.directory):
                self.rows.compute(executor, missing)
        finally:
            executor.close()

    def _score(self, batches: range, need: QualityNeed) -> bool:
        """Whether everything is decided."""
        executor = self.subject.open(self._blocks())
        try:
            for batch in batches:
                self._score_batch(executor, batch)
                seen = len(self.evidence.tokens)
                if seen < min(self.floor, len(self.windows)) or not need.terms:
                    continue
                terms = self.evidence.judge(need)
                self.progress(f"{seen} windows: {_describe(terms)}")
                hopeless = self.evidence.is_hopeless(need, len(self.windows))
                if self._is_over(terms) or (self.stop_at_failure and hopeless):
                    return True
        finally:
            executor.close()
        return False

    def _score_batch(self, executor: Executor, batch: int) -> None:
        windows = self.rows.windows_of(batch)
        with writing(self.rows.directory):
            reference = self.rows.load(batch)
        vocab = self.spec.vocab_size
        logits: list[list[Any]] = [[] for _ in windows]
        logprobs: list[list[Any]] = [[] for _ in windows]
        finished = 0

        def finish(index: int) -> None:
            ids = np.asarray(windows[index].token_ids[1:])
            ours = np.concatenate(logits[index])
            found = divergence(reference[index].logits, ours, ids)
            logits[index].clear()
            own = np.concatenate(logprobs[index])
            self.evidence.add_window(found, own, reference[index].logprobs)

        max_rows = rows_of_step(vocab, with_logits=True)
        for rows in score(executor, windows, max_rows, with_logits=True):
            while finished < rows.window:
                finish(finished)
                finished += 1
            logits[rows.window].append(rows.logits)
            logprobs[rows.window].append(rows.logprobs)
        while finished < len(windows):
            finish(finished)
            finished += 1

    def _blocks(self) -> int:
        from trimtab import _native

        return max(
            blocks_of(self.rows.windows_of(batch), _native.KV_BLOCK_TOKENS, self.spec.vocab_size)
            for batch in range(self.rows.num_batches)
        )

    # ---- tasks

    def _look_at_tasks(self) -> list[TermResult]:
        self.evidence.num_tasks = len(self.tasks)
        done, count = 0, FIRST_TASKS
        while True:
            count = min(count, len(self.tasks))
            base = self._base_answers(count)
            ours = self._answers(self.subject, self.tasks[done:count])
            self.evidence.add_tasks(ours, base[done:count])
            done = count
            terms = self.evidence.judge(self.need)
            self.progress(f"{done} tasks: {_describe(terms)}")
            if self._is_over(terms) or done == len(self.tasks):
                return terms
            tasks = next(term for term in terms if term.name == "tasks")
            if tasks.status != "undecided":
                return terms
            count *= 2

    def _base_answers(self, count: int) -> list[bool]:
        """Of the unmodified model, to the first so many tasks."""
        known = read_answers(self.answers_place, self.tasks_name)
        if len(known) < count:
            self.progress(f"the unmodified model answers {count - len(known)} tasks")
            known = known + self._answers(self.baseline, self.tasks[len(known) : count])
            with writing(self.answers_place):
                keep_answers(self.answers_place, self.tasks_name, known)
        return known

    def _answers(self, subject: Subject, tasks: Sequence[Task]) -> list[bool]:
        from trimtab import _native
        from trimtab.engine.engine import Engine
        from trimtab.engine.llm import LLM

        longest = max(task_tokens(self.tokenizer, task) for task in tasks)
        longest = min(longest, self.spec.max_context)
        blocks = TASKS_AT_ONCE * (-(-longest // _native.KV_BLOCK_TOKENS) + 1)
        with LLM.from_engine(Engine(subject.open(blocks)), self.tokenizer) as llm:
            return answers_right(llm, tasks)


def _name_of(tasks: Sequence[Task]) -> str:
    text = json.dumps([[task.prompt, task.answer] for task in tasks])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _describe(terms: Sequence[TermResult]) -> str:
    """One line."""
    parts = []
    for term in terms:
        shown = "not seen yet" if term.value is None else f"{term.value:.5g}"
        parts.append(f"{term.text}: {shown} ({term.status})")
    return "; ".join(parts)
