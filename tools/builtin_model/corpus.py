"""The text that the built-in model is trained on: the running interpreter's standard library.

``HELD_OUT`` modules never reach the tokenizer, the training text, or the recall questions; they
are the held-out text.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path

HELD_OUT = (
    "asyncio/queues.py",
    "calendar.py",
    "cmd.py",
    "colorsys.py",
    "concurrent/futures/thread.py",
    "csv.py",
    "email/header.py",
    "fileinput.py",
    "fnmatch.py",
    "graphlib.py",
    "heapq.py",
    "http/cookies.py",
    "json/decoder.py",
    "json/encoder.py",
    "netrc.py",
    "queue.py",
    "sched.py",
    "shlex.py",
    "textwrap.py",
    "timeit.py",
    "unittest/suite.py",
    "urllib/robotparser.py",
    "wsgiref/headers.py",
    "xml/dom/pulldom.py",
)

# Directories of tests and vendored copies, and files that are tables rather than prose or code.
SKIPPED_PARTS = {"site-packages", "__pycache__", "tests", "idle_test", "lib2to3", "ensurepip"}
SKIPPED_FILES = re.compile(
    r"(^|/)(_sysconfigdata.*|this|antigravity|pydoc_data/__init__)\.py$"
    r"|^encodings/(?!__init__|aliases|idna|punycode|utf_8|hex_codec|base64_codec)"
    r"|^html/entities\.py$|^config-"
)
MAX_FILE_BYTES = 800_000

RECALL_MODULES = (  # noqa: SIM905
    "builtins math os os.path itertools time random shutil statistics operator re json collections "
    "datetime pathlib glob tempfile subprocess inspect copy hashlib base64 bisect functools "
    "contextlib difflib pprint string uuid secrets zlib warnings urllib.parse"
).split()
RECALL_CLASSES = ("str", "list", "dict", "set", "int", "float", "pathlib.Path")
MAX_ANSWER_CHARS = 60


def library_dir() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def source_files(include_tests: bool = False) -> Iterator[tuple[str, str]]:
    """(path relative to Lib, text) of every training source, in sorted order."""
    root = library_dir()
    skipped = SKIPPED_PARTS if include_tests else SKIPPED_PARTS | {"test"}
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        if set(path.relative_to(root).parts) & skipped or SKIPPED_FILES.search(name):
            continue
        if name in HELD_OUT or _tests_held_out(name) or path.stat().st_size > MAX_FILE_BYTES:
            continue
        try:
            yield name, path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue


def _tests_held_out(name: str) -> bool:
    """Whether a test file is about a held-out module (it would quote it)."""
    if "test/" not in name:
        return False
    stems = {held.rsplit("/", 1)[-1][:-3] for held in HELD_OUT}
    return any(stem in name for stem in stems)


def held_out_text() -> str:
    """The held-out modules, one after the other."""
    root = library_dir()
    return "\n".join((root / name).read_text(encoding="utf-8").strip() + "\n" for name in HELD_OUT)


def training_documents(include_tests: bool = False) -> list[str]:
    """Sources, with the language reference of ``pydoc`` turned back into prose."""
    documents = []
    for name, text in source_files(include_tests):
        if name == "pydoc_data/topics.py":
            documents.extend(_topics(text))
        else:
            documents.append(text)
    return documents


def _topics(text: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Dict):
            for value in node.values:
                if isinstance(value, ast.Constant) and isinstance(value.value, str):
                    yield value.value
            return


def first_sentence(thing: object) -> str | None:
    """The first sentence of a docstring on one line, or None where there is none."""
    if not isinstance(getattr(thing, "__doc__", None), str):
        return None
    paragraph = " ".join((inspect.getdoc(thing) or "").strip().split("\n\n")[0].split())
    found = re.match(r"(.*?\.)(\s|$)", paragraph)
    return found.group(1) if found else None


def recall_facts() -> dict[str, str]:
    """Name -> first docstring sentence, of public functions with a short, plain one."""
    facts = {}
    for name, thing in _public_functions():
        sentence = first_sentence(thing)
        if sentence is None or not 14 <= len(sentence) <= MAX_ANSWER_CHARS:
            continue
        if re.search(r"[(\"`*|<>=]|->|e\.g\.|i\.e\.", sentence) or not sentence[0].isupper():
            continue
        facts[name] = sentence
    return dict(sorted(facts.items()))


def _public_functions() -> Iterator[tuple[str, object]]:
    held_out = {name[:-3].replace("/", ".") for name in HELD_OUT}
    for module_name in RECALL_MODULES:
        if module_name in held_out:
            continue
        module = importlib.import_module(module_name)
        prefix = "" if module_name == "builtins" else module_name + "."
        homes = {module_name, "_" + module_name, "posix", "posixpath", "genericpath", None}
        for name, thing in sorted(vars(module).items()):
            if name.startswith("_"):
                continue
            qualified = prefix + name
            if inspect.isroutine(thing) and getattr(thing, "__module__", None) in homes:
                yield qualified, thing
            elif inspect.isclass(thing) and qualified in RECALL_CLASSES:
                for method, value in sorted(vars(thing).items()):
                    if not method.startswith("_") and inspect.isroutine(value):
                        yield f"{qualified}.{method}", value


def short_functions(documents: list[str], max_chars: int = 400) -> list[tuple[str, str]]:
    """(docstring sentence, source without the docstring) of short documented functions."""
    found = []
    for text in documents:
        try:
            tree = ast.parse(text)
        except (SyntaxError, ValueError):
            continue
        for node in tree.body:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                pair = _described_function(node, max_chars)
                if pair:
                    found.append(pair)
    return sorted(set(found))


def _described_function(node: ast.FunctionDef, max_chars: int) -> tuple[str, str] | None:
    doc = ast.get_docstring(node)
    if not doc or len(node.body) < 2:
        return None
    sentence = re.match(r"(.*?)\.(\s|$)", " ".join(doc.split("\n\n")[0].split()))
    if not sentence or not 12 <= len(sentence.group(1)) <= 90:
        return None
    node.body = node.body[1:]
    source = ast.unparse(node)
    return (sentence.group(1), source) if len(source) <= max_chars else None


if __name__ == "__main__":
    texts = training_documents()
    facts = recall_facts()
    print(f"{len(texts)} documents, {sum(map(len, texts)):,} characters")
    print(f"held out: {len(held_out_text()):,} characters")
    print(f"{len(facts)} recall facts, {len(short_functions(texts))} short functions")
    for name in list(facts)[::12]:
        print(f"  {name}: {facts[name]}")
