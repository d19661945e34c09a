"""Administration: closed to everybody without its own key, and there only if there is one."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from live import Live, end, live_server, start, wait_until
from tiny_model import write_tiny_model

TEXT = "/v1/completions"
ADMIN = {"x-api-key": "boss"}
USER = {"x-api-key": "user"}
ROUTES = [
    ("POST", "/v1/admin/reset_prefix_cache"),
    ("POST", "/v1/admin/log_level"),
    ("GET", "/v1/admin/stats"),
]


@pytest.fixture(scope="module")
def ruled() -> Iterator[Live]:
    with live_server(server={"api_key": "user", "admin_key": "boss"}) as live:
        yield live


@pytest.mark.parametrize(("method", "path"), ROUTES)
@pytest.mark.parametrize("headers", [{}, USER, {"x-api-key": "bos"}, {"x-api-key": "boss2"}])
def test_no_other_key_opens_it(
    ruled: Live, method: str, path: str, headers: dict[str, str]
) -> None:
    answer = ruled.http.request(method, ruled.url + path, headers=headers)
    assert answer.status_code == 401


def test_its_key_opens_nothing_else(ruled: Live) -> None:
    for path in ("/v1/models", "/stats", "/metrics", "/v1/administration", "/v1/admin"):
        assert ruled.get(path, headers=ADMIN).status_code == 401
    assert ruled.get("/v1/admin/other", headers=ADMIN).status_code == 404


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_without_a_key_there_is_no_such_route(server: Live, method: str, path: str) -> None:
    for headers in ({}, ADMIN, {"x-api-key": ""}):
        answer = server.http.request(method, server.url + path, headers=headers)
        assert answer.status_code == 404


def test_stats_in_detail(ruled: Live) -> None:
    ruled.post(TEXT, json={"prompt": "PRIVATE", "max_tokens": 2}, headers=USER)
    answer = ruled.get("/v1/admin/stats", headers=ADMIN)
    document = answer.json()
    assert document["state"] == "ready"
    assert document["finished"] == {"length": 1}
    assert document["engine"]["num_generated_tokens"] >= 2
    assert document["keys"] == {"default": {"requests": None, "tokens": None}}
    assert document["rejected"]["invalid_api_key"] > 0
    assert "PRIVATE" not in answer.text
    assert "boss" not in answer.text


def test_the_log_level(ruled: Live) -> None:
    def set_level(level: object) -> int:
        answer = ruled.post("/v1/admin/log_level", json={"level": level}, headers=ADMIN)
        return answer.status_code

    assert ruled.error_text() == ""
    assert set_level("info") == 200
    ruled.get("/v1/models", headers=USER | {"x-request-id": "seen"})
    wait_until(lambda: "request_id=seen" in ruled.error_text())
    assert set_level("warning") == 200
    ruled.get("/v1/models", headers=USER | {"x-request-id": "unseen"})
    for level in ("trace", 10, None, ["info"]):
        assert set_level(level) == 400
    body = {"level": "info", "file": "/tmp/x"}
    assert ruled.post("/v1/admin/log_level", json=body, headers=ADMIN).status_code == 400
    assert "unseen" not in ruled.error_text()
    large = {"level": "x" * 5000}
    assert ruled.post("/v1/admin/log_level", json=large, headers=ADMIN).status_code == 413


def test_the_prefix_cache_is_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIMTAB_ADMIN_KEY", "boss")
    model = write_tiny_model(tmp_path / "tiny")
    command = [sys.executable, "-m", "trimtab", "serve", str(model), "--port", "0", "--json"]
    server = start([*command, "--weights", "f32", "--threads", "1"])
    try:
        body = {"prompt": "a" * 100, "max_tokens": 4, "temperature": 0}

        def ask() -> tuple[int, str]:
            answer = server.post(TEXT, json=body).json()
            cached = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
            return cached, answer["choices"][0]["text"]

        answers = [ask(), ask()]
        reset = server.post("/v1/admin/reset_prefix_cache", headers=ADMIN)
        assert reset.json() == {"status": "ok"}
        answers += [ask(), ask()]
        assert [cached for cached, _ in answers] == [0, 96, 0, 96]
        assert len({text for _, text in answers}) == 1
        assert json.loads(server.get("/health").text) == {"status": "ok"}
    finally:
        end(server)
