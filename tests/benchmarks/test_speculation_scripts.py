"""Prompts and acceptance figures for speculative decoding."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from trimtab.builtin import draft_path, heldout_path

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def acceptance() -> Iterator[ModuleType]:
    sys.path.insert(0, str(BENCHMARKS))
    yield importlib.import_module("speculation_acceptance")
    sys.path.remove(str(BENCHMARKS))


def test_prompts_are_whole_lines_of_the_held_out_text(acceptance: ModuleType) -> None:
    text = heldout_path().read_text(encoding="utf-8")
    prompts = acceptance.code_prompts(24)
    assert len(set(prompts)) == 24
    for prompt in prompts:
        assert "\n" + prompt in text
        assert prompt.endswith("\n")
        assert 600 < len(prompt) <= 800


def test_edit_prompts_ask_for_what_they_contain(acceptance: ModuleType) -> None:
    prompts = acceptance.edit_prompts(24)
    assert len(set(prompts)) == 24
    for prompt in prompts:
        first, second, last = prompt.split("\n\n\n")[0], *prompt.rsplit("\n\n\n", 2)[-2:]
        assert first.startswith("def ")
        assert second.splitlines()[1:] == first.splitlines()[1:]
        assert last.startswith(first[: first.index("(")] + "_3(")


def test_renames_ask_for_a_name_that_is_there_and_one_that_is_not(acceptance: ModuleType) -> None:
    prompts = importlib.import_module("speculation_prompts").rename_prompts(24)
    text = heldout_path().read_text(encoding="utf-8")
    assert len(set(prompts)) == 24
    for prompt in prompts:
        question, source = prompt.split(":\n", 1)
        _, old, _, new = question.split(" ")
        assert source.splitlines()[-1].strip() in text
        assert source.startswith("def ")
        assert re.search(rf"\b{old}\b", source)
        assert not re.search(rf"\b{new}\b", source)


def test_figures_of_a_known_answer(acceptance: ModuleType) -> None:
    hits = [np.array([1, 1, 0, 1, 0, 0], bool)]
    assert acceptance.runs(hits[0]).tolist() == [2, 1, 0, 1, 0, 0]
    # chains of two start at five places; at three of them token 1 is accepted, at one token 2
    assert acceptance.by_position(hits)[:2] == [3 / 6, 1 / 3]
    assert acceptance.tokens_a_step(hits, 1) == 6 / 4
    assert acceptance.tokens_a_step(hits, 2) == 6 / 3
    assert acceptance.tokens_a_step(hits, 8) == 6 / 3


def test_lookup_finds_the_latest_longest_suffix(acceptance: ModuleType) -> None:
    hits = acceptance.lookup_hits([1, 2, 3, 9, 1, 2, 4, 1, 2], [4, 1, 2, 3], 2, 3)
    assert hits.tolist() == [True, True, True, False]
    assert acceptance.lookup_hits([1, 2, 3], [4, 5], 2, 3).tolist() == [False, False]


def test_a_model_agrees_with_itself_at_every_temperature(acceptance: ModuleType) -> None:
    from trimtab import LLM
    from trimtab.checkpoints import open_checkpoint
    from trimtab.config import ExecutorConfig
    from trimtab.executors.cpu import CpuExecutor

    config = ExecutorConfig(weights="int8", num_blocks=32)
    draft = CpuExecutor(open_checkpoint(draft_path()), config)
    with LLM(str(draft_path()), weights="int8") as llm:
        for temperature in (0.0, 1.0):
            found = acceptance.answers(llm, ["def add(a, b):\n", "import os\n"], 12, temperature)
            for number, (prompt, answer) in enumerate(found):
                seed = acceptance.SEED + number
                hits = acceptance.draft_hits(draft, prompt, answer, temperature, seed)
                assert hits.all()
                if temperature:
                    other = acceptance.draft_hits(draft, prompt, answer, temperature, seed + 1)
                    assert not other.all()
