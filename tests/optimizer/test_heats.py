"""The same loads for all: on servers whose limits are known, with requests that are kind or not."""

from __future__ import annotations

import itertools
import math
import random
import time
from collections.abc import Sequence

import pytest
from load_points import point

from trimtab.optimizer import heats
from trimtab.optimizer.heats import Probe, Runner
from trimtab.optimizer.points import LoadPoint
from trimtab.optimizer.served import TrialFailedError

FOREVER = math.inf


class Field:
    """Servers of known limits. A seed is kind to everybody by as much; each load has noise of its
    own, too."""

    def __init__(self, limits: dict[str, float], kindness: float = 0.0, noise: float = 0.0) -> None:
        self.limits = limits
        self.kindness = kindness
        self.noise = noise
        self.asked: list[tuple[str, float, int]] = []

    def load(self, runner: Runner, offered: Sequence[tuple[float, int]]) -> list[LoadPoint]:
        found = []
        for rate, seed in offered:
            self.asked.append((runner.name, rate, seed))
            kind = self.kindness * random.Random(seed).gauss(0, 1)
            own = self.noise * random.Random(f"{runner.name}{rate}{seed}").gauss(0, 1)
            margin = 3 * (math.log(self.limits[runner.name] / rate) + kind + own)
            found.append(point(rate, margin, seed))
        return found


def runners(predicted: dict[str, float]) -> list[Runner]:
    ordered = sorted(predicted, key=lambda name: -predicted[name])
    return [Runner(name, predicted[name]) for name in ordered]


def test_the_best_is_found_among_requests_of_any_kindness() -> None:
    limits = {f"c{i}": 10.0 * 0.95**i for i in range(12)}
    predicted = {name: 20.0 + i for i, name in enumerate(limits)}  # twice too much, worst first
    field = Field(limits, kindness=0.3)
    held = heats.play(runners(predicted), 30.0, field.load, itertools.count(), FOREVER)
    assert max(held, key=lambda name: held[name]) == "c0"
    assert set(held) == set(limits)
    loads = {name: sum(one == name for one, _, _ in field.asked) for name in limits}
    assert loads["c0"] == 6  # three rounds of 12, 4 and 2
    assert loads["c8"] == 2


def test_all_get_the_same_loads_in_a_round() -> None:
    field = Field({"a": 8.0, "b": 7.0, "c": 6.0})
    heats.play(runners({"a": 9.0, "b": 8.0, "c": 7.0}), 9.0, field.load, itertools.count(), FOREVER)
    of = {name: [(rate, seed) for one, rate, seed in field.asked if one == name] for name in "abc"}
    assert of["c"] == of["b"][:2] == of["a"][1:3]  # the first one also found the rate
    assert of["a"][3:] == of["b"][2:]
    assert len({seed for _, seed in of["a"]}) == len(of["a"])


@pytest.mark.parametrize("start", [0.5, 9.0, 90.0])
def test_rates_are_right_wherever_it_begins(start: float) -> None:
    limits = {"a": 9.0, "b": 8.0, "c": 4.0}
    held = heats.play(
        runners({"a": 1.0, "b": 1.0, "c": 1.0}),
        start,
        Field(limits).load,
        itertools.count(),
        FOREVER,
    )
    assert held["a"] == pytest.approx(9.0, rel=0.1)
    assert held["b"] / held["a"] == pytest.approx(8 / 9, rel=0.1)


def test_kind_requests_of_a_round_count_for_nobody() -> None:
    """`c` left after kind requests; `a` and `b`, who hold more, had others besides."""
    true = {"a": math.log(9.0), "b": math.log(8.5), "c": math.log(8.0)}
    kind = {(8.0, 0): 0.3, (11.0, 1): 0.3, (8.0, 2): -0.3, (11.0, 3): -0.3}
    probes = {
        name: [
            Probe(rate, heats.STEEPNESS * (limit + kind[rate, seed] - math.log(rate)), seed)
            for rate, seed in kind
            if name != "c" or seed < 2
        ]
        for name, limit in true.items()
    }
    held = heats.rates_held(probes)
    assert held["a"] / held["b"] == pytest.approx(9.0 / 8.5, rel=0.02)
    assert held["b"] / held["c"] == pytest.approx(8.5 / 8.0, rel=0.02)


def test_cores_that_lay_apart_are_nobodys_fault() -> None:
    """All hold 8; the cores lay apart for some of the time, which took a third of the rate."""
    shares = {"a": (0.0, 1.0, 0.0), "b": (1.0, 0.0, 0.5), "c": (0.0, 0.0, 1.0)}
    limit = math.log(8.0)
    probes = {
        name: [
            Probe(8.0, heats.STEEPNESS * (limit - 0.4 * apart - math.log(8.0)), seed, apart)
            for seed, apart in enumerate(own)
        ]
        for name, own in shares.items()
    }
    held = heats.rates_held(probes)
    assert max(held.values()) / min(held.values()) < 1.04


def test_predictions_decide_what_loads_cannot() -> None:
    probes = {
        "a": [Probe(10.0, 0.02, 0), Probe(14.0, -0.8, 1)],
        "b": [Probe(10.0, 0.0, 0), Probe(14.0, -0.82, 1)],
    }
    assert heats.rates_held(probes)["a"] > heats.rates_held(probes)["b"]
    held = heats.standings(probes, {"a": 20.0, "b": 26.0})
    assert held["b"] > held["a"]
    # And lose weight against many loads.
    many = {name: own * 50 for name, own in probes.items()}
    found = heats.standings(many, {"a": 20.0, "b": 21.0})
    assert found["b"] / found["a"] < 1.0


def test_a_common_factor_of_predictions_changes_nothing() -> None:
    probes = {
        "a": [Probe(10.0, 0.4, 0), Probe(14.0, -0.4, 1)],
        "b": [Probe(10.0, 0.1, 0), Probe(14.0, -0.9, 1)],
    }
    one = heats.standings(probes, {"a": 20.0, "b": 10.0})
    other = heats.standings(probes, {"a": 2.0, "b": 1.0})
    assert one == pytest.approx(other)


def test_a_server_that_fails_leaves_the_others_to_it() -> None:
    field = Field({"b": 8.0, "c": 6.0})

    def load(runner: Runner, offered: Sequence[tuple[float, int]]) -> list[LoadPoint]:
        if runner.name == "a":
            raise TrialFailedError("the server died under load")
        return field.load(runner, offered)

    names = runners({"a": 30.0, "b": 9.0, "c": 8.0})
    held = heats.play(names, 9.0, load, itertools.count(), FOREVER)
    assert names[0].failed == "the server died under load"
    assert max(held, key=lambda name: held[name]) == "b"
    assert "a" not in held


def test_nobody_left_is_no_crash() -> None:
    def load(runner: Runner, offered: Sequence[tuple[float, int]]) -> list[LoadPoint]:
        raise TrialFailedError("no port is free")

    assert heats.play(runners({"a": 1.0, "b": 1.0}), 1.0, load, itertools.count(), FOREVER) == {}


def test_it_ends_when_its_time_is_up() -> None:
    field = Field({f"c{i}": 5.0 for i in range(6)})
    names = runners(dict.fromkeys(field.limits, 5.0))
    held = heats.play(names, 5.0, field.load, itertools.count(), time.monotonic() - 1)
    assert list(held) == ["c0"]  # somebody is always loaded


def test_loads_that_the_client_spoiled_count_for_nobody() -> None:
    def load(runner: Runner, offered: Sequence[tuple[float, int]]) -> list[LoadPoint]:
        return [point(rate, -1.0, seed, valid=runner.name != "a") for rate, seed in offered]

    held = heats.play(runners({"a": 2.0, "b": 1.0}), 2.0, load, itertools.count(), FOREVER)
    assert list(held) == ["b"]


def test_how_fast_margins_fall_is_learned_of_all() -> None:
    steep = {
        "a": [Probe(5.0, 1.0, 0), Probe(10.0, -1.0, 1)],
        "b": [Probe(5.0, 0.5, 0), Probe(10.0, -1.5, 1)],
    }
    known = {name: own * 100 for name, own in steep.items()}
    assert heats.steepness_of(known) == pytest.approx(2 / math.log(2), rel=0.02)
    assert heats.steepness_of({"a": [Probe(5.0, 9.0, 0)]}) == heats.STEEPNESS
    rising = {"a": [Probe(5.0, -1.0, 0), Probe(10.0, 1.0, 1)] * 100}
    assert heats.steepness_of(rising) == heats.LEAST_STEEPNESS
