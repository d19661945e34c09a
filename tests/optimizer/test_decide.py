"""The choice among what was measured."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.optimizer.decide import Miss, Shortfall, Standing, choose, closest, frontier

numbers = st.floats(0.1, 10)
standings = st.lists(
    st.builds(
        Standing,
        id=st.uuids().map(str),
        rate=numbers,
        latency=numbers,
        loss=numbers,
        num_changes=st.integers(0, 5),
        meets_need=st.booleans(),
    ),
    max_size=20,
)


def standing(id: str, rate: float = 1, latency: float = 1, loss: float = 0, **others: object):  # type: ignore[no-untyped-def]
    fields = {"num_changes": 0, "meets_need": True} | others
    return Standing(id, rate, latency, loss, **fields)


@settings(deadline=None, derandomize=True)
@given(standings)
def test_nobody_beats_who_is_on_the_frontier_and_somebody_everyone_else(
    found: list[Standing],
) -> None:
    best = frontier(found)
    for one in found:
        beaten = any(
            other.rate >= one.rate
            and other.latency <= one.latency
            and other.loss <= one.loss
            and (other.rate, other.latency, other.loss) != (one.rate, one.latency, one.loss)
            for other in found
        )
        assert (one.id in best) == (not beaten)


@settings(deadline=None, derandomize=True)
@given(standings)
def test_what_is_chosen_meets_the_need_and_is_among_the_best(found: list[Standing]) -> None:
    chosen = choose(found)
    able = [one for one in found if one.meets_need]
    if not able:
        assert chosen is None
        return
    assert chosen is not None
    assert chosen.meets_need
    assert chosen.rate >= 0.99 * max(one.rate for one in able)
    fastest = choose(found, "latency")
    assert fastest is not None
    assert fastest.latency <= 1.01 * min(one.latency for one in able)


def test_a_tie_goes_to_fewer_changes_then_to_better_quality() -> None:
    found = [
        standing("tuned", 10.05, num_changes=3),
        standing("plain", 10.0, loss=0.1, num_changes=1),
        standing("better", 10.0, loss=0.01, num_changes=1),
        standing("fast but wrong", 20, meets_need=False),
    ]
    assert choose(found) == found[2]


def test_the_closest_is_the_one_whose_worst_shortfall_is_smallest() -> None:
    slow = Miss("slow", (Shortfall("ttft:p99<300ms", 0.3, 0.6, "s"),))
    coarse = Miss(
        "coarse",
        (
            Shortfall("ttft:p99<300ms", 0.3, 0.31, "s"),
            Shortfall("top1>=0.99", 0.99, 0.9, ""),
        ),
    )
    assert closest([slow, coarse]) == coarse
    assert coarse.worst.in_words() == "top1>=0.99: 0.9 instead of 0.99"
    assert slow.worst.in_words() == "ttft:p99<300ms: 600 ms instead of 300 ms"
    assert closest([]) is None
