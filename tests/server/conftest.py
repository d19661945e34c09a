from __future__ import annotations

import signal
from collections.abc import Iterator
from types import FrameType

import pytest
from hypothesis import settings
from live import Live, live_server

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
