"""plan.yaml: written, read again, damaged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from plans import plan_of

from trimtab.errors import UserError
from trimtab.optimizer.plan import Measurement, Plan, is_plan_file, read_plan
from trimtab.optimizer.plan_yaml import plan_from_yaml
from trimtab.optimizer.variants import Variant

HASH = "0123456789abcdef" * 4


@pytest.fixture(scope="module")
def plan() -> Plan:
    return plan_of()


def test_a_plan_comes_back_as_it_was(plan: Plan, tmp_path: Path) -> None:
    built = replace(
        plan_of(variant=Variant("int4", 64, "gptq", 6.0, "bf16", "int8", "/a/text.txt")),
        artifact_hash=HASH,
    )
    for one in (plan, built):
        path = tmp_path / "plan.yaml"
        one.write(path)
        assert read_plan(path) == one
        assert is_plan_file(str(path))
        text = path.read_text()
        assert text.startswith("# A trimtab plan")
        assert "twice the default" in text.splitlines()[1]
        assert "max_num_requests: 4  # not the default" in text
        assert max(map(len, text.splitlines())) < 120
    assert not list(tmp_path.glob("*.tmp"))
    assert not is_plan_file(str(tmp_path))
    assert not is_plan_file("builtin")


def test_what_it_serves_in_one_line(plan: Plan) -> None:
    assert plan.describe() == (
        "builtin as int8, KV int8, threads=1, kv_cache_gib=0.05, max_context=256, "
        "max_num_requests=4, speculative=off"
    )


def test_a_number_is_a_number() -> None:
    with pytest.raises(ValueError, match="not finite"):
        Measurement(float("nan"))


def changed(plan: Plan, *path: str, to: Any = None, remove: bool = False) -> str:
    document = plan.as_json()
    place = document
    for name in path[:-1]:
        place = place[name]
    if remove:
        del place[path[-1]]
    else:
        place[path[-1]] = to
    return yaml.safe_dump(document)


@pytest.mark.parametrize(
    ("path", "value", "why"),
    [
        (["trimtab_plan"], 2, "a plan of format 2, but this version of trimtab reads 1"),
        (["trimtab_plan"], None, "not a trimtab plan"),
        (["colour"], "red", "unknown key 'colour'"),
        (["engine", "turbo"], True, "unknown key 'turbo' in engine"),
        (["engine", "threads"], "two", "engine.threads: 'two' must be a whole number"),
        (["engine", "threads"], True, "engine.threads: True must be a whole number"),
        (["engine", "threads"], -1, "threads=-1: must not be negative"),
        (["engine", "prefix_cache"], 1, "engine.prefix_cache: 1 must be true or false"),
        (["engine", "weights"], "int3", "must be one of"),
        (["engine", "weights"], "bf16", "not those of the variant"),
        (["engine", "speculative"], "magic", "speculative='magic'"),
        (["variant", "weights"], [], "variant.weights"),
        (["variant", "method"], "gptq", "artifact: gptq int8, KV int8 is built"),
        (["variant", "group_size"], 64.5, "variant.group_size"),
        (["model", "hash"], "x" * 64, "is no hash"),
        (["model"], "builtin", "model: must be a mapping"),
        (["artifact"], HASH, "nothing is built"),
        (["machine", "cores"], 0, "cores"),
        (["need", "speed"], "fast", "unknown key 'speed' in need"),
        (["need", "slo"], 3, "need.slo: 3 must be a text"),
        (["measured", "goodput"], 4.2, "must be a mapping"),
        (["measured", "goodput"], {"value": float("nan")}, "must be a number"),
        (["measured", "goodput"], {"low": 1}, "value is missing"),
        (["predicted"], [1], "predicted: must be a mapping"),
        (["versions", "trimtab"], 1, "must be a text"),
    ],
)
def test_damage_is_named(plan: Plan, path: list[str], value: Any, why: str) -> None:
    with pytest.raises(UserError) as caught:
        plan_from_yaml(changed(plan, *path, to=value), "p.yaml")
    message = str(caught.value)
    assert message.startswith("p.yaml: ")
    assert why in message
    assert "\n" not in message


def test_what_is_missing_is_named(plan: Plan) -> None:
    for name in ("model", "variant", "artifact", "engine", "machine"):
        with pytest.raises(UserError, match=f"{name} is missing"):
            plan_from_yaml(changed(plan, name, remove=True), "p.yaml")
    for name in ("headline", "created", "need", "measured", "predicted", "versions"):
        plan_from_yaml(changed(plan, name, remove=True), "p.yaml")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[1, 2]",
        "a: b: c",
        "\t",
        "'unclosed",
        "!!python/object/apply:os.system ['true']",
        "a: &x [1]\nb: *x",
        "? {a: b}\n: c",
        "<<: {trimtab_plan: 1}",
        "--- 1\n--- 2",
        "[" * 3000,
        "a: 2001-99-99",
        "a: !!int zero",
        "\x00",
        "%YAML 9.9\n---\na: b",
    ],
)
def test_what_is_no_plan_is_refused(text: str) -> None:
    with pytest.raises(UserError) as caught:
        plan_from_yaml(text, "p.yaml")
    assert str(caught.value).startswith("p.yaml")
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for content in (b"\xff\xfe\x00", b"#" * (5 << 20)):
        path = tmp_path / "plan.yaml"
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"plan\.yaml"):
            read_plan(path)
    with pytest.raises(UserError, match="No such file"):
        read_plan(tmp_path / "none.yaml")


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.dates(),
    st.binary(max_size=4),
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(scalars, inner, max_size=3),
    max_leaves=4,
)
fuzz = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.mark.parametrize(
    "text", ["a\x85b", "\x85", "a\u2028b", "\u2029", "a\r\nb", "\ufeffé", "\x1b"]
)
def test_odd_characters_in_a_text_are_kept(plan: Plan, text: str) -> None:
    odd = replace(plan, created=text, headline=text)
    assert plan_from_yaml(odd.to_yaml(), "p.yaml") == odd


@fuzz
@given(data=st.data())
def test_any_value_anywhere_is_read_or_refused(plan: Plan, data: st.DataObject) -> None:
    document = plan.as_json()
    place: Any = document
    while True:
        key = data.draw(st.sampled_from(sorted(place)))
        if isinstance(place[key], dict) and place[key] and data.draw(st.booleans()):
            place = place[key]
            continue
        break
    if data.draw(st.booleans()):
        place[data.draw(st.text(max_size=6))] = place.pop(key)
    else:
        place[key] = data.draw(values)
    _read_or_refuse(yaml.safe_dump(document))


@fuzz
@given(data=st.data())
def test_any_edit_of_the_text_is_read_or_refused(plan: Plan, data: st.DataObject) -> None:
    text = plan.to_yaml()
    start = data.draw(st.integers(0, len(text)))
    end = min(len(text), start + data.draw(st.integers(0, 30)))
    inserted = data.draw(st.text(alphabet=st.characters(codec="utf-8"), max_size=10))
    _read_or_refuse(text[:start] + inserted + text[end:])


def _read_or_refuse(text: str) -> None:
    try:
        plan = plan_from_yaml(text, "p.yaml")
    except UserError as error:
        message = str(error)
    else:
        message = ""
        assert plan_from_yaml(plan.to_yaml(), "again") == plan
    assert "\n" not in message
