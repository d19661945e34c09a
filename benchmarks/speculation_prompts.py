"""Prompts for measuring speculative decoding, cut from the built-in model's held-out code.

Nothing here looks at a model: a prompt is chosen by where and how long it is.
"""

from __future__ import annotations

import keyword
import re
import textwrap
from collections import Counter

from trimtab.builtin import heldout_path

CODE_CHARACTERS = 800
EDIT_CHARACTERS = (500, 1100)  # of a function that is to be edited
RENAME = "Replace {old} with {new}:\n{source}"  # as tools/builtin_model/train_edits.py asks
_NAME = re.compile(r"(?<![\w.])[a-z_]{4,}\b")
_DEFINITION = re.compile(r"( *)def (\w+)\(")


def code_prompts(count: int = 24) -> list[str]:
    """Whole lines, about 800 characters (250 tokens) of them, from `count` places that are evenly
    spaced; the answer goes on with the file."""
    text = heldout_path().read_text(encoding="utf-8")
    prompts = []
    for place in range(count):
        start = text.index("\n", place * (len(text) - 2 * CODE_CHARACTERS) // count) + 1
        prompts.append(text[start : text.rindex("\n", start, start + CODE_CHARACTERS) + 1])
    return prompts


def edit_prompts(count: int = 24) -> list[str]:
    """A function, its copy under another name, and the first line of one more copy.

    The functions are `count` of those with 500 to 1,100 characters, evenly spaced. The answer that
    is asked for is the function's body once more.
    """
    return [
        f"{source}\n\n{_renamed(source, name, 2)}\n\n{_renamed(source, name, 3).splitlines()[0]}\n"
        for name, source in _chosen(count)
    ]


def rename_prompts(count: int = 24) -> list[str]:
    """What to ask the editor of train_edits.py (the built-in model copies next to nothing): the
    functions of `edit_prompts`, in each of which the most frequent name but `self` is to be
    replaced by that of the function after it. The answer is the function once more, but for that
    name.
    """
    chosen = _chosen(count)
    prompts = []
    for place, (_, source) in enumerate(chosen):
        names = _names(source)
        others = [name for _, later in (*chosen[place + 1 :], *chosen) for name in _names(later)]
        old = names[0]
        new = next(name for name in others if not re.search(rf"\b{name}\b", source))
        prompts.append(RENAME.format(old=old, new=new, source=source.strip("\n")))
    return prompts


def _chosen(count: int) -> list[tuple[str, str]]:
    """Name and source of held-out functions of the size to edit, evenly spaced."""
    functions = [
        (name, source)
        for name, source in _functions(heldout_path().read_text(encoding="utf-8"))
        if EDIT_CHARACTERS[0] <= len(source) <= EDIT_CHARACTERS[1]
    ]
    return [functions[place * len(functions) // count] for place in range(count)]


def _names(source: str) -> list[str]:
    """The most frequent first; without attributes."""
    no_names = {*keyword.kwlist, "self"}
    found = Counter(name for name in _NAME.findall(source) if name not in no_names)
    return [name for name, _ in found.most_common()]


def _renamed(source: str, name: str, number: int) -> str:
    return source.replace(f"def {name}(", f"def {name}_{number}(", 1)


def _functions(text: str) -> list[tuple[str, str]]:
    """Name and source, without its indentation, of every function and method, in order."""
    lines = text.split("\n")
    functions = []
    for first, line in enumerate(lines):
        definition = _DEFINITION.match(line)
        if definition is None:
            continue
        last = first + 1
        while last < len(lines) and _is_inside(lines[last], len(definition[1])):
            last += 1
        source = textwrap.dedent("\n".join(lines[first:last]).rstrip() + "\n")
        functions.append((definition[2], source))
    return functions


def _is_inside(line: str, indentation: int) -> bool:
    return not line.strip() or len(line) - len(line.lstrip()) > indentation
