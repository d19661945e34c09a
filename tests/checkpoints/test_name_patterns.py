"""Patterns over module names: what Python's own matcher says, but never slowly."""

from __future__ import annotations

import re
import time
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.checkpoints.name_patterns import Budget, NamePattern
from trimtab.errors import CheckpointError

NAMES = [
    "lm_head",
    "model.embed_tokens",
    "model.layers.0.self_attn.q_proj",
    "model.layers.1.mlp.down_proj",
    "model.layers.10.mlp.gate_up_proj",
    "model.language_model.layers.27.self_attn.qkv_proj",
]
PATTERNS = [
    "lm_head",
    ".*lm_head",
    r"model\.layers\.(0|1)\.",
    r".*\.(?:1[0-9]|[2-9]\d)\..*",
    r"^(?!.*(q|k|v)_proj).*$",
    r".*self_attn\.(q|k|v)_proj$",
    r"model\.layers\.\d+\.mlp\.(gate|up)_proj",
    r".*_proj\b",
    r".*?\Bayers",
    r"(?=.*mlp).*0",
    r"[^.]+\.[\w]+",
    r"\w+\Z",
    r"(?P<x>model|lm)_?",
    r"x{0,3}model",
    r"(?:[a-z]+[._]){2,3}0",
    r"m[^a-n]d\S+\s*",
    r".*[\W\d]7",
    "",
]


def matches(pattern: str, name: str) -> bool:
    return NamePattern(pattern, "config.json", Budget("config.json")).matches(name)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_as_people_write_them(pattern: str) -> None:
    found = [matches(pattern, name) for name in NAMES]
    assert found == [re.match(pattern, name) is not None for name in NAMES]


PIECES = st.sampled_from(
    ["a", "b", "1", ".", "[ab]", "[^a]", r"\d", r"\w", r"\b", "^", "$", "(?:)", "[a-z1]", r"\."]
)


def grown(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    repeats = st.sampled_from(["*", "+", "?", "{2}", "{1,3}", "{2,}", "*?", "{0,2}?"])
    return st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map("|".join).map("({})".format),
        st.tuples(inner, repeats).map(lambda pair: f"(?:{pair[0]}){pair[1]}"),
        inner.map("(?={})".format),
        inner.map("(?!{})".format),
    )


@settings(max_examples=400, deadline=None)
@given(
    st.recursive(PIECES, grown, max_leaves=6),
    st.text("ab1.", min_size=1, max_size=6),
)
def test_any_pattern(pattern: str, name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = re.match(pattern, name) is not None
    assert matches(pattern, name) == expected


@pytest.mark.parametrize(
    "pattern",
    ["(a+)+$", "(a|aa)+$", "(a*)*b", "(.*)*" * 8 + "x", "(?:a?){60}" * 3 + "b", "(a|a|a)*?b"],
)
def test_patterns_that_explode_elsewhere(pattern: str) -> None:
    start = time.process_time()
    assert not matches(pattern, "a" * 100 + "c")
    assert time.process_time() - start < 5


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("(", "no regular expression"),
        ("*", "no regular expression"),
        ("a{1,99999999999}", "no regular expression"),
        ("(" * 900 + ")" * 900, "no|nested too deeply"),
        ("a" * 2001, "more than 2000 characters"),
        (r"(m)\1", "uses groupref"),
        ("(?<=a)b|.*(?<=m)o", "uses assert"),
        ("(?i)MODEL", "has flags"),
        ("(?i:MODEL)", "uses subpattern"),
    ],
)
def test_what_is_refused(pattern: str, reason: str) -> None:
    with pytest.raises(CheckpointError, match=reason) as caught:
        matches(pattern, "model" + "a" * 9)
    assert str(caught.value).startswith("config.json: the pattern ")
    assert len(str(caught.value)) < 300
    assert "\n" not in str(caught.value)


def test_all_patterns_share_a_budget() -> None:
    budget = Budget("config.json", 10_000)
    pattern = NamePattern("(?:[ab]+_)*x", "config.json", budget)
    with pytest.raises(CheckpointError, match=r"config\.json: the patterns .* take too long"):
        [pattern.matches("ab_ba_c") for _ in range(10_000)]
