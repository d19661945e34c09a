"""What the front process and the engine process say to each other, and how it is framed.

Every frame is its length in four bytes, the lowest first, and one msgpack document of a tagged
struct; the tag decides the type, unknown tags and fields of the wrong type are refused. Nothing is
ever unpickled.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import msgspec

from trimtab.config import ExecutorConfig, SchedulerConfig
from trimtab.engine.client import EngineInfo, EngineRequest, EngineStats, TokenOutput

MAX_FRAME_BYTES = 64 << 20
LENGTH_BYTES = 4
HEARTBEAT_SECONDS = 0.5
STATS_SECONDS = 0.1  # between outputs that bring them


class Launch(msgspec.Struct, frozen=True):
    """The first line of the engine process's standard input, as JSON.

    Standard input then stays open: its end tells the engine process that the front is gone.
    """

    model: str
    executor: ExecutorConfig
    scheduler: SchedulerConfig
    socket_fd: int  # that joins it to the front, inherited
    loader: str  # "module:function", called with (model, executor, scheduler)
    parent_pid: int
    debug: bool = False


class Submit(msgspec.Struct, frozen=True, tag="submit"):
    request: EngineRequest


class Abort(msgspec.Struct, frozen=True, tag="abort"):
    request_id: str


class ResetPrefixCache(msgspec.Struct, frozen=True, tag="reset_prefix_cache"):
    """Requests that are submitted after this find nothing of what was computed before it."""


class Shutdown(msgspec.Struct, frozen=True, tag="shutdown"):
    """Finish the running step, release everything, exit 0."""


class Heartbeat(msgspec.Struct, frozen=True, tag="heartbeat"):
    """The engine process's event loop runs; `stats` is None while the model loads."""

    stats: EngineStats | None = None


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    info: EngineInfo
    stats: EngineStats


class StartFailed(msgspec.Struct, frozen=True, tag="start_failed"):
    """The last message of a process that could not start. `message` is one line for the user."""

    message: str
    user_error: bool


class Outputs(msgspec.Struct, frozen=True, tag="outputs"):
    """Everything that one step added, to all requests."""

    outputs: list[TokenOutput]
    stats: EngineStats | None = None  # now and then, and when a request has ended


class Rejected(msgspec.Struct, frozen=True, tag="rejected"):
    """A Submit that was not accepted; the request never existed in the engine."""

    request_id: str
    reason: Literal["request", "queue_full", "failed"]
    message: str
    param: str | None = None
    code: str | None = None


Command = Submit | Abort | ResetPrefixCache | Shutdown
Event = Heartbeat | Ready | StartFailed | Outputs | Rejected

_encoder = msgspec.msgpack.Encoder()
_command_decoder: msgspec.msgpack.Decoder[Command] = msgspec.msgpack.Decoder(Command)
_event_decoder: msgspec.msgpack.Decoder[Event] = msgspec.msgpack.Decoder(Event)


def encode(message: Command | Event) -> bytes:
    return _encoder.encode(message)


def decode_command(frame: bytes) -> Command:
    """Raises msgspec.ValidationError or DecodeError for anything but a well-formed Command."""
    return _command_decoder.decode(frame)


def decode_event(frame: bytes) -> Event:
    """Raises msgspec.ValidationError or DecodeError for anything but a well-formed Event."""
    return _event_decoder.decode(frame)


def framed(document: bytes) -> bytes:
    return len(document).to_bytes(LENGTH_BYTES, "little") + document


class Frames:
    """Cuts a stream of bytes into documents."""

    def __init__(self) -> None:
        self._rest = bytearray()  # of a frame that is not whole yet

    def split(self, data: bytes) -> Iterator[bytes]:
        """The documents that are whole with this piece of the stream. One that is longer than
        MAX_FRAME_BYTES comes out empty, which no document is, and everything after it is lost."""
        if not self._rest and len(data) >= LENGTH_BYTES:
            size = int.from_bytes(data[:LENGTH_BYTES], "little")
            if len(data) == LENGTH_BYTES + size:  # as nearly always
                yield data[LENGTH_BYTES:]
                return
        self._rest += data
        while len(self._rest) >= LENGTH_BYTES:
            end = LENGTH_BYTES + int.from_bytes(self._rest[:LENGTH_BYTES], "little")
            if end > LENGTH_BYTES + MAX_FRAME_BYTES:
                self._rest.clear()
                yield b""
                return
            if len(self._rest) < end:
                return
            document = bytes(self._rest[LENGTH_BYTES:end])
            del self._rest[:end]
            yield document
