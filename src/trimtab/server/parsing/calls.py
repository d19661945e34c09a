"""What every syntax of tool calls is made of: where calls go to, and objects that are calls."""

from __future__ import annotations

import enum
from collections.abc import Callable, Collection
from typing import Any, Protocol

from trimtab.server.parsing.json_text import (
    Progress,
    StringDecoder,
    ValueScanner,
    decode_name,
    skip_space,
)
from trimtab.server.parsing.pieces import WHITESPACE, num_settled

NO_ARGUMENTS = "{}"


class CallSink(Protocol):
    """Takes calls, one after another."""

    def begin(self, name: str) -> None: ...

    def arguments(self, text: str) -> None: ...

    def end(self) -> None: ...


class Status(enum.Enum):
    MORE = 1  # all text was taken
    CALL_ENDED = 2  # a call ended just here; what follows may be another
    ENDED = 3  # what follows is content
    FAILED = 4  # this is no call: all that was taken since the last one is content
    RESUMED = 5  # no more calls: read what was taken since the last one as content, from its start


class CallBody(Protocol):
    """The text behind the marker of a call. A body that has begun a call does not fail before it
    ended it."""

    def scan(self, text: str, sink: CallSink) -> tuple[int, Status]:
        """Take from the start of `text`; how many characters. It stops behind the end of a call."""
        ...

    def finish(self, sink: CallSink) -> bool:
        """No text follows. Ends an open call as it is; False if what was taken since the last call
        is content."""
        ...


class CallObject:
    """{"name": ..., "arguments": {...}}: keys in any order, others skipped.

    The arguments come out as the model wrote them; those written as a string (JSON in JSON) as what
    the string says; null and none at all as {}.
    """

    def __init__(self, names: Collection[str] | None = None) -> None:
        """`names`: only these make a call."""
        self._names = names
        self._step: Callable[[str, int, CallSink], tuple[int, Status]] = self._opening
        self._key = ""
        self._collected: list[str] = []
        self._value = ValueScanner()
        self._name: str | None = None
        self._begun = False
        self._arguments: _Arguments | None = None
        self._waiting: list[str] = []  # arguments that came before the name

    @property
    def begun(self) -> bool:
        return self._begun

    @property
    def in_arguments(self) -> bool:
        """Whether a begun call's arguments are not complete."""
        return self._begun and self._step == self._argument

    def scan(self, text: str, at: int, sink: CallSink) -> tuple[int, Status]:
        """From `at` on. CALL_ENDED behind its end. FAILED at a character that cannot stand there;
        if it is `begun`, the call must be ended by whoever knows where."""
        status = Status.MORE
        while at < len(text) and status is Status.MORE:
            if self._step not in (self._string, self._skipped, self._argument):
                at = skip_space(text, at)
                if at == len(text):
                    break
            at, status = self._step(text, at, sink)
        return at, status

    def finish(self, sink: CallSink) -> None:
        """End a begun call as it is."""
        if self._arguments is not None and self._step == self._argument:
            self._arguments.finish()
        sink.end()

    def _opening(self, text: str, at: int, sink: CallSink) -> tuple[int, Status]:
        self._step = self._key_or_end
        return (at + 1, Status.MORE) if text[at] == "{" else (at, Status.FAILED)

    def _key_or_end(self, text: str, at: int, sink: CallSink) -> tuple[int, Status]:
        if text[at] == "}":
            return self._close(at, sink)
        if text[at] != '"':
            return at, Status.FAILED
        return self._collect(at, is_key=True)

    def _collect(self, at: int, *, is_key: bool) -> tuple[int, Status]:
        self._is_key = is_key
        self._collected = []
        self._value = ValueScanner()
        self._step = self._string
        return at, Status.MORE

    def _string(self, text: str, at: int, sink: CallSink) -> tuple[int, Status]:
        """A key or the name."""
        end, progress = self._value.scan(text, at)
        self._collected.append(text[at:end])
        if progress is Progress.MORE:
            return end, Status.MORE
        word = decode_name("".join(self._collected)) if progress is Progress.DONE else None
        if word is None or (not self._is_key and not self._named(word, sink)):
            return end, Status.FAILED
        if self._is_key:
            self._key = word
            self._step = self._colon
        else:
            self._step = self._comma
        return end, Status.MORE

    def _named(self, name: str, sink: CallSink) -> bool:
        if name == "" or (self._names is not None and name not in self._names):
            return False
        self._name = name
        if self._arguments is not None:
            self._begin(sink)
            sink.arguments("".join(self._waiting))
        return True

    def _begin(self, sink: CallSink) -> None:
        assert self._name is not None
        self._begun = True
        sink.begin(self._name)

    def _colon(self, text: str, at: int, sink: CallSink) -> tuple[int, Status]:
        self._step = self._begin_value
        return (at + 1, Status.MORE) if text[at] == ":" else (at, Status.FAILED)

    def _begin_value(self, text: str, at: int, sink: CallSink) -> tuple[int, Status]:
        if self._key == "name" and self._name is None:
            return self._collect(at, is_key=False) if text[at] == '"' else (at, Status.FAILED)
        self._value = ValueScanner()
        self._step = self._skipped
        if self._key in ("arguments", "parameters") and self._arguments is None:
            write = self._waiting.append
            if self._name is not None:
                self._begin(sink)
                write = sink.arguments
            self._arguments = _Arguments(text[at], write)
            self._step = self._argument
        return at, Status.MORE

    def _skipped(self, text: str, at: int, sink: CallSink) -> tuple[int, Status]:
        return self._in_value(text, at)

    def _argument(self, text: str, at: int, sink: CallSink) -> tuple[int, Status]:
        end, status = self._in_value(text, at)
        assert self._arguments is not None
        complete = self._step == self._comma
        self._arguments.push(text[at:end], complete)
        return end, status

    def _in_value(self, text: str, at: int) -> tuple[int, Status]:
        end, progress = self._value.scan(text, at)
        if progress is Progress.DONE:
            self._step = self._comma
        return end, Status.FAILED if progress is Progress.BROKEN else Status.MORE

    def _comma(self, text: str, at: int, sink: CallSink) -> tuple[int, Status]:
        if text[at] == "}":
            return self._close(at, sink)
        self._step = self._key_or_end
        return (at + 1, Status.MORE) if text[at] == "," else (at, Status.FAILED)

    def _close(self, at: int, sink: CallSink) -> tuple[int, Status]:
        if self._name is None:
            return at, Status.FAILED
        if not self._begun:
            self._begin(sink)
        if self._arguments is None:
            sink.arguments(NO_ARGUMENTS)
        sink.end()
        return at + 1, Status.CALL_ENDED


class _Arguments:
    """The value of the arguments, by its first character."""

    def __init__(self, first: str, write: Callable[[str], Any]) -> None:
        self._write = write
        self._decoder = StringDecoder() if first == '"' else None
        self._streams = first in "{["
        self._collected: list[str] = []  # what does not stream: a number, null ...
        self._num_taken = 0
        self._written = False

    def push(self, text: str, complete: bool) -> None:
        if self._decoder is not None:
            start = 1 if self._num_taken == 0 and text else 0  # the opening quote
            self._num_taken += len(text)
            self._out(self._decoder.push(text[start : len(text) - 1 if complete else None]))
        elif self._streams:
            self._out(text)
        else:
            self._collected.append(text)
        if complete:
            self.finish()
            if not self._written:
                self._out(NO_ARGUMENTS)

    def finish(self) -> None:
        """No more of it will come. Idempotent."""
        if self._decoder is not None:
            self._out(self._decoder.finish())
        rest = "".join(self._collected)
        self._collected = []
        self._out(NO_ARGUMENTS if rest == "null" else rest)

    def _out(self, text: str) -> None:
        if text:
            self._written = True
            self._write(text)


class Remainder:
    """What follows arguments that broke: they go on as they stand, up to the end marker (with the
    white space before it), or to the end of the output without one."""

    def __init__(self, end_marker: str = "") -> None:
        self._marker = end_marker
        self._held = ""

    def scan(self, text: str, sink: CallSink) -> tuple[int, Status]:
        held = self._held + text
        at = held.find(self._marker) if self._marker else -1
        if at >= 0:
            num_before = len(self._held)
            self._held = ""
            self._write(held[:at].rstrip(WHITESPACE), sink)
            sink.end()
            return at + len(self._marker) - num_before, Status.ENDED
        free = num_settled(held, (self._marker,)) if self._marker else len(held)
        self._write(held[:free], sink)
        self._held = held[free:]
        return len(text), Status.MORE

    def finish(self, sink: CallSink) -> None:
        self._write(self._held, sink)
        self._held = ""
        sink.end()

    def _write(self, text: str, sink: CallSink) -> None:
        if text:
            sink.arguments(text)


class ListedCalls:
    """Objects, in brackets with commas between them or one after the other; no end marker."""

    def __init__(self, names: Collection[str] | None, separators: str) -> None:
        """`separators`: what may stand between objects without brackets, beside white space."""
        self._names = names
        self._separators = separators
        self._bracketed = False
        self._num_calls = 0
        self._object: CallObject | None = None
        self._remainder: Remainder | None = None

    def scan(self, text: str, sink: CallSink) -> tuple[int, Status]:
        at = 0
        while at < len(text):
            if self._remainder is not None:
                count, status = self._remainder.scan(text[at:], sink)
                return at + count, status
            if self._object is None:
                at = skip_space(text, at)
                if at == len(text):
                    break
                taken, status = self._between(text[at])
                at += taken
                if status is not Status.MORE:
                    return at, status
                continue
            at, status = self._object.scan(text, at, sink)
            if status is Status.CALL_ENDED:
                self._object = None
                self._num_calls += 1
                return at, status
            if status is Status.FAILED:
                if not self._object.begun:
                    return at, Status.FAILED
                if not self._object.in_arguments:
                    self._object.finish(sink)
                    self._object = None
                    return at, Status.ENDED
                self._remainder = Remainder()
        return len(text), Status.MORE

    def finish(self, sink: CallSink) -> bool:
        if self._remainder is not None:
            self._remainder.finish(sink)
            return True
        if self._object is not None and self._object.begun:
            self._object.finish(sink)
            return True
        return self._object is None and self._num_calls > 0

    def _between(self, character: str) -> tuple[int, Status]:
        """One character outside of objects."""
        if character == "{":
            self._object = CallObject(self._names)
        elif character == "[" and self._num_calls == 0 and not self._bracketed:
            self._bracketed = True
            return 1, Status.MORE
        elif character == "]" and self._bracketed and self._num_calls:
            return 1, Status.ENDED
        elif self._num_calls and character in ("," if self._bracketed else self._separators):
            return 1, Status.MORE
        else:
            return 0, Status.RESUMED if self._num_calls else Status.FAILED
        return 0, Status.MORE
