"""`trimtab serve`: bind, start the engine process, answer until told to stop, drain, leave."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import uvicorn
import uvloop

from trimtab.config import ExecutorConfig, SchedulerConfig, ServerConfig
from trimtab.engine.client import EngineInfo
from trimtab.errors import TrimtabError, UserError
from trimtab.server import logs
from trimtab.server.app import ApiServer
from trimtab.server.keys import make_keys
from trimtab.server.loading import find_model
from trimtab.server.process_client import DEFAULT_LOADER, ProcessEngineClient
from trimtab.server.protocol import LimitedProtocol, max_connections
from trimtab.server.text import FoundModel, ServedModel
from trimtab.server.tracing import traces_url
from trimtab.server.watchdog import SupervisionPolicy
from trimtab.tokenization import Tokenizer, load_tokenizer

BACKLOG = 2048
KEEP_ALIVE_SECONDS = 75  # longer than a client's pool keeps one, so that it closes first
YOUNG_OBJECTS = 5000  # that a garbage collection waits for; a request leaves some hundred
SECONDS_AFTER_DRAIN = 3.0  # for the error events of streams that the drain cut off


@dataclass(frozen=True)
class Serving:
    """Everything that one server needs; `trimtab serve` fills it from its options."""

    model: str
    executor: ExecutorConfig
    scheduler: SchedulerConfig
    server: ServerConfig
    loader: str = DEFAULT_LOADER  # of the engine, in its process
    find_model: Callable[[str, str | None], FoundModel] = find_model
    load_tokenizer: Callable[[str], Tokenizer] = load_tokenizer
    policy: SupervisionPolicy | None = None


@dataclass(frozen=True)
class Announcement:
    """What is known once requests can be served."""

    url: str
    model: ServedModel
    engine: EngineInfo
    server: ServerConfig


def serve(serving: Serving, announce: Callable[[Announcement], None]) -> None:
    """Serve until SIGTERM or SIGINT. Raises UserError for what the user can mend."""
    server = serving.server  # what is wrong with it is told before anything is started
    make_keys(server.api_key, server.api_key_file)
    if server.otlp_endpoint is not None:
        traces_url(server.otlp_endpoint)
    logs.configure(serving.server.log_format, serving.server.log_requests)
    with contextlib.closing(bind(serving.server.host, serving.server.port)) as listener:
        uvloop.run(_serve(serving, listener, announce))


def bind(host: str, port: int) -> socket.socket:
    """A bound socket, not listening yet. Raises UserError if the address cannot be had."""
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"cannot listen on {host}:{port}: {reason}; choose another with --host and --port"
        ) from None
    return listener


async def _serve(
    serving: Serving, listener: socket.socket, announce: Callable[[Announcement], None]
) -> None:
    stop = _StopSignals()
    try:
        found = await asyncio.to_thread(
            serving.find_model, serving.model, serving.server.served_model_name
        )
        engine = ProcessEngineClient(
            found.path,
            serving.executor,
            serving.scheduler,
            loader=serving.loader,
            policy=serving.policy
            or SupervisionPolicy(stalled_seconds=serving.server.stall_seconds),
        )
        try:
            await engine.launch()  # it loads its weights while the tokenizer is read here
            tokenizer = await asyncio.to_thread(_warm_tokenizer, serving, found.path)
            await _answer(
                serving, listener, ServedModel(found.name, tokenizer), engine, announce, stop
            )
        finally:
            await engine.close()
    except asyncio.CancelledError:
        if not stop.received:
            raise
    finally:
        stop.close()


def _warm_tokenizer(serving: Serving, path: str) -> Tokenizer:
    """Its chat template is compiled by then: else the first chat would wait for that."""
    tokenizer = serving.load_tokenizer(path)
    if tokenizer.chat_template is not None:
        with contextlib.suppress(TrimtabError):  # whoever chats is told
            tokenizer.encode_chat([{"role": "user", "content": "Hello"}])
    return tokenizer


async def _answer(
    serving: Serving,
    listener: socket.socket,
    model: ServedModel,
    engine: ProcessEngineClient,
    announce: Callable[[Announcement], None],
    stop: _StopSignals,
) -> None:
    """Answer requests until told to stop: with 503 as long as the launched engine is loading."""
    api = ApiServer(serving.server, engine, model)
    front = Front(api, engine, serving.server.drain_seconds, serving.server.max_connections)
    starting = asyncio.create_task(engine.started())
    answering = asyncio.create_task(front.serve(sockets=[listener]))
    stop.handler = front.stop
    try:
        await asyncio.wait({starting, answering}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            _settle_garbage_collection()
            announce(Announcement(_url(listener), model, engine.info, serving.server))
        await answering
    finally:
        front.end()
        starting.cancel()
        await asyncio.gather(starting, answering, return_exceptions=True)
        api.close()


def _settle_garbage_collection() -> None:
    """What is there by now stays: it is not looked at again; and what requests leave is looked at
    less often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS)


class _StopSignals:
    """SIGINT and SIGTERM go to `handler`; until there is one they end the calling task."""

    def __init__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.received = False
        self.handler: Callable[[], object] = task.cancel
        self._loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            self._loop.add_signal_handler(number, self._on_signal)

    def _on_signal(self) -> None:
        self.received = True
        self.handler()

    def close(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._loop.remove_signal_handler(number)


class Front(uvicorn.Server):
    """uvicorn, with our own way to stop: first refuse, then drain, then cut off."""

    def __init__(
        self, api: ApiServer, engine: ProcessEngineClient, drain_seconds: float, most: int
    ) -> None:
        config = uvicorn.Config(
            api.app,
            http=LimitedProtocol,
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            backlog=BACKLOG,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=drain_seconds + SECONDS_AFTER_DRAIN,  # type: ignore[arg-type]
        )
        super().__init__(config)
        LimitedProtocol.most = max_connections(most)
        self._api = api
        self._engine = engine
        self._drain_seconds = drain_seconds
        self._stopped = asyncio.Event()

    async def main_loop(self) -> None:
        """uvicorn's wakes up ten times a second, to ask what we are told and to set the date, which
        `LimitedProtocol` does when it is wanted."""
        await self._stopped.wait()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # they are ours

    def end(self) -> None:
        """At once."""
        self.should_exit = self.force_exit = True
        self._stopped.set()

    def stop(self) -> None:
        """The first one drains, the second one ends at once."""
        if self.should_exit:
            self.force_exit = True
            return
        self._api.draining = True
        self.should_exit = True
        self._stopped.set()
        asyncio.get_running_loop().call_later(
            self._drain_seconds, self._engine.fail_all, "the server is shutting down"
        )


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
