"""Tasks with one right answer each: JSON lines {"prompt", "answer"} and, if they are of several
kinds, "kind"."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimtab.engine.llm import LLM
from trimtab.engine.sampling_params import SamplingParams
from trimtab.errors import UserError
from trimtab.evaluation.estimate import Estimate, share
from trimtab.tokenization import Tokenizer

_SPARE_TOKENS = 8  # beyond the answer's own: whoever goes on longer has another answer


@dataclass(frozen=True)
class Task:
    prompt: str  # the user's message, or where the model has no chat template the text to continue
    answer: str  # compared without the white space around it
    kind: str = ""


@dataclass(frozen=True)
class TaskQuality:
    accuracy: Estimate
    by_kind: dict[str, tuple[int, int]]  # kind -> right, of how many

    def as_json(self) -> dict[str, Any]:
        return {
            "accuracy": self.accuracy.as_json(),
            "kinds": {
                kind: {"right": right, "tasks": count}
                for kind, (right, count) in self.by_kind.items()
            },
        }


def read_tasks(path: Path) -> list[Task]:
    """Raises UserError, naming the line, for what is no task."""
    tasks = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            raise UserError(f"{path}, line {number}: not JSON") from None
        fields = entry if isinstance(entry, dict) else {}
        texts = [fields.get("prompt"), fields.get("answer"), fields.get("kind", "")]
        if not all(isinstance(text, str) for text in texts):
            raise UserError(
                f'{path}, line {number}: use {{"prompt": "...", "answer": "..."}}, with a "kind" '
                "if you like"
            )
        tasks.append(Task(*texts))
    if not tasks:
        raise UserError(f"{path}: no tasks in it")
    return tasks


def task_tokens(tokenizer: Tokenizer, task: Task) -> int:
    """Of prompt and answer, or a few more."""
    if tokenizer.chat_template is not None:
        prompt = tokenizer.encode_chat([{"role": "user", "content": task.prompt}])
    else:
        prompt = tokenizer.encode(task.prompt)
    return len(prompt) + len(tokenizer.encode(task.answer)) + 64


def answers_right(llm: LLM, tasks: Sequence[Task]) -> list[bool]:
    """Whether each greedy answer is the right one, all batched. Raises RequestError for a prompt
    that is too long."""
    answers = [task.answer.strip() for task in tasks]
    params = [
        SamplingParams(
            temperature=0,
            max_tokens=len(llm.tokenizer.encode(answer, add_special_tokens=False)) + _SPARE_TOKENS,
        )
        for answer in answers
    ]
    if llm.tokenizer.chat_template is not None:
        results = llm.chat([[{"role": "user", "content": task.prompt}] for task in tasks], params)
    else:
        results = llm.generate([task.prompt for task in tasks], params)
    return [
        result.outputs[0].text.strip() == answer
        for answer, result in zip(answers, results, strict=True)
    ]


def task_quality(llm: LLM, tasks: Sequence[Task]) -> TaskQuality:
    """Raises what `answers_right` does."""
    counts: dict[str, tuple[int, int]] = {}
    for task, is_right in zip(tasks, answers_right(llm, tasks), strict=True):
        right, count = counts.get(task.kind, (0, 0))
        counts[task.kind] = right + is_right, count + 1
    rights = sum(right for right, _ in counts.values())
    return TaskQuality(share(rights, len(tasks)), dict(sorted(counts.items())))
