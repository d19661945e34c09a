"""The grammar of what quality is asked for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.errors import UserError
from trimtab.optimizer.quality import QualityNeed, QualityTerm, parse_quality

FULL = "kl:mean<0.02; kl:p99<0.5; top1>=0.98; ppl_ratio<1.02; tasks>=base-1%"


def test_every_kind_of_term() -> None:
    need = parse_quality(FULL)
    assert need.terms == (
        QualityTerm("kl", "<", 0.02),
        QualityTerm("kl", "<", 0.5, percentile=0.99),
        QualityTerm("top1", ">=", 0.98),
        QualityTerm("ppl_ratio", "<", 1.02),
        QualityTerm("tasks", ">=", -0.01, of_base=True),
    )
    assert need.as_text() == FULL
    assert need.needs_tasks
    assert parse_quality("") == QualityNeed()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("top1>98%", "top1>0.98"),
        (" kl:p99.9 <= 1e-3 ", "kl:p99.9<=0.001"),
        ("tasks>=base", "tasks>=base"),
        ("tasks>=0.9;", "tasks>=0.9"),
        ("ppl_ratio<=102%", "ppl_ratio<=1.02"),
    ],
)
def test_other_ways_to_write(text: str, shown: str) -> None:
    assert parse_quality(text).as_text() == shown
    assert parse_quality(shown) == parse_quality(text)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("speed<3", "no metric 'speed'"),
        ("kl<0.1", "say of what"),
        ("kl:p100<0.1", "say of what"),
        ("kl:mean>0.1", "better the smaller"),
        ("top1<0.9", "better the larger"),
        ("top1:mean>=0.9", "has no 'mean'"),
        ("top1>=98", "between 0 and 1"),
        ("tasks>=base+1%", "base-1%"),
        ("tasks>=base-x", "is no number"),
        ("kl:mean<2%", "is no number"),
        ("kl:mean<1e999", "too large"),
        ("kl:mean=0.1", "not METRIC"),
        ("top1>=0.9; top1>=0.8", "twice"),
        ("hello", "not METRIC"),
    ],
)
def test_what_is_wrong_is_said(text: str, why: str) -> None:
    with pytest.raises(UserError, match=why) as caught:
        parse_quality(text)
    assert "\n" not in str(caught.value)


@given(st.text(alphabet="klmeanp9<>=:;0.12top ppl_ratiotasksbase-%e+", max_size=40))
def test_any_text_parses_or_is_refused(text: str) -> None:
    try:
        need = parse_quality(text)
    except UserError:
        return
    again = parse_quality(need.as_text())
    assert [term.name for term in again.terms] == [term.name for term in need.terms]


def test_limits_hold_or_not() -> None:
    below = QualityTerm("kl", "<", 0.02)
    assert below.holds(0.019)
    assert not below.holds(0.02)
    tasks = QualityTerm("tasks", ">=", -0.01, of_base=True)
    assert tasks.holds(0.94, base=0.95)
    assert not tasks.holds(0.93, base=0.95)
