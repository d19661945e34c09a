"""Tasks: files that are none are refused by line; answers are counted as a person would."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from trimtab import LLM, SamplingParams, builtin
from trimtab.errors import UserError
from trimtab.evaluation.tasks import Task, read_tasks, task_quality


def test_the_built_in_model_answers_its_tasks() -> None:
    tasks = read_tasks(builtin.tasks_path())[::9]
    with LLM("builtin", num_blocks=256) as llm:
        found = task_quality(llm, tasks)
        by_hand: dict[str, list[bool]] = {}
        for task in tasks:
            message = [{"role": "user", "content": task.prompt}]
            [answer] = llm.chat(message, SamplingParams(temperature=0, max_tokens=64))
            by_hand.setdefault(task.kind, []).append(answer.outputs[0].text.strip() == task.answer)
    assert found.by_kind == {kind: (sum(m), len(m)) for kind, m in sorted(by_hand.items())}
    right = sum(map(sum, by_hand.values()))
    assert 0.8 < right / len(tasks) < 1
    assert found.accuracy.value == right / len(tasks)


def test_an_answer_that_goes_on_is_wrong() -> None:
    prompt = "What does os.umask do?"
    with LLM("builtin", num_blocks=64) as llm:
        [answer] = llm.chat([{"role": "user", "content": prompt}], SamplingParams(temperature=0))
        text = answer.outputs[0].text
        tasks = [Task(prompt, f" {text}\n"), Task(prompt, text.strip().split()[0])]
        assert task_quality(llm, tasks).by_kind == {"": (1, 2)}


def test_a_model_without_a_template_continues_the_text() -> None:
    asked: list[tuple[str, int]] = []

    class Continuing:
        tokenizer = SimpleNamespace(chat_template=None, encode=lambda text, **_: list(text))

        def generate(self, prompts: list[str], params: list[SamplingParams]) -> list[Any]:
            asked.extend(zip(prompts, (p.max_tokens for p in params), strict=True))
            return [SimpleNamespace(outputs=[SimpleNamespace(text=" four\n")]) for _ in prompts]

    found = task_quality(cast(LLM, Continuing()), [Task("2+2=", "four"), Task("2+3=", "five")])
    assert found.by_kind == {"": (1, 2)}
    assert asked == [("2+2=", 12), ("2+3=", 12)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no tasks"),
        (b"\n \n", "no tasks"),
        (b'{"prompt": "a", "answer": "b"}\n{"prompt": "a"', "line 2: not JSON"),
        (b'{"prompt": "a"}', "line 1: use"),
        (b'["a", "b"]', "line 1: use"),
        (b'{"prompt": "a", "answer": 7}', "line 1: use"),
        (b'{"prompt": "a", "answer": "b", "kind": null}', "line 1: use"),
        (b"[" * 100_000, "line 1: not JSON"),
        (b"\xff\xfe", "not UTF-8"),
    ],
)
def test_what_is_no_task_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "tasks.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read_tasks(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="No such file"):
        read_tasks(tmp_path / "none")
