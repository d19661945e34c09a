"""The import rule holds, and its checker can see a breach."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
_spec = importlib.util.spec_from_file_location("import_rule", ROOT / "tools" / "import_rule.py")
assert _spec is not None
assert _spec.loader is not None
import_rule = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(import_rule)


def test_the_house_stands() -> None:
    assert import_rule.violations(ROOT / "src" / "trimtab") == []


@pytest.mark.parametrize(
    ("room", "statement", "seen"),
    [
        ("engine", "from trimtab.server import app", True),
        ("engine", "def f():\n    import trimtab.cli.main", True),
        ("server", "from trimtab.bench import load", True),
        ("models", "from . import spec", True),
        ("engine", "from trimtab import LLM", True),
        ("engine", "from trimtab.executors.base import StepBatch", False),
        ("cli", "from trimtab.engine.llm import LLM", False),
    ],
)
def test_a_breach_is_seen(tmp_path: Path, room: str, statement: str, seen: bool) -> None:
    (tmp_path / room).mkdir()
    (tmp_path / room / "module.py").write_text(statement + "\n")
    assert bool(import_rule.violations(tmp_path)) is seen


def test_import_trimtab_loads_nothing_heavy() -> None:
    code = "import sys, trimtab; print(' '.join(sys.modules))"
    loaded = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(ROOT / "src")},
    ).stdout.split()
    heavy = {"numpy", "torch", "transformers", "starlette", "tokenizers", "jinja2", "ray"}
    assert heavy.isdisjoint(loaded)
