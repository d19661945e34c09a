import json

import pytest

from trimtab.workloads.describe import cached_share, describe
from trimtab.workloads.make import make_workload
from trimtab.workloads.presets import PRESETS
from trimtab.workloads.requests import Piece, PlannedRequest, Workload


def workload_of(requests, rate=None):
    return Workload("test", tuple(requests), rate, None if rate else 1, 0)


def test_the_cache_finds_shared_beginnings_only():
    a, b, c = (Piece(key, 10) for key in "abc")
    requests = [
        PlannedRequest(0, 0.0, (a, b), 5, 0, None, 20),
        PlannedRequest(1, 0.0, (a, b, c), 5, 1, None, 30),  # a, b
        PlannedRequest(2, 0.0, (b, c), 5, 2, None, 20),  # nothing: not at the beginning
        PlannedRequest(3, 0.0, (a, Piece("b", 9)), 5, 3, None, 19),  # a
    ]
    assert cached_share(workload_of(requests)) == pytest.approx((20 + 10) / 89)


def test_the_cache_finds_the_turns_before():
    a, b, c = (Piece(key, 10) for key in "abc")
    requests = [
        PlannedRequest(0, 0.0, (a,), 5, 0, None, 10),
        PlannedRequest(1, 1.0, (b,), 5, 0, 0, 25),  # a and its answer
        PlannedRequest(2, 1.0, (c,), 5, 0, 1, 40),  # and b and its answer
    ]
    assert cached_share(workload_of(requests)) == pytest.approx((15 + 30) / 75)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_described(name):
    found = describe(make_workload(name, rate=10, duration=400, seed=1))
    json.dumps(found, allow_nan=False)
    assert found["requests"] == 4000
    assert found["prompt_tokens"]["p50"] > 0
    assert found["interval_variation"] > 0
    shares = {"chat": (0, 0), "agent": (0.8, 0.97), "rag": (0.75, 0.9)}
    low, high = shares.get(name, (0, 0))
    assert low <= found["cached_share"] <= high


def test_bursts_show():
    found = {name: describe(make_workload(name, rate=3, duration=9000)) for name in PRESETS}
    index = {name: one["index_of_dispersion"]["60s"] for name, one in found.items()}
    assert index["code"] > 20 * index["rag"]
    assert index["chat"] > 2 * index["rag"]
    assert 0.5 < index["rag"] < 1.6


def test_a_closed_loop_has_no_arrivals():
    found = describe(make_workload("rag", concurrency=2, count=50))
    assert found["interval_variation"] is None
    assert set(found["index_of_dispersion"].values()) == {None}
    assert found["turns"] == 1


def test_texts_and_nothing_are_described(tmp_path):
    path = tmp_path / "load.jsonl"
    path.write_text('{"prompt": "hello there"}\n' * 3)
    assert describe(make_workload(str(path), rate=1))["cached_share"] is None
    assert describe(workload_of([]))["turns"] == 0
