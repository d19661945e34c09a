"""Who is loaded, and what follows from it, on servers whose limits are known."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from load_points import point

from trimtab.optimizer.decide import Shortfall
from trimtab.optimizer.entries import Entries
from trimtab.optimizer.measure import LazyServer
from trimtab.optimizer.need import make_need
from trimtab.optimizer.points import LoadPoint
from trimtab.optimizer.rate_search import RateSearch
from trimtab.optimizer.repeats import LEAST_REPEATS
from trimtab.optimizer.served import TrialFailedError
from trimtab.optimizer.space import Candidate
from trimtab.optimizer.variants import Variant

DEFAULT = Candidate(Variant())


def candidate(number: int) -> Candidate:
    scheduler = replace(DEFAULT.scheduler, max_batch_tokens=64 + number)
    return replace(DEFAULT, variant=Variant("int8"), scheduler=scheduler)


class Trials:
    """Loads take no time. `kindness` of a seed: what its requests add to everybody's limit, log."""

    def __init__(self, limits: dict[Candidate, float], kindness: Callable[[int], float]) -> None:
        self.limits = limits
        self.kindness = kindness
        self.loads: list[tuple[Candidate, float, int]] = []
        self.shortest = math.inf  # seconds of a load

    @contextlib.contextmanager
    def server(self, candidate: Candidate, directory: Path) -> Iterator[LazyServer]:
        yield LazyServer(lambda: contextlib.nullcontext(None))  # type: ignore[arg-type]

    def loader(self, candidate: Candidate, seconds_of: Any) -> Any:
        def load(server: LazyServer, rate: float, seed: int) -> LoadPoint:
            self.loads.append((candidate, rate, seed))
            self.shortest = min(self.shortest, seconds_of(rate))
            limit = self.limits.get(candidate, 3.0)
            if not limit:
                raise TrialFailedError("the server died under load")
            return point(rate, 3 * (math.log(limit / rate) + self.kindness(seed)), seed)

        return load


def played(
    limits: dict[Candidate, float],
    predicted: dict[Candidate, float],
    budget: float = 300.0,
    kindness: Callable[[int], float] = lambda seed: 0.0,
    answer: LoadPoint | None = None,
    dropped: str | None = None,
    **need: Any,
) -> tuple[RateSearch, Trials]:
    entries = Entries(DEFAULT.variant)
    for one, rate in predicted.items():
        entry = entries.of(one)
        entry.predicted_rate, entry.stage = rate, "simulated"
        entry.quality = SimpleNamespace(meets=True)  # type: ignore[assignment]
    if dropped is not None:
        entries.of(DEFAULT).drop(dropped, "")
        if dropped == "bound":
            entries.of(DEFAULT).cannot(Shortfall("memory", 1.0, 2.0, "bytes"))
    trials = Trials(limits, kindness)
    order = SimpleNamespace(need=make_need(**need), budget_seconds=budget, seed=0)
    predictor = SimpleNamespace(highest=lambda variant: 1e5, point=lambda one, rate: answer)
    found = SimpleNamespace(entries=entries, trials=trials, predictor=predictor, default=None)
    run: Any = SimpleNamespace(
        found=found,
        order=order,
        default=DEFAULT,
        knobs=[],
        budget=SimpleNamespace(left=budget),
        is_brief=budget < 180,
        progress=lambda text: None,
    )
    search = RateSearch(run, Path())
    search.play()
    return search, trials


def field(count: int) -> tuple[dict[Candidate, float], dict[Candidate, float]]:
    """Limits that rise from the first to the last; predictions say the opposite, faintly."""
    limits = {DEFAULT: 4.0} | {candidate(i): 10.0 * 1.06**i for i in range(count)}
    predicted = {DEFAULT: 5.0} | {candidate(i): 20.0 * 0.99**i for i in range(count)}
    return limits, predicted


def test_the_best_is_found_whoever_met_kind_requests() -> None:
    limits, predicted = field(8)
    search, trials = played(limits, predicted, kindness=lambda seed: 0.3 * math.sin(1e3 * seed))
    best = search.best()
    assert best is not None
    assert best.candidate == candidate(7)
    entries = search.found.entries
    assert set(search.compared.values()) == {best.id}
    assert len(search.compared) == 7
    # What the others hold follows from how they compare with it, and from what was predicted.
    rates = [entries.of(candidate(number)).rate for number in range(8)]
    assert rates == sorted(rates)
    assert rates[0] / rates[7] == pytest.approx(math.sqrt(1.06**-7 / 0.99**7), rel=0.15)
    # The default is searched for itself, the loads of heats in what is known of each.
    assert search.found.default is not None
    assert search.found.default.rate == pytest.approx(4.0, rel=0.5)
    for one in (best, entries.of(candidate(0))):
        assert one.measured is not None
        known = sum(load[0] == one.candidate for load in trials.loads)
        assert len(one.measured.points) == known


def test_no_load_is_over_before_a_queue_could_form() -> None:
    limits, predicted = field(8)
    fast = {one: 10 * limit for one, limit in limits.items()}
    search, trials = played(fast, {one: 10 * rate for one, rate in predicted.items()})
    assert search.compared
    assert trials.shortest >= search.least_seconds == 3.0


def test_what_a_load_takes_besides_its_arrivals_is_counted() -> None:
    """A warm-up and a last answer of 4 s each, around every load."""
    limits, predicted = field(3)
    slow = replace(point(10.0, 1.0), latencies={"e2e": {"mean": 4.0}})
    quick, _ = played(limits, predicted, 60.0)
    search, _ = played(limits, predicted, 60.0, answer=slow)
    assert search.around == quick.around + 8.0
    assert search.load_seconds < quick.load_seconds
    search, _ = played(limits, predicted, 300.0, answer=slow)
    before = search.searched_seconds_of(1.0)
    search.lengthen(0, 2)
    loads = 2 * LEAST_REPEATS * (search.load_seconds + search.around)
    assert loads + 2 * (search.searched_seconds + search.around) == pytest.approx(300.0, rel=0.01)
    assert search.seconds_of(1.0) > before == search.searched_seconds_of(1.0)
    longest = search.load_seconds
    search.load_seconds = search.searched_seconds
    search.lengthen(2, 0)
    assert search.load_seconds < longest


@pytest.mark.parametrize(("rate", "count"), [(1000.0, 6), (2.0, 3), (0.1, 1)])
def test_fewer_candidates_are_searched_where_requests_are_few(rate: float, count: int) -> None:
    """195 s for searches of 4 loads, the default's among them, each of 24 requests and a start."""
    limits = {DEFAULT: rate / 2} | {candidate(i): rate * 0.9 for i in range(8)}
    predicted = {DEFAULT: rate / 2} | {candidate(i): rate * 0.99**i for i in range(8)}
    _, trials = played(limits, predicted, 300.0, minimize="latency")
    loaded = {one for one, *_ in trials.loads} & {candidate(i) for i in range(8)}
    assert len(loaded) == count
    assert candidate(0) in loaded


def test_a_server_that_fails_is_a_result() -> None:
    limits, predicted = field(6)
    limits[candidate(0)] = 0.0
    search, _ = played(limits, predicted)
    failed = search.found.entries.of(candidate(0))
    assert failed.measured is not None
    assert failed.measured.failed == "the server died under load"
    assert failed.dropped is not None
    best = search.best()
    assert best is not None
    assert best.candidate == candidate(5)


@pytest.mark.parametrize(
    ("budget", "need"),
    [(20.0, {}), (300.0, {"rate": "6rps"}), (300.0, {"minimize": "latency"})],
    ids=["little time", "a rate", "latency"],
)
def test_without_heats_each_has_a_search(budget: float, need: dict[str, Any]) -> None:
    limits, predicted = field(5)
    search, trials = played(limits, predicted, budget, **need)
    assert not search.compared
    seeds = [seed for one, _, seed in trials.loads if one == candidate(0)]
    assert seeds == list(range(seeds[0], seeds[0] + len(seeds)))
    assert search.best() is not None


def test_those_that_no_time_was_left_for_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [time.monotonic()]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    limits, predicted = field(12)

    def kindness(seed: int) -> float:
        now[0] += 10.0  # each load
        return 0.0

    search, _ = played(limits, predicted, kindness=kindness)
    reasons = {one.dropped["reason"] for one in search.found.entries.all if one.dropped is not None}
    assert "not measured: the time for it was spent" in reasons
    assert search.best() is not None


def test_in_a_run_of_a_minute_two_loads_that_enclose_the_limit_are_enough() -> None:
    limits, predicted = {DEFAULT: 4.0, candidate(0): 6.0}, {DEFAULT: 4.0, candidate(0): 5.0}
    counts = {}
    for budget in (60.0, 300.0):
        _, trials = played(limits, predicted, budget)
        counts[budget] = sum(load[0] == candidate(0) for load in trials.loads)
    assert counts[60.0] == 2
    assert counts[300.0] > 2


@pytest.mark.parametrize(
    ("stage", "others", "is_loaded"),
    [
        ("calibrate", 1, True),  # its steps could not be measured: it may hold a rate
        ("simulated", 1, False),
        ("simulated", 0, True),  # somebody has to show by how much the need is missed
        ("bound", 0, False),
    ],
)
def test_a_default_that_was_dropped_is_loaded_if_that_says_something(
    stage: str, others: int, is_loaded: bool
) -> None:
    predicted = {candidate(number): 5.0 for number in range(others)}
    search, trials = played({DEFAULT: 4.0}, predicted, dropped=stage)
    assert any(load[0] == DEFAULT for load in trials.loads) == is_loaded
    rate = search.found.entries.of(DEFAULT).rate
    assert rate == pytest.approx(4.0 if is_loaded else 0.0, rel=0.3)
