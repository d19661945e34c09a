"""From settings to proposers; and what cannot work is said in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from engine_models import write_tiny_model

from trimtab import LLM, builtin
from trimtab.config import SchedulerConfig
from trimtab.errors import CheckpointError, ConfigError

pytest.importorskip("trimtab._native")


def names_of(model: str | Path, **settings: Any) -> list[str]:
    with LLM(str(model), num_blocks=32, **settings) as llm:
        speculator = llm.engine.speculator
        return [] if speculator is None else [one.name for one in speculator.proposers]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "target")


def test_auto_takes_what_there_is(tiny: Path) -> None:
    assert names_of("builtin") == ["lookup", "draft"]
    assert names_of(tiny) == ["lookup"]
    assert names_of(tiny, draft_model=str(tiny)) == ["lookup", "draft"]
    assert names_of("builtin", speculative="off") == []
    assert names_of("builtin", speculative="draft+lookup") == ["draft", "lookup"]


@pytest.mark.parametrize("text", ["", "on", "auto+lookup", "lookup+off", "lookup+lookup", "eagle"])
def test_bad_names(text: str) -> None:
    with pytest.raises(ConfigError, match="speculative="):
        SchedulerConfig(speculative=text)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"speculative": "draft"}, "say which model with draft_model"),
        ({"speculative": "lookup+heads"}, "say which heads with draft_heads"),
        ({"speculative": "lookup", "draft_model": "builtin"}, r"add \+draft"),
        ({"speculative": "draft", "draft_model": "nothing/is.here"}, "nothing"),
        ({"draft_heads": "/nothing/is/here"}, "nothing"),
        ({"max_draft_tokens": 0}, "max_draft_tokens"),
    ],
)
def test_what_cannot_work(tiny: Path, settings: dict[str, Any], words: str) -> None:
    with pytest.raises((ConfigError, CheckpointError), match=words) as caught:
        names_of(tiny, **settings)
    assert "\n" not in str(caught.value)


def test_a_draft_model_of_another_tokenizer_is_refused(tiny: Path) -> None:
    with pytest.raises(ConfigError, match="a draft needs the same tokenizer"):
        names_of(tiny, draft_model=str(builtin.draft_path()))


def test_a_draft_model_whose_vocabulary_is_padded_differently(tiny: Path, tmp_path: Path) -> None:
    """As those of one family often are."""
    other = write_tiny_model(tmp_path / "draft", vocab_size=288)
    settings: dict[str, Any] = {"num_blocks": 64, "prefix_cache": False}
    from trimtab import SamplingParams
    from trimtab.engine.speculation.costs import StepCosts

    params = SamplingParams(
        max_tokens=40, temperature=0.5, seed=1, logit_bias={3: 1.0}, ignore_eos=True
    )
    with LLM(str(tiny), speculative="off", **settings) as plain:
        expected = plain.generate("hello", params)[0].outputs[0].token_ids
    with LLM(str(tiny), speculative="draft", draft_model=str(other), **settings) as drafting:
        assert drafting.engine.speculator is not None
        drafting.engine.speculator.costs = StepCosts({1: 1.0, 512: 1.0})
        assert drafting.generate("hello", params)[0].outputs[0].token_ids == expected
        stats = drafting.engine.stats().speculation
    assert stats is not None
    assert stats.num_drafted > 0
