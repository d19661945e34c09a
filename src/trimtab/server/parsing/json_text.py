"""JSON in a stream: where a value ends, and what a string says, without waiting for all of it."""

from __future__ import annotations

import enum
import json
import re

_PLAIN = re.compile(r'[^"\\]*')
_WORD = re.compile(r"[\w+.\-]*")
_SPACE = re.compile(r"[ \t\r\n]*")
# What can be decoded without knowing what follows: a high surrogate waits for its other half.
_UNITS = re.compile(
    r"""(?: [^\\]
        | \\[^u]
        | \\u(?![dD][89abAB])[0-9a-fA-F]{4}
        | \\u[dD][89abAB][0-9a-fA-F]{2}
          (?: \\u[dD][c-fC-F][0-9a-fA-F]{2} | (?=[^\\]|\\[^u]|\\u[^dD]|\\u[dD][^c-fC-F]) )
    )*""",
    re.VERBOSE | re.DOTALL,
)

_ESCAPE = re.compile(
    r"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|\\u[0-9a-fA-F]{4}|\\[^u]",
    re.DOTALL,
)
_SHORT = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", '"': '"', "\\": "\\", "/": "/"}


class Progress(enum.Enum):
    MORE = 1  # all was taken, and it may go on
    DONE = 2
    BROKEN = 3  # the next character cannot stand there


class _Mode(enum.Enum):
    VALUE = 1
    VALUE_OR_END = 2
    KEY = 3
    KEY_OR_END = 4
    COLON = 5
    AFTER = 6
    STRING = 7
    KEY_STRING = 8
    WORD = 9


def skip_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return found.end() if found else at


class ValueScanner:
    """Finds the end of one JSON value. It follows the structure: what a number or a literal says,
    and control characters in strings, do not disturb it."""

    def __init__(self) -> None:
        self._open: list[str] = []  # the brackets that will close what is open
        self._mode = _Mode.VALUE
        self._escaped = False

    def scan(self, text: str, at: int) -> tuple[int, Progress]:
        """How far the value goes in `text` from `at` on, where it begins or goes on."""
        while at < len(text):
            before = at
            mode = self._mode
            if mode in (_Mode.STRING, _Mode.KEY_STRING):
                at, progress = self._string(text, at)
            elif mode is _Mode.WORD:
                found = _WORD.match(text, at)
                at = found.end() if found else at
                progress = self._value_ends() if at < len(text) else Progress.MORE
            else:
                if self._open:
                    at = skip_space(text, at)
                    if at == len(text):
                        break
                progress = self._structure(text[at])
                at += progress is not Progress.BROKEN and self._mode is not _Mode.WORD
            if progress is not Progress.MORE:
                return at, progress
            assert at > before or self._mode is not mode
        return at, Progress.MORE

    def _string(self, text: str, at: int) -> tuple[int, Progress]:
        if self._escaped:
            self._escaped = False
            return at + 1, Progress.MORE
        found = _PLAIN.match(text, at)
        at = found.end() if found else at
        if at == len(text):
            return at, Progress.MORE
        if text[at] == "\\":
            self._escaped = True
            return at + 1, Progress.MORE
        if self._mode is _Mode.KEY_STRING:
            self._mode = _Mode.COLON
            return at + 1, Progress.MORE
        return at + 1, self._value_ends()

    def _value_ends(self) -> Progress:
        self._mode = _Mode.AFTER
        return Progress.MORE if self._open else Progress.DONE

    def _structure(self, character: str) -> Progress:
        """One character outside of strings and words; of a word its first, which is not taken."""
        mode = self._mode
        if self._open and character == self._open[-1]:
            ends = (_Mode.AFTER, _Mode.KEY_OR_END, _Mode.VALUE_OR_END)
            if mode in ends:
                self._open.pop()
                return self._value_ends()
        if mode in (_Mode.VALUE, _Mode.VALUE_OR_END):
            return self._begin(character)
        if mode in (_Mode.KEY, _Mode.KEY_OR_END) and character == '"':
            self._mode = _Mode.KEY_STRING
        elif mode is _Mode.COLON and character == ":":
            self._mode = _Mode.VALUE
        elif mode is _Mode.AFTER and character == ",":
            self._mode = _Mode.KEY if self._open[-1] == "}" else _Mode.VALUE
        else:
            return Progress.BROKEN
        return Progress.MORE

    def _begin(self, character: str) -> Progress:
        if character == "{":
            self._open.append("}")
            self._mode = _Mode.KEY_OR_END
        elif character == "[":
            self._open.append("]")
            self._mode = _Mode.VALUE_OR_END
        elif character == '"':
            self._mode = _Mode.STRING
        elif character.isalnum() or character in "+-_.":
            self._mode = _Mode.WORD
        else:
            return Progress.BROKEN
        return Progress.MORE


class StringDecoder:
    """What a JSON string says: push the text between its quotes."""

    def __init__(self) -> None:
        self._held = ""

    def push(self, text: str) -> str:
        held = self._held + text
        found = _UNITS.match(held)
        free = found.end() if found else 0
        self._held = held[free:]
        return _decoded(held[:free])

    def finish(self) -> str:
        held, self._held = self._held, ""
        return _decoded(held)


def _decoded(text: str) -> str:
    return _ESCAPE.sub(_unescaped, text) if "\\" in text else text


def _unescaped(found: re.Match[str]) -> str:
    """One escape, or a pair. What means nothing stays as it stands; half a pair becomes U+FFFD."""
    escape = found[0]
    if escape[1] != "u":
        return _SHORT.get(escape[1], escape)
    units = bytes.fromhex(escape.replace("\\u", ""))
    return units.decode("utf-16-be", "replace")


def decode_name(literal: str) -> str | None:
    """The text of a JSON string with its quotes; None if it is not one, or not valid Unicode."""
    try:
        name = json.loads(literal)
        name.encode()
    except (ValueError, AttributeError):
        return None
    return str(name)
