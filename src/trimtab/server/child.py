"""One engine process, seen from the front: its start, its socket, its end."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable

import msgspec

from trimtab.server import messages

READ_BYTES = 256 << 10


class EngineChild:
    """A running engine process and the socket that joins it to this one: a pair that has no name,
    so nobody else can come in.

    Made in the thread that lives as long as the front: the kernel ends the child with the thread
    that started it.
    """

    def __init__(self, launch: messages.Launch, take: Callable[[bytes], None]) -> None:
        """`take` gets each frame that the process sends, on the event loop, once this is made.
        Raises OSError if the process cannot be started."""
        self.started_at = time.monotonic()
        self._take = take
        self._frames = messages.Frames()
        self._unsent = bytearray()  # what the socket had no room for
        self._loop = asyncio.get_running_loop()
        self._socket, theirs = socket.socketpair()
        socket_fd = theirs.fileno()
        self._socket.setblocking(False)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _bootstrap()],
                stdin=subprocess.PIPE,
                pass_fds=[socket_fd],
            )
        except OSError:
            self._socket.close()
            raise
        finally:
            theirs.close()
        line = msgspec.json.encode(
            msgspec.structs.replace(launch, socket_fd=socket_fd, parent_pid=os.getpid())
        )
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line + b"\n")
            self._process.stdin.flush()  # left open: its end tells the child that we are gone
        except BrokenPipeError:
            pass  # it died at once; `exit_status` tells

        self._loop.add_reader(self._socket.fileno(), self._read)
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
        """None while it runs; negative: minus the signal that ended it. Once it is known, `exited`
        is done."""
        status = self._process.poll()
        if status is not None:
            self._note_exit()
        return status

    def describe_exit(self) -> str:
        """How it ended, for people."""
        status = self.exit_status()
        if status is None:
            return "was stopped"
        if status < 0:
            return f"was ended by {signal.Signals(-status).name}"
        return f"exited with status {status}"

    def _read(self) -> None:
        try:
            data = self._socket.recv(READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:  # it has ended, or is about to
            self._loop.remove_reader(self._socket.fileno())
            return
        for frame in self._frames.split(data):
            self._take(frame)

    def send(self, command: messages.Command) -> None:
        """Queue a command; never blocks. To a process that is gone it is lost without an error."""
        if self._socket.fileno() < 0:
            return
        waiting = bool(self._unsent)
        self._unsent += messages.framed(messages.encode(command))
        if not waiting:
            self._write()
            if self._unsent:
                self._loop.add_writer(self._socket.fileno(), self._write)

    def _write(self) -> None:
        """As much as there is room for."""
        try:
            del self._unsent[: self._socket.send(self._unsent)]
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._unsent.clear()
        if not self._unsent:
            self._loop.remove_writer(self._socket.fileno())

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
        self._loop.remove_writer(self._socket.fileno())
        self._socket.close()
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
