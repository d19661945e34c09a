"""Variants against the unmodified model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trimtab import builtin
from trimtab.config import ExecutorConfig
from trimtab.errors import UserError
from trimtab.evaluation.run import Subject, run_evaluation
from trimtab.optimizer.artifacts import find_or_build
from trimtab.optimizer.quality import (
    QualityResult,
    QualityTexts,
    measure_quality,
    parse_quality,
    quality_texts,
)
from trimtab.optimizer.quality_text import excerpts
from trimtab.optimizer.variants import Variant

DRAFT = str(builtin.draft_path())
HELDOUT = QualityTexts((builtin.heldout_path(),), source="held-out")


def measure(
    variant: Variant, need: str, texts: QualityTexts = HELDOUT, model: str = DRAFT, **more: int
) -> QualityResult:
    settings = {"window": 64, "floor": 16, "ceiling": 48, "threads": 1, **more}
    artifact = find_or_build(model, variant)
    return measure_quality(model, variant, artifact, parse_quality(need), texts, **settings)  # type: ignore[arg-type]


def test_the_unmodified_model_is_itself() -> None:
    found = measure(Variant(), "kl:mean<0.0001; top1>=0.98; ppl_ratio<1.0001")
    assert found.failed is None
    assert [term.value for term in found.terms] == [0.0, 1.0, 1.0]
    assert found.meets
    assert not found.fails
    assert found.summary["windows"] == 16
    assert found.source == "held-out"


def test_int4_fails_early_what_int8_meets() -> None:
    need = "kl:mean<0.01; kl:p99<0.2; top1>=0.5; ppl_ratio<1.05"
    int8 = measure(Variant("int8"), need)
    assert int8.meets, int8
    int4 = measure(Variant("int4"), need)
    assert int4.fails, int4
    assert int4.summary["windows"] < 48
    assert int4.terms[0].status == "fail"
    assert int4.terms[0].low is not None
    assert int4.terms[0].low > 0.01
    assert int4.summary["kl_max"] > int4.summary["kl:p99"]["value"]
    assert QualityResult.from_json(json.loads(json.dumps(int4.as_json()))) == int4


def test_the_numbers_are_those_of_trimtab_eval(tmp_path: Path) -> None:
    """With all windows of a text, in whatever order: the same sums."""
    text = builtin.heldout_path().read_text()[:6000]
    path = tmp_path / "text.txt"
    path.write_text(text)
    found = measure(Variant("int4"), "", QualityTexts((path,)), floor=1000, ceiling=1000)
    report = run_evaluation(
        Subject(DRAFT, ExecutorConfig(weights="int4", threads=1)),
        [text],
        [],
        64,
        baseline=Subject(DRAFT, ExecutorConfig(threads=1)),
    )
    assert report.text is not None
    distance = report.text.distance
    assert distance is not None
    assert found.summary["tokens"] == report.text.num_tokens
    assert found.summary["kl:mean"]["value"] == pytest.approx(distance.kl.value, rel=1e-9)
    assert found.summary["kl:p99"]["value"] == pytest.approx(distance.kl_p99, rel=1e-9)
    assert found.summary["top1"]["value"] == distance.top1.value
    assert found.summary["perplexity"] == pytest.approx(report.text.perplexity.value, rel=1e-6)


def test_tasks_are_decided_exactly_once_all_are_answered(tmp_path: Path) -> None:
    lines = builtin.tasks_path().read_text().splitlines()[:40]
    tasks = tmp_path / "tasks.jsonl"
    tasks.write_text("\n".join(lines))
    texts = QualityTexts(HELDOUT.texts, tasks, "held-out")
    found = measure(Variant(kv_cache="int8"), "tasks>=base-100%; top1>=0.01", texts)
    assert found.meets
    term = found.terms[0]
    assert term.name == "tasks"
    assert term.value is not None
    assert found.summary["tasks"]["answered"] == 40
    again = measure(Variant(), "tasks>=base", texts)
    assert again.terms[0].value == 0.0
    assert again.terms[0].base == found.terms[0].base
    assert again.meets


def test_a_model_without_any_text_writes_some(model: Path) -> None:
    found = measure(
        Variant("int8"), "top1>=0.1", QualityTexts(), str(model), window=48, floor=8, ceiling=16
    )
    assert found.failed is None, found.failed
    assert found.source == "written by the model"
    assert found.summary["windows"] >= 8
    again = measure(
        Variant(), "top1>=0.999", QualityTexts(), str(model), window=48, floor=8, ceiling=16
    )
    assert again.terms[0].value == 1.0


def test_a_result_is_kept_for_the_same_question(cache: Path, tmp_path: Path) -> None:
    said: list[str] = []
    text = tmp_path / "text.txt"
    text.write_text(builtin.heldout_path().read_text()[:20_000])

    def ask(need: str) -> QualityResult:
        variant = Variant("int8")
        return measure_quality(
            DRAFT,
            variant,
            find_or_build(DRAFT, variant),
            parse_quality(need),
            QualityTexts((text,)),
            window=64,
            threads=1,
            progress=said.append,
        )

    first = ask("top1>=0.5")
    assert said
    said.clear()
    assert ask("top1 >= 50%") == first
    assert said == []
    ask("top1>=0.4")
    assert said
    assert not any("unmodified" in line for line in said)  # it was asked already
    text.write_text(text.read_text()[100:])
    said.clear()
    ask("top1>=0.5")
    assert any("unmodified" in line for line in said)


def test_what_cannot_be_measured_is_a_result(cache: Path, tmp_path: Path) -> None:
    found = measure(Variant(), "tasks>=base", HELDOUT)
    assert found.failed == "the quality asks for tasks: name a file of them"
    assert found.fails
    assert not found.meets
    empty = tmp_path / "empty.txt"
    empty.write_text("")
    assert "no token to score" in str(measure(Variant(), "", QualityTexts((empty,))).failed)
    variant = Variant()
    slow = measure_quality(
        DRAFT, variant, find_or_build(DRAFT, variant), parse_quality(""), HELDOUT, seconds=0.01
    )
    assert "was not done" in str(slow.failed)
    with pytest.raises(UserError, match="no such file"):
        quality_texts(DRAFT, [tmp_path / "none.txt"])


def test_which_texts_there_are(tmp_path: Path) -> None:
    own = tmp_path / "own.txt"
    own.write_text("text")
    assert quality_texts("builtin").source == "held-out"
    assert quality_texts("builtin").tasks == builtin.tasks_path()
    assert quality_texts("builtin", [own]) == QualityTexts((own,), builtin.tasks_path(), "user")
    assert quality_texts(DRAFT) == QualityTexts()


def test_long_texts_are_read_in_excerpts() -> None:
    assert excerpts("short", 1) == ["short"]
    text = "".join(f"line {number}\n" for number in range(1_000_000))
    parts = excerpts(text, 1)
    assert sum(map(len, parts)) <= 8 << 20
    assert all(part.startswith("line ") for part in parts)
    assert all(part in text for part in parts[::50])
    assert len(text) - text.index(parts[-1]) < len(text) // 100
