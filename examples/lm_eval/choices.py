"""What the two tasks of this directory need of Python: choices, and answers without white space."""

from __future__ import annotations

from random import Random
from typing import Any

NUM_CHOICES = 4


def add_choices(documents: Any) -> Any:
    """A `datasets.Dataset` of {prompt, answer, kind} with {choices, gold} added."""
    choices, golds = with_choices(list(documents))
    return documents.add_column("choices", choices).add_column("gold", golds)


def with_choices(tasks: list[dict[str, str]], seed: int = 0) -> tuple[list[list[str]], list[int]]:
    """Of each task its answer among those of three others of the same kind, and its place there."""
    random = Random(seed)
    choices, golds = [], []
    for task in tasks:
        others = {other["answer"] for other in tasks if other["kind"] == task["kind"]}
        own = random.sample(sorted(others - {task["answer"]}), NUM_CHOICES - 1)
        golds.append(random.randrange(NUM_CHOICES))
        own.insert(golds[-1], task["answer"])
        choices.append(own)
    return choices, golds


def strip(responses: list[list[str]], documents: list[dict[str, Any]]) -> list[list[str]]:
    """lm-eval's filter: what `trimtab eval` compares is free of white space around it, too."""
    return [[text.strip() for text in texts] for texts in responses]
