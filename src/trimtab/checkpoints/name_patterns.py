"""Regular expressions over module names that a file brings along, matched in bounded time.

Python's own matcher tries one way after the other, and a pattern such as `(a+)+b` keeps it busy
for ages. Here all ways are followed at once: the set of positions that a part of the pattern can
reach from a set of positions is one integer, bit i for position i, so that the work is at most
the size of the pattern times the square of the length of the name. Python's parser reads the
pattern; what needs memory of the way (back-references, atomic groups) is refused.
"""

from __future__ import annotations

import importlib
import re
import sys
import warnings
from collections.abc import Callable
from typing import Any

from trimtab.errors import CheckpointError
from trimtab.models.config_reader import show

MAX_PATTERN = 2000  # characters
MAX_STEPS = 5_000_000  # parts of patterns visited, for all names of a checkpoint: seconds
STEPS_TO_READ = 50  # what a character costs the parser

_parser: Any = importlib.import_module("re._parser" if sys.version_info >= (3, 11) else "sre_parse")
_REFUSED_FLAGS = re.IGNORECASE | re.MULTILINE | re.DOTALL | re.VERBOSE | re.LOCALE
_CATEGORIES: dict[str, Callable[[str], bool]] = {
    "CATEGORY_DIGIT": str.isdecimal,
    "CATEGORY_NOT_DIGIT": lambda c: not c.isdecimal(),
    "CATEGORY_SPACE": str.isspace,
    "CATEGORY_NOT_SPACE": lambda c: not c.isspace(),
    "CATEGORY_WORD": lambda c: c.isalnum() or c == "_",
    "CATEGORY_NOT_WORD": lambda c: not (c.isalnum() or c == "_"),
}


class Budget:
    """What the patterns of one checkpoint may cost together. `where` opens the error."""

    def __init__(self, where: str, steps: int = MAX_STEPS) -> None:
        self._where = where
        self._left = steps

    def spend(self, steps: int = 1) -> None:
        self._left -= steps
        if self._left < 0:
            raise CheckpointError(
                f"{self._where}: the patterns over module names take too long to match"
            )


class NamePattern:
    """One pattern, matched as `re.match` does: from the start of a name, not to its end."""

    def __init__(self, pattern: str, where: str, budget: Budget) -> None:
        """`where` opens every error. Raises CheckpointError for what is no pattern, or too much."""
        self._where = f"{where}: the pattern {show(pattern)}"
        self._budget = budget
        if len(pattern) > MAX_PATTERN:
            raise CheckpointError(f"{self._where} has more than {MAX_PATTERN} characters")
        budget.spend(STEPS_TO_READ * len(pattern))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of syntax whose meaning may change
                tree = _parser.parse(pattern)
        except (re.error, OverflowError, RecursionError, ValueError) as error:
            raise CheckpointError(f"{self._where} is no regular expression: {error}") from None
        if tree.state.flags & _REFUSED_FLAGS:
            raise CheckpointError(f"{self._where} has flags, which are not supported")
        self._tree = tree

    def matches(self, name: str) -> bool:
        try:
            return _Match(name, self._budget, self._where).sequence(self._tree, 1) != 0
        except RecursionError:
            raise CheckpointError(f"{self._where} is nested too deeply") from None


class _Match:
    """Positions 0..len(name) as bits; every method gives the positions after its part."""

    def __init__(self, name: str, budget: Budget, where: str) -> None:
        self._name = name
        self._budget = budget
        self._where = where
        self._everywhere = (1 << len(name)) - 1  # but for the end
        self._places_of: dict[str, int] = {}  # character -> where it is
        for position, character in enumerate(name):
            self._places_of[character] = self._places_of.get(character, 0) | 1 << position
        self._places_of_class: dict[int, int] = {}  # by identity of the class in the tree

    def sequence(self, items: Any, starts: int) -> int:
        for opcode, argument in items:
            if not starts:
                return 0
            starts = self._part(str(opcode), argument, starts)
        return starts

    def _part(self, opcode: str, argument: Any, starts: int) -> int:
        self._budget.spend()
        places = self._places(opcode, argument)
        if places is not None:
            return (starts & places) << 1
        if opcode == "BRANCH":
            ends = 0
            for branch in argument[1]:
                ends |= self.sequence(branch, starts)
            return ends
        if opcode == "SUBPATTERN" and not argument[1] and not argument[2]:
            return self.sequence(argument[3], starts)
        if opcode in ("MAX_REPEAT", "MIN_REPEAT"):
            least, most, item = argument
            return self._repeat(least, most, item, starts)
        if opcode == "AT":
            return starts & self._anchors(str(argument))
        if opcode in ("ASSERT", "ASSERT_NOT") and argument[0] == 1:
            return self._look_ahead(argument[1], starts, opcode == "ASSERT")
        raise CheckpointError(f"{self._where} uses {opcode.lower()}, which is not supported")

    def _places(self, opcode: str, argument: Any) -> int | None:
        """Where a character is that a part for one character takes; None: it is no such part."""
        if opcode == "LITERAL":
            return self._places_of.get(chr(argument), 0)
        if opcode == "NOT_LITERAL":
            return self._everywhere & ~self._places_of.get(chr(argument), 0)
        if opcode == "ANY":
            return self._everywhere & ~self._places_of.get("\n", 0)
        return self._class(argument) if opcode == "IN" else None

    def _class(self, items: Any) -> int:
        """Where a character of the class is."""
        places = self._places_of_class.get(id(items))
        if places is None:
            self._budget.spend(len(items) * len(self._places_of))
            places = 0
            for character, its_places in self._places_of.items():
                if _in_class(items, character):
                    places |= its_places
            self._places_of_class[id(items)] = places
        return places

    def _repeat(self, least: int, most: Any, item: Any, starts: int) -> int:
        # After more turns than there are positions, one turn stayed in place and can be repeated
        # or left out: nothing changes any more.
        turns = len(self._name) + 1
        for _ in range(min(least, turns)):
            starts = self.sequence(item, starts)
        if len(item) == 1 and int(most) - least >= turns:
            places = self._places(str(item[0][0]), item[0][1])
            if places is not None:  # a sum carries every start to the end of its run
                return starts | (((starts & places) + places) ^ places)
        ends = reached = starts
        for _ in range(min(int(most) - least, turns)):
            reached = self.sequence(item, reached) & ~ends
            if not reached:
                break
            ends |= reached
        return ends

    def _look_ahead(self, item: Any, starts: int, wanted: bool) -> int:
        ends = 0
        for position in range(len(self._name) + 1):
            start = 1 << position
            if starts & start and (self.sequence(item, start) != 0) == wanted:
                ends |= start
        return ends

    def _anchors(self, anchor: str) -> int:
        last = len(self._name)
        if anchor in ("AT_BEGINNING", "AT_BEGINNING_STRING"):
            return 1
        if anchor == "AT_END_STRING":
            return 1 << last
        if anchor == "AT_END":
            return 1 << last | (1 << (last - 1) if self._name.endswith("\n") else 0)
        if anchor not in ("AT_BOUNDARY", "AT_NON_BOUNDARY"):
            raise CheckpointError(f"{self._where} uses {anchor.lower()}, which is not supported")
        is_word = _CATEGORIES["CATEGORY_WORD"]
        words = [False, *(is_word(character) for character in self._name), False]
        wanted = anchor == "AT_BOUNDARY"
        return sum(1 << i for i in range(last + 1) if (words[i] != words[i + 1]) == wanted)


def _in_class(items: Any, character: str) -> bool:
    negated = found = False
    for opcode, argument in items:
        kind = str(opcode)
        if kind == "NEGATE":
            negated = True
        elif kind == "LITERAL":
            found |= ord(character) == argument
        elif kind == "RANGE":
            found |= argument[0] <= ord(character) <= argument[1]
        else:
            found |= _CATEGORIES[str(argument)](character)
    return found != negated
