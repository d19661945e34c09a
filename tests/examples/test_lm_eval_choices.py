"""The choices of the lm-eval example: the right answer once, where it is said to be."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from trimtab import builtin
from trimtab.evaluation.tasks import read_tasks

EXAMPLE = Path(__file__).parents[2] / "examples/lm_eval/choices.py"


def test_choices_of_the_builtin_tasks() -> None:
    specification = importlib.util.spec_from_file_location("choices", EXAMPLE)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    tasks = read_tasks(builtin.tasks_path())
    documents = [{"prompt": t.prompt, "answer": t.answer, "kind": t.kind} for t in tasks]
    choices, golds = module.with_choices(documents)
    assert (choices, golds) == module.with_choices(documents)
    answers = {(task.kind, task.answer) for task in tasks}
    for task, own, gold in zip(tasks, choices, golds, strict=True):
        assert own[gold] == task.answer
        assert len(set(own)) == 4
        assert all((task.kind, answer) in answers for answer in own)
    assert [golds.count(place) > 60 for place in range(4)] == [True] * 4
