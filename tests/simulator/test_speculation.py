"""Simulated drafts: as long as pays, accepted as often as said, through the real scheduler."""

from __future__ import annotations

import dataclasses
import itertools
import statistics

import pytest
from simulated import LINEAR, open_loop, server

from trimtab.engine.client import SpeculationStats
from trimtab.errors import ConfigError
from trimtab.simulator.simulate import simulate
from trimtab.simulator.speculation import SpeculationModel
from trimtab.simulator.step_times import StepTimes


def guessing(model: SpeculationModel | None, times: StepTimes = LINEAR, **changes: object):  # type: ignore[no-untyped-def]
    return dataclasses.replace(server(times, **changes), speculation=model)


@pytest.mark.parametrize("changes", [{}, {"num_blocks": 45}, {"max_batch_tokens": 5}])
def test_the_same_tokens_come_out_in_fewer_steps(changes: dict[str, object]) -> None:
    workload = open_loop(1.0, 60, seed=3)
    model = SpeculationModel((0.8, 0.7, 0.6), guess_seconds=1e-4)
    plain = simulate(guessing(None, **changes), workload)
    fast = simulate(guessing(model, **changes), workload, check=True)
    assert fast.occupancy.num_steps < plain.occupancy.num_steps
    assert 0 < fast.occupancy.num_accepted < fast.occupancy.num_drafted
    by_index = {record.index: record for record in plain.records}
    for record in fast.records:
        assert record.error == by_index[record.index].error
        assert record.num_output_tokens == by_index[record.index].num_output_tokens
        assert sum(record.token_counts) == record.num_output_tokens


def test_the_tokens_of_a_step_are_as_many_as_expected() -> None:
    """Rows are free up to 8 here, so one request drafts as long as it may."""
    model = SpeculationModel((0.8, 0.5))
    free = dataclasses.replace(LINEAR, head_seconds=(0.002, 0.002), attended_seconds=0.0)
    done = simulate(guessing(model, free, max_num_requests=1), open_loop(0.01, 120, seed=5))
    counts = [count for record in done.records for count in record.token_counts[1:-2]]
    assert max(counts) == 3
    assert statistics.fmean(counts) == pytest.approx(1 + 0.8 + 0.8 * 0.5, rel=0.05)


@pytest.mark.parametrize("factor", [0.0, 0.25, 1.0, 2.0])
@pytest.mark.parametrize("stay", [None, 0.7])
def test_scaled_guesses_are_as_many_times_as_many(factor: float, stay: float | None) -> None:
    free = dataclasses.replace(LINEAR, head_seconds=(0.002, 0.002), attended_seconds=0.0)
    workload = open_loop(0.01, 1500, seed=5)
    model = SpeculationModel((0.8, 0.5), share=0.1, stay=stay)
    shares = []
    for one in (model, model.scaled(factor)):
        found = simulate(guessing(one, free, max_num_requests=1), workload).occupancy
        shares.append(found.num_drafted / found.num_steps)
    assert shares[1] == pytest.approx(factor * shares[0], rel=0.1)
    assert model.scaled(99.0).share == 1.0


def test_guesses_that_do_not_pay_are_not_made() -> None:
    workload = open_loop(1.0, 30)
    plain = simulate(guessing(None), workload)
    for model in (SpeculationModel((0.0,)), SpeculationModel((0.9,), guess_seconds=1.0)):
        assert simulate(guessing(model), workload).records == plain.records


def test_drafts_get_shorter_as_the_batch_grows() -> None:
    model = SpeculationModel((0.7,) * 8)

    def seconds(rows: int) -> float:
        return 0.02 + 0.001 * max(0, rows - 8)

    lengths = [model.length(n, n, lambda extra, n=n: seconds(n + extra)) for n in (1, 4, 16, 64)]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] > lengths[-1]


def test_the_model_is_read_off_an_engines_counts() -> None:
    stats = SpeculationStats(100, [100, 60, 0], [80, 30, 0], {}, {})
    model = SpeculationModel.from_stats(stats, num_decodes=200, draft_seconds=0.32)
    assert model is not None
    assert model.acceptance == pytest.approx((0.8, 0.625))
    assert model.lengths == pytest.approx((1.0, 0.6))
    assert model.share == 0.5
    assert model.guess_seconds == pytest.approx(0.002)
    assert SpeculationModel.from_stats(SpeculationStats(0, [0], [0], {}, {}), 10) is None


def test_a_proposer_has_not_always_so_much_to_say() -> None:
    """Half of the drafts have one token, the others four; each is right."""
    model = SpeculationModel((1.0,) * 4, lengths=(1.0, 0.5, 0.5, 0.5))
    free = dataclasses.replace(LINEAR, head_seconds=(0.002, 0.002), attended_seconds=0.0)
    done = simulate(guessing(model, free, max_num_requests=1), open_loop(0.01, 120, seed=5))
    counts = [count for record in done.records for count in record.token_counts[1:-2]]
    assert set(counts) == {2, 5}
    assert statistics.fmean(counts) == pytest.approx(3.5, rel=0.05)


def test_what_has_been_repeated_is_repeated_further() -> None:
    """Drafts come in runs, which begin rarely and end rarely."""
    model = SpeculationModel((1.0,), share=0.1, stay=0.9)
    free = dataclasses.replace(LINEAR, head_seconds=(0.002, 0.002), attended_seconds=0.0)
    done = simulate(guessing(model, free, max_num_requests=1), open_loop(0.01, 400, seed=5))
    runs = [record.token_counts[1:-2] for record in done.records]
    assert runs
    pairs = [pair for counts in runs for pair in itertools.pairwise(counts)]
    behind = {had: [now == 2 for before, now in pairs if before == had] for had in (1, 2)}
    assert statistics.fmean(behind[1]) == pytest.approx(0.1, abs=0.03)
    assert statistics.fmean(behind[2]) == pytest.approx(0.9, abs=0.03)


@pytest.mark.parametrize("rates", [(), (1.2,), (-0.1,)])
def test_rates_are_checked(rates: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError):
        SpeculationModel(rates)


@pytest.mark.parametrize("lengths", [(1.0,), (0.5, 1.0), (1.2, 0.5)])
def test_lengths_are_checked(lengths: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError):
        SpeculationModel((0.9, 0.9), lengths=lengths)


def test_the_same_seed_gives_the_same_records() -> None:
    subject, workload = guessing(SpeculationModel((0.8, 0.7))), open_loop(1.0, 30)
    assert simulate(subject, workload).records == simulate(subject, workload).records
