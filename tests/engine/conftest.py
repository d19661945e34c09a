"""Tests that make their executor by `toy`, `toy_class` or `late` run on the toy and on the torch
executor.

Those of hypothesis run on the toy here, and with fewer examples on torch in
tests/executors/gpu/test_engine_laws.py.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FunctionType

import engine_schedules
import pytest

sys.path.append(str(Path(__file__).parents[1] / "executors"))

_MAKERS = {"toy", "toy_class", "late"}
_KINDS = ("toy", "torch") if importlib.util.find_spec("torch") else ("toy",)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    function = metafunc.function
    if hasattr(function, "hypothesis"):
        return
    own_fixtures = any(hasattr(metafunc.module, name) for name in metafunc.fixturenames)
    made = own_fixtures and any(hasattr(metafunc.module, name) for name in _MAKERS)
    if made or _makes_one(function, set()):
        metafunc.parametrize("executor_kind", _KINDS, indirect=True)


def _makes_one(function: FunctionType, seen: set[FunctionType]) -> bool:
    """By itself, or by a function of the tests that it calls."""
    seen.add(function)
    names = {name for code in _codes(function.__code__) for name in code.co_names}
    if names & _MAKERS:
        return True
    called = [function.__globals__.get(name) for name in names]
    return any(
        isinstance(one, FunctionType)
        and one not in seen
        and Path(one.__code__.co_filename).parent == Path(__file__).parent
        and _makes_one(one, seen)
        for one in called
    )


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


@pytest.fixture(autouse=True)
def executor_kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if getattr(request, "param", "toy") == "torch":
        from torch_toy import TorchToy

        monkeypatch.setattr(engine_schedules, "TOY", TorchToy)
