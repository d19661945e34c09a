"""What must not be in the package at all: ways from data to code, and from a request to a file or
another machine. Whoever needs one of these adds it to the list below, with a reason."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "trimtab"

MODULES = {
    "pickle", "cPickle", "_pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib", "yaml",
    "code", "codeop", "runpy", "urllib.request", "ftplib", "smtplib", "telnetlib", "xmlrpc",
    "requests", "httpx", "aiohttp", "urllib3",
}  # fmt: skip
CALLS = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "os.exec", "os.execv",
    "torch.load", "torch.hub.load", "yaml.load", "yaml.unsafe_load", "numpy.load", "np.load",
    "urlopen", "urlretrieve", "subprocess.call", "subprocess.run", "subprocess.check_output",
    "tempfile.mktemp",
}  # fmt: skip
ALLOWED: set[tuple[str, str]] = {
    ("optimizer/plan_yaml.py", "yaml"),  # safe_dump
    ("optimizer/safe_yaml.py", "yaml"),  # safe_load, of what has no aliases and no depth
}


def dotted(node: ast.expr) -> str:
    """`a.b.c` of such an expression, otherwise nothing."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return ""


def dangers(text: str) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(text)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")
            prefixes = {".".join(parts[: i + 1]) for i in range(len(parts))}
            found |= prefixes & (MODULES | CALLS)
        if isinstance(node, ast.Call):
            name = dotted(node.func)
            found |= {name, name.rpartition(".")[2] if "urlopen" in name else ""} & CALLS
            if any(
                keyword.arg in ("shell", "trust_remote_code", "allow_pickle")
                and not (isinstance(keyword.value, ast.Constant) and keyword.value.value is False)
                for keyword in node.keywords
            ):
                found.add(f"{name}(shell, trust_remote_code, allow_pickle)")
    return found


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "import os\nos.system('x')",
        "from marshal import loads",
        "def f():\n    from urllib.request import urlopen",
        "import torch\ntorch.load('x')",
        "eval('1')",
        "import subprocess\nsubprocess.Popen('x', shell=True)",
        "f(trust_remote_code=flag)",
        "import numpy as np\nnp.load(path, allow_pickle=True)",
    ],
)
def test_it_is_seen(text: str) -> None:
    assert dangers(text)


def test_harmless_text_is_harmless() -> None:
    assert not dangers("import re, json\nre.compile('x')\nf(shell=False)\nevaluate('1')")


def test_there_is_none_in_the_package() -> None:
    found = {
        (str(path.relative_to(SOURCE)), danger)
        for path in sorted(SOURCE.rglob("*.py"))
        for danger in dangers(path.read_text())
    }
    assert found == ALLOWED
