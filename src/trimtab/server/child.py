"""One engine process, seen from the front: its start, its socket, its end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import msgspec
import zmq

from trimtab.server import messages

SOCKET_NAME = "engine"
MAX_DIRECTORY_BYTES = 107 - len("/" + SOCKET_NAME)  # a Unix socket's path has 107


def private_directory() -> Path:
    """A new directory that only this user can enter, short enough to hold a socket's path."""
    directory = tempfile.mkdtemp(prefix="trimtab-")
    if len(directory.encode()) > MAX_DIRECTORY_BYTES:
        Path(directory).rmdir()
        directory = tempfile.mkdtemp(prefix="trimtab-", dir="/tmp")
    return Path(directory)


class EngineChild:
    """A running engine process and the socket that joins it to this one.

    Made in the thread that lives as long as the front: the kernel ends the child with the thread
    that started it.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], launch: messages.Launch) -> None:
        self.started_at = time.monotonic()
        self._directory: Path | None = private_directory()
        address = f"ipc://{self._directory / SOCKET_NAME}"
        self._socket = context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.SNDHWM, 0)
        self._socket.setsockopt(zmq.RCVHWM, 0)
        self._socket.setsockopt(zmq.MAXMSGSIZE, messages.MAX_FRAME_BYTES)
        self._socket.bind(address)
        self._frames: deque[bytes] = deque()  # that came in and were not asked for yet
        self._arrival: asyncio.Future[None] | None = None  # what `receive` waits for
        self._loop = asyncio.get_running_loop()
        self._process = subprocess.Popen(
            [sys.executable, "-c", _bootstrap()], stdin=subprocess.PIPE
        )
        line = msgspec.json.encode(
            msgspec.structs.replace(launch, address=address, parent_pid=os.getpid())
        )
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line + b"\n")
            self._process.stdin.flush()  # left open: its end tells the child that we are gone
        except BrokenPipeError:
            pass  # it died at once; `exit_status` tells

        self._loop.add_reader(self._socket.fileno(), self._read_frames)
        self.exited = self._loop.create_future()  # done once it has ended
        self._exit_fd = _watch_exit(self._process.pid, self._note_exit)

    def _note_exit(self) -> None:
        self._forget_exit_fd()
        if not self.exited.done():
            self.exited.set_result(None)

    def _forget_exit_fd(self) -> None:
        if self._exit_fd is not None:
            asyncio.get_running_loop().remove_reader(self._exit_fd)
            os.close(self._exit_fd)
            self._exit_fd = None

    @property
    def pid(self) -> int:
        return self._process.pid

    def exit_status(self) -> int | None:
        """None while it runs; negative: minus the signal that ended it."""
        return self._process.poll()

    def describe_exit(self) -> str:
        """How it ended, for people."""
        status = self.exit_status()
        if status is None:
            return "was stopped"
        if status < 0:
            return f"was ended by {signal.Signals(-status).name}"
        return f"exited with status {status}"

    async def receive(self) -> messages.Event:
        """The next event. Raises msgspec errors for a malformed frame."""
        while not self._frames:
            self._arrival = self._loop.create_future()
            await self._arrival
        event = messages.decode_event(self._frames.popleft())
        self._close_the_door()
        return event

    def _read_frames(self) -> None:
        """All that is there: the socket's descriptor tells of a change, and only once."""
        try:
            while not self._socket.closed:
                self._frames.append(self._socket.recv(zmq.NOBLOCK))
        except zmq.Again:
            pass
        if self._frames and self._arrival is not None and not self._arrival.done():
            self._arrival.set_result(None)

    def send(self, command: messages.Command) -> None:
        """Queue a command; never blocks. To a process that is gone it is lost without an error."""
        with contextlib.suppress(zmq.ZMQError):
            self._socket.send(messages.encode(command), zmq.NOBLOCK)
        # Sending may have taken note of what came in meanwhile: then its descriptor tells no more.
        self._loop.call_soon(self._read_frames)

    def _close_the_door(self) -> None:
        """The two are joined: nobody else shall come in, and nothing be left if we are killed."""
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None

    async def stop(self, grace_seconds: float) -> None:
        """Ask it to end, wait, then kill; always reaps it and closes the socket."""
        if grace_seconds > 0 and self.exit_status() is None:
            self.send(messages.Shutdown())
            deadline = time.monotonic() + grace_seconds
            while self.exit_status() is None and time.monotonic() < deadline:
                await asyncio.sleep(0.01)
        if self.exit_status() is None:
            self._process.kill()
            while self.exit_status() is None:
                await asyncio.sleep(0.01)
        self._forget_exit_fd()
        self._loop.remove_reader(self._socket.fileno())
        self._socket.close(0)
        self._close_the_door()
        if self._process.stdin is not None:
            self._process.stdin.close()


def _watch_exit(pid: int, note: Callable[[], None]) -> int | None:
    """Have `note` called when the process ends. A descriptor to give back; None where the system
    has no such thing, and only asking tells."""
    try:
        descriptor = os.pidfd_open(pid)
    except (AttributeError, OSError):
        return None
    asyncio.get_running_loop().add_reader(descriptor, note)
    return descriptor


def _bootstrap() -> str:
    """What the child runs. It imports from where we import from, the working directory excluded."""
    path = [entry for entry in sys.path if entry]
    return (
        f"import sys; sys.path[:] = {path!r};"
        " from trimtab.server.engine_process import main; sys.exit(main())"
    )
