"""`trimtab bench --speculative`: what guessing gains, and what it is told."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from trimtab import LLM
from trimtab.bench.speculation import SpeculationPlan, measure_speculation, read_workload
from trimtab.engine.speculation.costs import StepCosts
from trimtab.errors import UserError

pytest.importorskip("trimtab._native")


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM("builtin", num_blocks=128, speculative="lookup+draft", prefix_cache=False) as model:
        assert model.engine.speculator is not None
        model.engine.speculator.costs = StepCosts({1: 1.0, 512: 1.0})  # every guess pays
        yield model


def write(path: Path, *lines: object) -> Path:
    path.write_text(
        "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    )
    return path


def test_every_proposer_is_measured_beside_none(llm: LLM, tmp_path: Path) -> None:
    workload = write(
        tmp_path / "prompts.jsonl",
        {"prompt": "x = [1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3"},
        "",
        {"messages": [{"role": "user", "content": "What does os.path.join do?"}]},
    )
    plan = SpeculationPlan((1, 2), rounds=2, output_tokens=24, workload=workload)

    report = measure_speculation(llm, "builtin", plan)

    assert report.same_answers
    assert report.num_prompts == 2
    assert [(row.streams, row.way) for row in report.rows] == [
        (streams, way) for streams in (1, 2) for way in ("off", "lookup", "draft", "lookup+draft")
    ]
    off = report.rows[0]
    assert (off.gain, off.decode_gain, off.num_drafted) == (1.0, 1.0, 0)
    assert off.acceptance_by_position == []
    assert off.tokens_per_step == pytest.approx(1.0)  # 24 tokens of each in 24 steps
    for row in report.rows:
        assert 0 <= row.num_accepted <= row.num_drafted
        assert row.low <= row.tokens_per_s <= row.high
        if row.streams == 1:  # prompts count for one and not for the other
            assert 0 < row.tpot_ms < 1e3 / row.low
        if row.num_accepted:
            assert row.tokens_per_step > off.tokens_per_step
    assert any(row.num_accepted for row in report.rows)
    document = json.loads(json.dumps(report.as_json()))
    assert document["rows"][1]["way"] == "lookup"
    text = "\n".join(report.lines())
    assert "answers equal" in text
    assert "lookup+draft" in text


def test_held_out_code_is_the_workload_if_none_is_given(llm: LLM) -> None:
    prompts = read_workload(llm, None)
    assert len(prompts) == 16
    assert len({tuple(prompt) for prompt in prompts}) == 16


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([], "no prompts"),
        (["{"], "line 1"),
        ([{"prompt": "x"}, {"text": "x"}], "line 2"),
        ([[1]], "line 1"),
        ([{"prompt": 5}], "line 1"),
        ([{"messages": "hello"}], "line 1"),
    ],
)
def test_bad_workloads_are_named(llm: LLM, tmp_path: Path, lines: list[object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        read_workload(llm, write(tmp_path / "bad.jsonl", *lines))


def test_a_missing_workload_and_nobody_to_guess(llm: LLM, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing-here"):
        read_workload(llm, tmp_path / "nothing-here.jsonl")
    with (
        LLM("builtin", num_blocks=16, speculative="off") as plain,
        pytest.raises(UserError, match="guess"),
    ):
        measure_speculation(plain, "builtin", SpeculationPlan())
