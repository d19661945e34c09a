"""A simulated server keeps the laws of queues, and does what the engine does."""

from __future__ import annotations

import dataclasses
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated import LINEAR, closed_loop, open_loop, server

from trimtab.simulator.overheads import Overheads
from trimtab.simulator.simulate import simulate
from trimtab.simulator.speculation import SpeculationModel
from trimtab.simulator.step_shape import StepShape
from trimtab.simulator.step_times import StepTimes
from trimtab.workloads.requests import Piece, PlannedRequest, Workload

GUESSES = (
    None,
    SpeculationModel((0.9,), share=0.02),
    SpeculationModel((0.8, 0.7, 0.6), 0.05, stay=0.6, guess_seconds=1e-5, lengths=(1.0, 0.8, 0.3)),
)


def one(length: int, output: int, at: float = 0.0, index: int = 0) -> PlannedRequest:
    return PlannedRequest(index, at, (Piece(f"one {index}", length),), output)


@pytest.mark.parametrize("in_bulk", [True, False])
def test_a_slower_machine_is_a_factor_on_its_steps(step_times: StepTimes, in_bulk: bool) -> None:
    """One on decodes, another on steps of more than 64 rows; nothing on what is around them."""
    usual = server(step_times, max_batch_tokens=128, overheads=Overheads(step=0.001))
    slow = dataclasses.replace(usual, small_pace=2.0, large_pace=3.0)
    alone = Workload("one", (one(100, 40),), 1.0, None, 0)
    before, after = (simulate(each, alone, in_bulk).occupancy for each in (usual, slow))
    assert after.small_seconds == pytest.approx(2 * before.small_seconds)
    assert after.large_seconds > 0
    assert after.large_seconds == pytest.approx(3 * before.large_seconds)
    assert after.around_seconds == pytest.approx(before.around_seconds)
    assert after.around_seconds == pytest.approx(40 * 0.001)
    parts = after.small_seconds + after.large_seconds + after.around_seconds
    assert after.busy_seconds == pytest.approx(parts)


def test_zero_load_latency_is_the_sum_of_its_steps(step_times: StepTimes) -> None:
    overheads = Overheads(
        0.001, 0.0005, 0.003, 0.002, row=1e-5, behind_prompt=0.004, cold_executor=0.002
    )
    alone = Workload("one", (one(100, 5),), 1.0, None, 0)
    (record,) = simulate(server(step_times, overheads=overheads), alone).records
    first, around = 0.0, 0.0015
    for start, count, logits in ((0, 64, 0), (64, 36, 1)):
        attended = count * start + count * (count + 1) / 2
        first += step_times.seconds(StepShape(count, 1, attended, start + count, logits))
        first += around + 1e-5 * count
    later = [step_times.seconds(StepShape(1, 1, n, n, 1)) + around + 1e-5 for n in range(101, 105)]
    later[0] += 0.004 + 0.002
    assert record.ttft == pytest.approx(first + 0.003 + 0.002)
    assert record.itls() == pytest.approx(later)
    assert record.e2e == pytest.approx(first + sum(later) + 0.005)
    assert (record.num_prompt_tokens, record.num_output_tokens) == (100, 5)


@pytest.mark.parametrize("rate", [0.2, 1.0, 3.0])
def test_littles_law(step_times: StepTimes, rate: float) -> None:
    """Requests in the server, on average = requests a second x seconds that each spends there."""
    done = simulate(server(step_times), open_loop(rate, 200))
    occupancy = done.occupancy
    inside = occupancy.mean_running + occupancy.mean_waiting
    spent = sum(record.e2e for record in done.records) / occupancy.seconds
    # Up to a step of each request: what arrives in one is queued behind it.
    slack = max(0.08, 0.05 * spent)
    assert inside == pytest.approx(spent, abs=slack)


def test_latency_and_use_grow_with_the_rate(step_times: StepTimes) -> None:
    base = open_loop(1.0, 150)
    means, busy = [], []
    for rate in (0.1, 0.5, 1.0, 2.0, 8.0, 64.0):
        requests = tuple(dataclasses.replace(r, at=r.at / rate) for r in base.requests)
        done = simulate(server(step_times), dataclasses.replace(base, requests=requests))
        means.append(statistics.fmean(record.e2e for record in done.records))
        busy.append(done.occupancy.busy_share)
    assert means == sorted(means)
    assert busy == sorted(busy)
    assert means[-1] > 2 * means[0]


def test_a_server_without_queue_gives_everybody_the_same(step_times: StepTimes) -> None:
    """Infinite servers: steps that cost the same whatever is in them, and room for everybody."""
    flat = dataclasses.replace(
        step_times,
        row_seconds=(0.01,) * 3,
        head_seconds=(0.0,) * 2,
        sequence_seconds=0.0,
        attended_seconds=0.0,
        context_seconds=0.0,
    )
    requests = tuple(one(20, 10, at=0.013 * i, index=i) for i in range(300))
    wide = server(flat, max_num_requests=512, max_batch_tokens=1 << 16, num_blocks=1 << 14)
    records = simulate(wide, Workload("many", requests, 75.0, None, 0)).records
    for record in records:
        # It waits for the step that runs, and then no step has room for less than everybody.
        assert 0.1 - 1e-9 <= record.e2e <= 0.11 + 1e-9
        assert record.itls() == pytest.approx([0.01] * 9)


@settings(deadline=None, max_examples=20)
@given(
    rate=st.sampled_from([0.3, 2.0, 10.0, 100.0]),
    turns=st.integers(1, 3),
    blocks=st.sampled_from([40, 80, 1024]),
    requests=st.sampled_from([2, 8, 64]),
    budget=st.sampled_from([3, 8, 64]),
    prefix_cache=st.booleans(),
    speculation=st.sampled_from(GUESSES),
    overheads=st.sampled_from([Overheads(), Overheads(1e-3, 5e-4, 3e-3, 2e-3, 1e-5, 4e-3)]),
    seed=st.integers(0, 99),
)
def test_in_bulk_is_step_by_step(
    rate: float,
    turns: int,
    blocks: int,
    requests: int,
    budget: int,
    prefix_cache: bool,
    speculation: SpeculationModel | None,
    overheads: Overheads,
    seed: int,
) -> None:
    workload = open_loop(rate, 30, seed, turns)
    plain = server(
        LINEAR,
        num_blocks=blocks,
        max_num_requests=requests,
        max_batch_tokens=budget,
        prefix_cache=prefix_cache,
        max_queued_requests=20,
    )
    subject = dataclasses.replace(plain, speculation=speculation, overheads=overheads)
    slow = simulate(subject, workload, in_bulk=False, check=True)
    fast = simulate(subject, workload)
    assert fast.records == slow.records
    counts = ("num_steps", "num_step_tokens", "num_preemptions", "num_cached_prompt_tokens")
    for name in (*counts, "num_drafted", "num_accepted"):
        assert getattr(fast.occupancy, name) == getattr(slow.occupancy, name)
    for name in ("mean_running", "mean_waiting", "mean_blocks", "busy_share", "peak_blocks"):
        assert getattr(fast.occupancy, name) == pytest.approx(getattr(slow.occupancy, name))


def test_bulk_steps_are_most_of_them(step_times: StepTimes) -> None:
    done = simulate(server(step_times), open_loop(0.3, 50))
    assert done.occupancy.num_bulk_steps > 0.7 * done.occupancy.num_steps


def test_tiny_pools_preempt_and_refuse(step_times: StepTimes) -> None:
    small = server(step_times, num_blocks=60, max_queued_requests=4)
    # Answers that turn out to be longer than those before them: memory is promised twice.
    requests = [one(8, 4 if i < 40 else 100, at=0.02 * i, index=i) for i in range(60)]
    done = simulate(small, Workload("w", tuple(requests), 50.0, None, 0), check=True)
    refused = [record for record in done.records if record.error]
    assert done.occupancy.num_preemptions > 0
    assert 0 < len(refused) == done.occupancy.num_refused < 60
    assert all("429" in (record.error or "") for record in refused)
    assert len(done.records) == 60
    for record in done.records:
        assert record.error or len(record.token_times) == record.num_output_tokens


def test_what_can_never_fit_is_refused(step_times: StepTimes) -> None:
    requests = (one(500, 20), one(5, 5, index=1))
    long, short = simulate(server(step_times), Workload("w", requests, 1.0, None, 0)).records
    assert "400" in (long.error or "")
    assert short.error is None


def test_a_later_turn_finds_the_conversation_in_the_cache(step_times: StepTimes) -> None:
    turns = (
        PlannedRequest(0, 0.0, (Piece("a", 40),), 10),
        PlannedRequest(1, 0.5, (Piece("b", 7),), 10, follows=0),
    )
    first, second = simulate(server(step_times), Workload("w", turns, 1.0, None, 0)).records
    assert second.scheduled == pytest.approx(first.ended + 0.5)
    assert second.num_prompt_tokens == 40 + 10 + 7
    # Of 50 known tokens, the last was never computed: 49 // 4 blocks.
    assert second.num_cached_tokens == 48
    assert (first.turn, second.turn) == (0, 1)
    without = server(step_times, prefix_cache=False)
    assert simulate(without, Workload("w", turns, 1.0, None, 0)).records[1].num_cached_tokens == 0


def test_a_closed_loop_keeps_so_many_sessions(step_times: StepTimes) -> None:
    done = simulate(server(step_times), closed_loop(3, 30))
    assert done.occupancy.peak_running == 3
    assert done.occupancy.busy_share == pytest.approx(1.0)
    events = [(r.sent, 1) for r in done.records] + [(r.ended, -1) for r in done.records]
    inside = peak = 0
    for _, change in sorted(events):
        inside += change
        peak = max(peak, inside)
    assert peak == 3


def test_the_end_of_the_load_cuts_what_runs(step_times: StepTimes) -> None:
    done = simulate(server(step_times), open_loop(20.0, 200), until=2.0)
    cut = [record for record in done.records if record.cut]
    assert cut
    assert any(record.is_complete for record in done.records)
    assert all(record.ended != record.ended for record in cut)  # not a number
    assert max(record.sent for record in done.records) <= done.occupancy.seconds
