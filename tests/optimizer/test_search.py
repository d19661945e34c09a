"""The search over predictions, on landscapes whose best point is known."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.config import DEVICES, Device, ExecutorConfig
from trimtab.optimizer.devices import default_scheduler
from trimtab.optimizer.search import GAIN, Ranked, search_runs, shortlist
from trimtab.optimizer.space import Candidate, Defaults, all_runs, run_knobs
from trimtab.optimizer.variants import Variant

KNOBS = run_knobs(2, 2048)


@dataclass
class Landscape:
    """A score that falls with the distance from one point, each knob with a weight of its own."""

    best: dict[str, object]
    weights: dict[str, float]
    asked: list[Candidate] = field(default_factory=list)
    scored: list[Candidate] = field(default_factory=list)

    def true_score(self, candidate: Candidate) -> float:
        distance = 0.0
        for knob in KNOBS:
            own = knob.values.index(knob.value_of(candidate))
            wanted = knob.values.index(self.best[knob.name])
            distance += self.weights[knob.name] * abs(own - wanted)
        return 10 * math.exp(-distance)

    def exceeds(self, candidate: Candidate, score: float) -> bool:
        self.asked.append(candidate)
        return self.true_score(candidate) > score

    def score(self, candidate: Candidate, at_least: float) -> float:
        self.scored.append(candidate)
        assert self.true_score(candidate) > at_least
        return self.true_score(candidate)


def draw_landscape(draw: st.DrawFn) -> Landscape:
    best = {knob.name: draw(st.sampled_from(knob.values)) for knob in KNOBS}
    weights = {knob.name: draw(st.sampled_from([0.0, 0.05, 0.3])) for knob in KNOBS}
    return Landscape(best, weights)


landscapes = st.composite(draw_landscape)


def top(found: list[Ranked]) -> Ranked:
    return max((one for one in found if not one.censored), key=lambda one: one.score)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(landscapes())
def test_finds_the_top_of_a_hill_and_censors_the_rest(landscape: Landscape) -> None:
    found = search_runs(Candidate(Variant()), KNOBS, landscape, lambda: False)
    best = top(found)
    # What is left out gains less than a change is worth, knob by knob.
    assert best.score * GAIN ** len(KNOBS) >= landscape.true_score(
        Candidate(Variant(), *_settings(landscape))
    )
    assert len({one.candidate for one in found}) == len(found)
    for one in found:
        if one.censored:
            assert landscape.true_score(one.candidate) <= one.score <= best.score * GAIN
    assert found[0].candidate == Candidate(Variant())


def _settings(landscape: Landscape) -> tuple[object, int]:
    candidate = Candidate(Variant())
    for knob in KNOBS:
        candidate = knob.turned(candidate, landscape.best[knob.name])
    return candidate.scheduler, candidate.threads


@settings(max_examples=20, deadline=None, derandomize=True)
@given(landscapes())
def test_needs_a_fraction_of_the_questions_of_an_exhaustive_search(landscape: Landscape) -> None:
    found = search_runs(Candidate(Variant()), KNOBS, landscape, lambda: False)
    everything = list(all_runs(Variant(), KNOBS))
    assert len(set(everything)) == math.prod(len(knob.values) for knob in KNOBS)
    assert len(found) < len(everything) / 4
    best = max(map(landscape.true_score, everything))
    assert top(found).score >= best / GAIN ** len(KNOBS)


def test_stops_when_time_is_up_with_the_default_looked_at() -> None:
    landscape = Landscape({k.name: k.values[0] for k in KNOBS}, {k.name: 0.3 for k in KNOBS})
    found = search_runs(Candidate(Variant()), KNOBS, landscape, lambda: True)
    assert [one.candidate for one in found] == [Candidate(Variant())]


def test_a_model_that_cannot_meet_the_need_has_no_shortlist() -> None:
    class Hopeless(Landscape):
        def true_score(self, candidate: Candidate) -> float:
            return 0.0

        def score(self, candidate: Candidate, at_least: float) -> float:
            return 0.0

    found = search_runs(Candidate(Variant()), KNOBS, Hopeless({}, {}), lambda: False)
    assert shortlist(found, 5) == []


def test_the_shortlist_takes_every_variant_before_any_twice() -> None:
    bf16, int8 = Variant(), Variant(weights="int8")
    knob = next(knob for knob in KNOBS if knob.name == "max_batch_tokens")
    other = knob.turned(Candidate(int8), 256)
    found = [
        Ranked(Candidate(int8), 8.0, False),
        Ranked(other, 9.0, False),
        Ranked(Candidate(bf16), 2.0, False),
        Ranked(knob.turned(Candidate(bf16), 64), 99.0, True),
    ]
    assert shortlist(found, 2) == [other, Candidate(bf16)]
    assert shortlist(found, 5) == [other, Candidate(bf16), Candidate(int8)]


def test_equal_scores_go_to_fewer_changes() -> None:
    knob = next(knob for knob in KNOBS if knob.name == "max_batch_tokens")
    plain, changed = Candidate(Variant()), knob.turned(Candidate(Variant()), 256)
    found = [Ranked(changed, 3.0, False), Ranked(plain, 3.0, False)]
    assert shortlist(found, 1) == [plain]


@pytest.mark.parametrize("device", DEVICES)
def test_defaults_are_among_the_values_of_every_knob(device: Device) -> None:
    plain = Candidate.plain(Variant(), Defaults(default_scheduler(device)))
    assert plain.run_changes == {}
    for knob in run_knobs(2, 8192, device):
        assert knob.value_of(plain) in knob.values
        changed = knob.turned(plain, knob.values[-1])
        assert changed.unturned == plain
        assert changed.run_changes in ({}, {knob.name: knob.values[-1]})


def test_what_can_be_turned_follows_from_the_device() -> None:
    names = {device: [knob.name for knob in run_knobs(2, 8192, device)] for device in DEVICES}
    assert "threads" in names["cpu"]
    assert "speculative" in names["cpu"]
    assert "memory_share" not in names["cpu"]
    assert "memory_share" in names["cuda"]
    assert not {"threads", "speculative"} & {*names["cuda"], *names["torch-cpu"]}
    assert "memory_share" not in names["torch-cpu"]


def test_memory_that_was_asked_for_is_the_most_that_is_tried() -> None:
    knobs = run_knobs(2, 8192, "cuda", most_memory_share=0.85)
    share = next(knob for knob in knobs if knob.name == "memory_share")
    assert share.values == (0.8, 0.85)
    plain = Candidate.plain(Variant(), Defaults(default_scheduler("cuda"), 0.85))
    base = ExecutorConfig(device="cuda")
    assert plain.executor(base).memory_share == 0.85
    less = share.turned(plain, 0.8)
    assert less.executor(base).memory_share == 0.8
    assert less.label.endswith("memory share 0.8")
