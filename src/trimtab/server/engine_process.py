"""The engine process: one EngineClient behind a local socket, started by `server.child`.

It reads one Launch line from standard input, loads the engine, says Ready, then obeys commands.
It ends on Shutdown, and at once when the front process is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import importlib
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import aclosing
from itertools import groupby
from typing import cast

import msgspec
import uvloop

from trimtab.engine.client import EngineClient, EngineRequest, EngineStats, TokenOutput
from trimtab.errors import EngineDeadError, QueueFullError, RequestError, UserError
from trimtab.server import messages
from trimtab.server.messages import Abort, Launch, ResetPrefixCache, Shutdown, Submit

PR_SET_PDEATHSIG = 1
EXIT_FRONT_GONE = 1
EXIT_ENGINE_DEAD = 3
LAST_WORDS_SECONDS = 1.0  # for what is queued when it ends


class Channel:
    """The socket that joins this process to the front, here."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, socket_fd: int) -> Channel:
        os.set_inheritable(socket_fd, False)
        ours = socket.socket(fileno=socket_fd)
        return cls(*await asyncio.open_unix_connection(sock=ours))

    def send(self, message: messages.Event) -> None:
        """Queued; never blocks."""
        self._writer.write(messages.framed(messages.encode(message)))

    async def receive(self) -> messages.Command:
        """Ends the process when the front is gone. Raises msgspec errors for a malformed frame."""
        try:
            length = await self._reader.readexactly(messages.LENGTH_BYTES)
            size = min(int.from_bytes(length, "little"), messages.MAX_FRAME_BYTES)
            frame = await self._reader.readexactly(size)
        except (asyncio.IncompleteReadError, OSError):
            os._exit(EXIT_FRONT_GONE)
        return messages.decode_command(frame)

    async def close(self) -> None:
        """What is queued has left then, or the front takes no more."""
        self._writer.close()
        with contextlib.suppress(OSError, asyncio.TimeoutError):
            await asyncio.wait_for(self._writer.wait_closed(), LAST_WORDS_SECONDS)


class EngineHost:
    """Runs commands against an engine and sends back what it emits, one frame for each step."""

    def __init__(self, engine: EngineClient, channel: Channel) -> None:
        self._engine = engine
        self._channel = channel
        self._streams: dict[str, asyncio.Task[None]] = {}
        self._outputs: list[TokenOutput] = []
        self._wake = asyncio.Event()
        self.num_frames = 0  # of outputs, sent so far
        self._stats_sent = 0.0  # on the monotonic clock, with outputs

    async def run(self) -> None:
        """Until Shutdown arrives; a malformed frame raises, and so ends the process."""
        sender = asyncio.create_task(self._send_outputs())
        try:
            self._channel.send(messages.Ready(self._engine.info, await self._engine.stats()))
            while True:
                command = await self._channel.receive()
                if isinstance(command, Submit):
                    self._submit(command.request)
                elif isinstance(command, Abort):
                    # Cancelled rather than aborted by name: it may not have reached the engine yet.
                    if task := self._streams.get(command.request_id):
                        task.cancel()
                elif isinstance(command, ResetPrefixCache):
                    await self._engine.reset_prefix_cache()
                elif isinstance(command, Shutdown):
                    return
        finally:
            sender.cancel()
            for task in self._streams.values():
                task.cancel()
            await asyncio.gather(sender, *self._streams.values(), return_exceptions=True)

    async def heartbeat(self) -> messages.Heartbeat:
        return messages.Heartbeat(await self._engine.stats())

    def _submit(self, request: EngineRequest) -> None:
        task = asyncio.create_task(self._stream(request))
        self._streams[request.request_id] = task
        task.add_done_callback(lambda _: self._streams.pop(request.request_id, None))

    async def _stream(self, request: EngineRequest) -> None:
        try:
            async with aclosing(self._engine.generate(request)) as outputs:  # type: ignore[type-var]
                async for output in outputs:
                    self._outputs.append(output)
                    self._wake.set()
        except RequestError as error:
            self._reject(request, "request", str(error), error.param, error.code)
        except QueueFullError as error:
            self._reject(request, "queue_full", str(error))
        except EngineDeadError as error:
            # Its state is lost; the supervisor sees the exit and starts a new process.
            print(f"trimtab: the engine stopped: {error}", file=sys.stderr, flush=True)
            os._exit(EXIT_ENGINE_DEAD)
        except Exception as error:
            traceback.print_exc()
            self._reject(request, "failed", type(error).__name__)

    def _reject(
        self,
        request: EngineRequest,
        reason: str,
        message: str,
        param: str | None = None,
        code: str | None = None,
    ) -> None:
        rejected = messages.Rejected(request.request_id, reason, message, param, code)  # type: ignore[arg-type]
        self._channel.send(rejected)

    async def _send_outputs(self) -> None:
        """All outputs that streams put down in one turn of the loop leave in one frame."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            outputs, self._outputs = self._outputs, []
            for frame in _frames(outputs):
                self._channel.send(messages.Outputs(frame, await self._stats_for(frame)))
                self.num_frames += 1

    async def _stats_for(self, outputs: list[TokenOutput]) -> EngineStats | None:
        """To be sent with these, if it is time: reading them costs as much as some outputs do."""
        now = time.monotonic()
        is_end = any(output.finish_reason is not None for output in outputs)
        if not is_end and now - self._stats_sent < messages.STATS_SECONDS:
            return None
        self._stats_sent = now
        return await self._engine.stats()


def _frames(outputs: list[TokenOutput]) -> Iterator[list[TokenOutput]]:
    """In their order; one with a prompt's logprobs, which may be megabytes, has its own frame."""
    for is_large, group in groupby(outputs, lambda output: output.prompt_logprobs is not None):
        if is_large:
            yield from ([output] for output in group)
        else:
            yield list(group)


async def _beat(channel: Channel, host: list[EngineHost]) -> None:
    """Heartbeats from the first moment on, while the model loads too. Outputs say the same, so
    there are none while they come."""
    num_frames = 0
    while True:
        if not host or host[0].num_frames == num_frames:
            channel.send(await host[0].heartbeat() if host else messages.Heartbeat())
        num_frames = host[0].num_frames if host else 0
        await asyncio.sleep(messages.HEARTBEAT_SECONDS)


def _load(launch: Launch) -> EngineClient:
    module, _, function = launch.loader.partition(":")
    loader = getattr(importlib.import_module(module), function)
    return cast(EngineClient, loader(launch.model, launch.executor, launch.scheduler))


def _describe(error: BaseException) -> messages.StartFailed:
    if isinstance(error, UserError):
        return messages.StartFailed(str(error), user_error=True)
    return messages.StartFailed(f"{type(error).__name__}: {error}", user_error=False)


async def serve(launch: Launch) -> int:
    """Load, serve, close. Returns the exit status."""
    channel = await Channel.open(launch.socket_fd)
    asyncio.get_running_loop().add_reader(0, _exit_with_parent)
    host: list[EngineHost] = []
    beating = asyncio.create_task(_beat(channel, host))
    try:
        try:
            engine = await asyncio.to_thread(_load, launch)
        except Exception as error:
            if launch.debug:
                traceback.print_exc()
            channel.send(_describe(error))
            return 2
        host.append(EngineHost(engine, channel))
        try:
            await host[0].run()
        finally:
            await engine.close()
        return 0
    finally:
        beating.cancel()
        await asyncio.gather(beating, return_exceptions=True)
        await channel.close()


def _exit_with_parent() -> None:
    if not os.read(0, 4096):
        os._exit(EXIT_FRONT_GONE)


def _die_with_parent(parent_pid: int) -> None:
    """Have the kernel kill this process when its parent ends, however the parent ends."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent_pid:
        os._exit(1)


def main() -> int:
    # Ctrl-C and a service manager's SIGTERM reach the whole group; only the front decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    launch = msgspec.json.decode(sys.stdin.buffer.readline(), type=Launch)
    _die_with_parent(launch.parent_pid)
    os.dup2(2, 1)  # standard output belongs to the front's users
    return uvloop.run(serve(launch))


if __name__ == "__main__":
    sys.exit(main())
