"""What dashboards read: Prometheus' own parser takes it, and the numbers are true."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from live import Live, end, live_server, loading_server, start, wait_until
from prometheus_client.parser import text_string_to_metric_families
from tiny_model import write_tiny_model

TEXT, CHAT = "/v1/completions", "/v1/chat/completions"
MODEL = "fake-model"

# What the dashboards of vLLM read, behind its prefix.
NAMES = {
    "num_requests_running": "gauge",
    "num_requests_waiting": "gauge",
    "kv_cache_usage_perc": "gauge",
    "prefix_cache_queries": "counter",
    "prefix_cache_hits": "counter",
    "num_preemptions": "counter",
    "prompt_tokens": "counter",
    "generation_tokens": "counter",
    "request_success": "counter",
    "request_prompt_tokens": "histogram",
    "request_generation_tokens": "histogram",
    "request_params_n": "histogram",
    "time_to_first_token_seconds": "histogram",
    "inter_token_latency_seconds": "histogram",
    "request_time_per_output_token_seconds": "histogram",
    "e2e_request_latency_seconds": "histogram",
    "request_queue_time_seconds": "histogram",
    "request_inference_time_seconds": "histogram",
    "request_prefill_time_seconds": "histogram",
    "request_decode_time_seconds": "histogram",
}

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture(scope="module")
def watched() -> Iterator[Live]:
    with live_server(scheduler={"max_num_requests": 2, "max_queued_requests": 1}) as live:
        yield live


def scrape(server: Live) -> tuple[dict[str, str], Samples]:
    """Kinds of the families, and samples without the label that all of them have."""
    answer = server.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain")
    kinds, samples = {}, {}
    for family in text_string_to_metric_families(answer.text):
        assert family.name.startswith("trimtab:")
        assert family.documentation
        kinds[family.name.removeprefix("trimtab:")] = family.type
        for sample in family.samples:
            labels = dict(sample.labels)
            assert labels.pop("model_name") == MODEL
            assert math.isfinite(sample.value)
            name = sample.name.removeprefix("trimtab:")
            samples[name, frozenset(labels.items())] = sample.value
    return kinds, samples


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples.get((name, frozenset(labels.items())), 0.0)


def test_names_and_kinds(watched: Live) -> None:
    kinds, samples = scrape(watched)
    assert {name: kinds.get(name) for name in NAMES} == NAMES
    for name in (name for name, kind in NAMES.items() if kind == "histogram"):
        buckets = sorted(
            (float(dict(labels)["le"]), count)
            for (sample, labels), count in samples.items()
            if sample == f"{name}_bucket"
        )
        counts = [count for _, count in buckets]
        assert counts == sorted(counts)
        assert buckets[-1] == (math.inf, value(samples, f"{name}_count"))


def test_what_a_request_adds(watched: Live) -> None:
    _, before = scrape(watched)
    body = {"prompt": "twelve chars", "max_tokens": 5, "n": 2, "stream": True}
    assert watched.post(TEXT, json=body).status_code == 200
    watched.post(TEXT, json={"prompt": "EOS", "max_tokens": 9})
    _, after = scrape(watched)

    def grew(name: str, **labels: str) -> float:
        return value(after, name, **labels) - value(before, name, **labels)

    assert grew("prompt_tokens_total") == 12 + 3
    assert grew("generation_tokens_total") == 10 + 3
    assert grew("request_success_total", finished_reason="length") == 2
    assert grew("request_success_total", finished_reason="stop") == 1
    assert grew("http_requests_total", method="POST", route=TEXT, status="200") == 2
    assert grew("http_requests_total", method="GET", route="/metrics", status="200") == 1
    for name, count in {
        "time_to_first_token_seconds": 2,
        "inter_token_latency_seconds": 8 + 2,
        "e2e_request_latency_seconds": 2,
        "request_time_per_output_token_seconds": 3,
        "request_queue_time_seconds": 3,
        "request_prefill_time_seconds": 3,
        "request_prompt_tokens": 2,
        "request_generation_tokens": 3,
        "request_params_n": 2,
    }.items():
        assert grew(f"{name}_count") == count, name
    assert grew("request_generation_tokens_sum") == 13
    assert grew("request_queue_time_seconds_sum") == pytest.approx(3 * 0.0005)
    first, token, whole = (
        grew(f"{name}_sum")
        for name in (
            "time_to_first_token_seconds",
            "inter_token_latency_seconds",
            "e2e_request_latency_seconds",
        )
    )
    assert 0 < first < whole
    assert token >= 10 * 0.002
    assert value(after, "http_requests_open") == 1  # this scrape
    assert value(after, "engine_up") == 1


def test_reasons_of_refusals(watched: Live) -> None:
    _, before = scrape(watched)
    watched.post(TEXT, json={"prompt": "hi", "max_tokens": 5000})
    watched.post(TEXT, json={"prompt": "hi", "model": "other"})
    watched.get("/nope")
    slow = {"prompt": "SLOW", "max_tokens": 200, "n": 3, "stream": True}
    with watched.http.stream("POST", watched.url + TEXT, json=slow) as running:
        assert running.status_code == 200
        with httpx.Client(timeout=20) as other:
            assert other.post(watched.url + TEXT, json={"prompt": "hi"}).status_code == 429
    wait_until(lambda: value(scrape(watched)[1], "num_requests_running") == 0)
    _, after = scrape(watched)
    for reason in ("context_length_exceeded", "model_not_found", "queue_full"):
        name = "requests_rejected_total"
        assert value(after, name, reason=reason) - value(before, name, reason=reason) == 1
    gone = value(after, "request_success_total", finished_reason="abort")
    assert gone - value(before, "request_success_total", finished_reason="abort") == 3
    assert value(after, "http_requests_total", method="GET", route="other", status="404") >= 1


def test_paths_that_do_not_exist_make_no_series(watched: Live) -> None:
    watched.get("/warm-up")
    before = len(scrape(watched)[1])
    for i in range(20):
        watched.get(f"/nope/{i}")
        watched.get(f"/v1/models/{i}")
    assert len(scrape(watched)[1]) <= before + 2


def test_blocks_by_state(watched: Live) -> None:
    slow = {"prompt": "SLOW", "max_tokens": 500, "n": 2, "stream": True}
    with watched.http.stream("POST", watched.url + TEXT, json=slow):
        wait_until(lambda: value(scrape(watched)[1], "num_requests_running") == 2)
        _, samples = scrape(watched)
    states = {state: value(samples, "kv_blocks", state=state) for state in ("used", "cached")}
    assert states == {"used": 2, "cached": 3}
    assert value(samples, "kv_blocks", state="empty") == 3
    assert value(samples, "kv_cache_usage_perc") == 0.25


def test_the_dashboard(watched: Live) -> None:
    text = watched.post(TEXT, json={"prompt": "hi", "max_tokens": 40}).json()
    assert text["usage"]["completion_tokens"] == 40
    time.sleep(1.1)  # into the next second
    after = watched.get("/dashboard.json").json()
    assert (after["model"], after["plan"], after["state"]) == (MODEL, "fake", "ready")
    last = after["last_minute"]
    assert last["generated_tokens"] >= 40
    assert last["requests"] >= 1
    assert sum(last["generated_tokens_by_second"]) == last["generated_tokens"]
    assert len(last["generated_tokens_by_second"]) == 59
    assert after["tokens_per_second"]["generated"] > 0
    for name in ("first_token_ms", "inter_token_ms"):
        shares = last[name]
        assert 0 < shares["p50"] <= shares["p90"] <= shares["p95"] <= shares["p99"]
    assert last["inter_token_ms"]["p50"] >= 1.8
    engine = after["engine"]
    assert engine["blocks"] == {"used": 0, "cached": 3, "empty": 5}
    assert (engine["running"], engine["waiting"], engine["max_waiting"]) == (0, 0, 1)


def test_only_metrics_can_be_opened() -> None:
    key = {"api_key": "secret"}
    with live_server(server=key) as server:
        for path in ("/metrics", "/stats", "/dashboard.json"):
            assert server.get(path).status_code == 401
            assert server.get(path, headers={"x-api-key": "secret"}).status_code == 200
    with live_server(server=key | {"open_metrics": True}) as server:
        assert server.get("/metrics").status_code == 200
        assert "secret" not in server.get("/metrics").text
        for path in ("/stats", "/dashboard.json", "/metrics/", "/metrics/x"):
            assert server.get(path).status_code == 401


def test_the_real_engine_tells_everything(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "tiny")
    command = [sys.executable, "-m", "trimtab", "serve", str(model), "--port", "0", "--json"]
    command += ["--weights", "f32", "--threads", "1", "--served-model-name", MODEL]
    server = start([*command, "--speculative", "off"])  # so that a step's rows are known
    try:
        body: dict[str, Any] = {
            "prompt": "a" * 200, "max_tokens": 8, "temperature": 0, "ignore_eos": True,
        }  # fmt: skip
        for _ in range(2):
            timings = server.post(TEXT, json=body | {"timings": True}).json()["timings"]
        (choice,) = timings["choices"]
        assert choice["cached_tokens"] == 192
        assert [one["tokens"] for one in choice["prefill"]] == [8]
        assert 0 <= choice["queue_ms"] <= choice["first_token_ms"] <= timings["first_token_ms"]
        text = server.get("/metrics").text
        found = {
            sample.name: sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.labels.get("le", "+Inf") == "+Inf"
        }
        assert found["trimtab:prefix_cache_queries_total"] == 400
        assert found["trimtab:prefix_cache_hits_total"] == 192
        assert found["trimtab:iteration_tokens_total_count"] == found["trimtab:engine_steps_total"]
        assert found["trimtab:iteration_tokens_total_sum"] == 200 + 8 + 2 * 7
        parts = {
            sample.labels["part"]: sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == "trimtab:engine_step_seconds_total"
        }
        assert parts.pop("draft") == 0
        assert set(parts) == {"schedule", "build", "execute", "commit", "between"}
        assert all(seconds > 0 for seconds in parts.values())
    finally:
        end(server)


def test_while_there_is_no_engine() -> None:
    with loading_server() as url:
        seen = set()

        def ready() -> bool:
            with contextlib.suppress(httpx.TransportError):
                dashboard = httpx.get(url + "/dashboard.json", timeout=5).json()
                text = httpx.get(url + "/metrics", timeout=5).text
                has_engine = "trimtab:num_requests_running" in text
                seen.add((dashboard["state"], dashboard["engine"] is not None, has_engine))
            return ("ready", True, True) in seen

        wait_until(ready)
        assert ("loading", False, False) in seen
