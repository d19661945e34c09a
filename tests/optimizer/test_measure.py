"""Loads that decide, on servers whose capacity is known."""

from __future__ import annotations

import contextlib
import itertools
import math
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from load_points import point

from trimtab.optimizer.measure import LazyServer, Measured, lowered, measure_rate
from trimtab.optimizer.points import LoadPoint
from trimtab.optimizer.served import Server, TrialFailedError


class Machine:
    """Meets its SLO up to `capacity` requests a second."""

    def __init__(self, capacity: float) -> None:
        self.capacity = capacity
        self.rates: list[float] = []
        self.seeds: list[int] = []

    def __call__(self, server: LazyServer, rate: float, seed: int) -> LoadPoint:
        self.rates.append(rate)
        self.seeds.append(seed)
        return point(rate, 2 * math.log(self.capacity / rate), seed)


@contextlib.contextmanager
def nothing() -> Iterator[Any]:
    yield None


@pytest.mark.parametrize("start", [5.0, 10.0, 40.0])
def test_the_highest_rate_is_found_wherever_the_search_begins(start: float) -> None:
    machine = Machine(12.0)
    found = measure_rate(LazyServer(nothing), machine, itertools.count(), start, floor=0.0)
    assert 12.0 * 0.85 <= found.rate <= 12.0
    assert len(set(machine.seeds)) == len(machine.seeds)
    assert [one.rate for one in found.points] == machine.rates


def test_what_does_not_hold_what_the_best_one_holds_is_asked_once() -> None:
    machine = Machine(5.0)
    found = measure_rate(LazyServer(nothing), machine, itertools.count(), 20.0, floor=8.0)
    assert machine.rates == [8.0]
    assert (found.rate, found.censored_at) == (0.0, 8.0)


def test_a_server_that_dies_is_a_result() -> None:
    def load(server: LazyServer, rate: float, seed: int) -> LoadPoint:
        if rate > 2.5:
            raise TrialFailedError("the server died under load")
        return point(rate, 1.0)

    found = measure_rate(LazyServer(nothing), load, itertools.count(), 2.0, floor=0.0)
    assert found.failed == "the server died under load"
    assert found.rate == 0.0
    assert len(found.points) == 1


def test_a_rate_is_lowered_by_how_far_it_missed() -> None:
    assert lowered(-0.001) == 0.88
    assert lowered(-0.4) == pytest.approx(math.exp(-0.2))
    assert lowered(-5.0) == 0.65


def test_the_interval_is_of_the_repeats_that_count() -> None:
    measured = Measured(
        4.0, repeats=[point(4.0, 1.0), point(4.4, 1.0), point(9.0, 1.0, valid=False)]
    )
    interval = measured.interval
    assert interval["value"] == pytest.approx(4.2)
    assert interval["low"] < 4.0 < 4.4 < interval["high"]
    assert Measured(3.0).interval == {"value": 3.0, "low": 3.0, "high": 3.0}


def test_a_server_that_stops_answering_is_a_result() -> None:
    class Down(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(503)

        def log_message(self, *_: object) -> None:
            pass

    server = Server.__new__(Server)
    with HTTPServer(("127.0.0.1", 0), Down) as front:
        threading.Thread(target=front.serve_forever, daemon=True).start()
        server.url = f"http://127.0.0.1:{front.server_port}"
        with pytest.raises(TrialFailedError, match="HTTP 503"):
            server.work()
        front.shutdown()
    with pytest.raises(TrialFailedError, match="Connection"):
        server.work()
