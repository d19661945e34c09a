import math

import numpy as np
import pytest

from trimtab.errors import UserError
from trimtab.workloads import lengths
from trimtab.workloads.make import make_workload
from trimtab.workloads.presets import PRESETS


def conversation(workload):
    """Total tokens of each session: the prompt and the answer of its last turn."""
    return {one.session: one.num_prompt_tokens + one.num_output_tokens for one in workload.requests}


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("max_context", [0, 64, 2048])
def test_every_preset_is_consistent(name, max_context):
    workload = make_workload(name, rate=5, count=400, max_context=max_context, seed=3)
    assert len(workload.requests) == 400
    assert workload.rate == 5
    starts, history = [], 0
    for index, one in enumerate(workload.requests):
        assert one.index == index
        assert one.num_output_tokens >= 1
        assert all(piece.length >= 1 for piece in one.pieces)
        own = sum(piece.length for piece in one.pieces)
        if one.follows is None:
            starts.append(one.at)
            history = 0
        else:
            assert one.follows == index - 1
            assert one.session == workload.requests[index - 1].session
            assert one.at > 0
        assert own >= 1
        assert one.num_prompt_tokens == history + own
        history = one.num_prompt_tokens + one.num_output_tokens
        assert not max_context or history <= max_context
    assert starts == sorted(starts)
    assert 0 <= starts[0] <= starts[-1] < 400 / 5
    assert workload.description["requests"] == 400
    assert workload.description["sessions"] == len(starts)


@pytest.mark.parametrize("name", PRESETS)
def test_the_same_arguments_give_the_same_workload(name):
    first, again, other = (
        make_workload(name, rate=2, duration=50, seed=seed, max_context=4096) for seed in (1, 1, 2)
    )
    assert first == again
    assert first.requests != other.requests
    keys = [{piece.key for one in w.requests for piece in one.pieces} for w in (first, other)]
    assert not keys[0] & keys[1]  # repeats with another seed find nothing in a prefix cache


def test_another_rate_asks_the_same_requests():
    slow, fast = (make_workload("chat", rate=rate, count=100) for rate in (1, 10))
    assert [one.pieces for one in slow.requests] == [one.pieces for one in fast.requests]
    assert slow.duration > fast.duration


@pytest.mark.parametrize(
    ("name", "prompt", "answer"),
    [
        ("chat", lengths.AZURE_CONV_IN, lengths.AZURE_CONV_OUT),
        ("summarize", lengths.ARXIV_IN, lengths.ARXIV_OUT),
        ("code", lengths.AZURE_CODE_IN, lengths.AZURE_CODE_OUT),
    ],
)
def test_lengths_follow_the_tables(name, prompt, answer):
    workload = make_workload(name, concurrency=1, count=6000)
    for table, drawn in (
        (prompt, [one.num_prompt_tokens for one in workload.requests]),
        (answer, [one.num_output_tokens for one in workload.requests]),
    ):
        ordered = np.sort(drawn)
        for probability, value in zip(table.probabilities[:-1], table.values, strict=False):
            # Four standard errors of the empirical distribution at the table's value.
            at_most = np.searchsorted(ordered, value + 0.5, "right") / len(ordered)
            below = np.searchsorted(ordered, value - 0.5, "left") / len(ordered)
            error = 4 * math.sqrt(probability * (1 - probability) / len(ordered))
            assert below - error <= probability <= at_most + error, (table.source, probability)


def test_means_are_those_of_the_traces():
    """Not what was fitted, so a check of the interpolation: the published means."""
    for table, mean in (
        (lengths.AZURE_CODE_IN, 2047.8),
        (lengths.AZURE_CODE_OUT, 27.9),
        (lengths.AZURE_CONV_IN, 1154.7),
        (lengths.AZURE_CONV_OUT, 211.1),
        (lengths.ARXIV_IN, 2588),
        (lengths.ARXIV_OUT, 291),
        (lengths.MOONCAKE_OUT, 149),
        (lengths.SERVEGEN_LARGE_OUT, 80),
    ):
        drawn = np.mean([table.at((place + 0.5) / 20_000) for place in range(20_000)])
        assert drawn == pytest.approx(mean, rel=0.1), table.source


def test_scale_keeps_the_shape():
    whole = make_workload("chat", rate=1, count=3000).description
    half = make_workload("chat", rate=1, count=3000, scale=0.5).description
    for name in ("prompt_tokens", "output_tokens"):
        for key, value in whole[name].items():
            assert half[name][key] == pytest.approx(value / 2, abs=1)


@pytest.mark.parametrize("name", PRESETS)
def test_a_short_context_scales_until_nearly_all_fit(name):
    workload = make_workload(name, rate=1, count=2000, max_context=2048)
    description = workload.description
    assert description["scale"] < 1
    assert description["cut"] <= 0.02 * description["sessions"]
    assert description["prompt_tokens"]["p99"] > 1024  # and not more than needed
    assert len({one.num_prompt_tokens for one in workload.requests}) > 200


def test_agents_share_a_system_prompt_and_their_turns_grow():
    workload = make_workload("agent", rate=2, count=500, max_context=2048)
    firsts = [one for one in workload.requests if one.follows is None]
    assert len({one.pieces[0] for one in firsts}) == 1
    assert len({one.pieces[1].key for one in firsts}) == len(firsts)
    assert 500 / len(firsts) > 2
    full = make_workload("agent", rate=2, count=3000).description
    assert full["prompt_tokens"]["mean"] == pytest.approx(8596, rel=0.1)  # mooncake-toolagent
    assert full["output_tokens"]["mean"] == pytest.approx(149, rel=0.1)


def test_documents_are_asked_about_again():
    workload = make_workload("rag", rate=2, count=1000)
    documents = [one.pieces[1] for one in workload.requests]
    assert len(set(documents)) == len({piece.key for piece in documents}) < 600
    counts = sorted((documents.count(one) for one in set(documents)), reverse=True)
    assert 0.08 < counts[0] / 1000 < 0.2  # Zipf: 1 / (1 + 1/2 + ... + 1/1000) = 0.13


def test_loops_are_open_or_closed():
    closed = make_workload("chat", concurrency=4)
    assert (closed.rate, closed.concurrency, closed.duration) == (None, 4, 0)
    assert len(closed.requests) == 100
    at_once = make_workload("batch", count=30)
    assert at_once.concurrency == 30
    assert len(make_workload("chat", rate=3).requests) == 180  # a minute
    assert len(make_workload("chat", rate=3, duration=10).requests) == 30


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"source": "chatt", "rate": 1}, ["'chatt'", "chat, agent, rag, summarize, batch, code"]),
        ({"source": "chat"}, ["rate", "concurrency"]),
        ({"source": "chat", "rate": 1, "concurrency": 2}, ["not both"]),
        ({"source": "chat", "rate": 0}, ["rate", "above 0"]),
        ({"source": "chat", "rate": math.nan}, ["rate", "above 0"]),
        ({"source": "chat", "rate": math.inf}, ["rate", "above 0"]),
        ({"source": "chat", "rate": 1, "duration": -1}, ["duration"]),
        ({"source": "chat", "rate": 1, "duration": 9, "count": 9}, ["leave one"]),
        ({"source": "chat", "concurrency": 0}, ["concurrency", "at least 1"]),
        ({"source": "chat", "concurrency": 1, "count": 0}, ["count", "at least 1"]),
        ({"source": "chat", "concurrency": 1, "duration": 9}, ["count", "instead"]),
        ({"source": "chat", "concurrency": 1, "burstiness": 2}, ["open loop"]),
        ({"source": "chat", "rate": 1, "burstiness": -1}, ["burstiness"]),
        ({"source": "chat", "rate": 1, "scale": 0}, ["scale"]),
        ({"source": "chat", "rate": 1, "scale": math.nan}, ["scale"]),
        ({"source": "chat", "rate": 1, "max_context": 8}, ["8 tokens", "too short"]),
        ({"source": "chat", "rate": 1, "max_context": -8}, ["too short"]),
        ({"source": "chat", "rate": 1, "seed": -1}, ["seed"]),
        ({"source": "chat", "rate": 1e9, "duration": 1e9}, ["more than"]),
        ({"source": "chat", "concurrency": 1, "count": 10**9}, ["more than"]),
    ],
)
def test_a_mistake_is_one_line(arguments, words):
    with pytest.raises(UserError) as caught:
        make_workload(**arguments)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)
