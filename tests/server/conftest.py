from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import pytest
from hypothesis import settings
from live import Live, end, live_server, serve_command, start
from tiny_model import write_tiny_model

TEST_SECONDS = 90

# A busy machine is no failure.
settings.register_profile("server", deadline=None)
settings.load_profile("server")


@pytest.fixture(autouse=True)
def _hard_timeout() -> Iterator[None]:
    """No test of a server may hang."""

    def expire(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"the test took more than {TEST_SECONDS} s")

    previous = signal.signal(signal.SIGALRM, expire)
    signal.alarm(TEST_SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, previous)


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    """One server for the tests of a module that leave it as they found it."""
    with live_server() as live:
        yield live


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def real(model: Path) -> Iterator[Live]:
    """`trimtab serve` with the native engine and the tiny model, for tests that leave it as they
    found it."""
    live = start(serve_command(model, "--json", "--weights", "f32", "--threads", "1"))
    yield live
    end(live)


@pytest.fixture(scope="session")
def builtin_server() -> Iterator[Live]:
    """The same with the built-in model."""
    live = start(serve_command("builtin", "--json", "--threads", "1"))
    yield live
    end(live)
