"""How the page at `/` is served: from memory, open, by exact paths, fenced in by its headers."""

from __future__ import annotations

import http.client
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from live import Live, live_server

from trimtab.server.page_routes import DIRECTORY, FILES

CLOSED = [
    "/page",
    "/page/",
    "/page/index.html",
    "/page/nothing.js",
    "/page/main.js/",
    "/page/../guard.py",
    "/page/%2e%2e/guard.py",
    "/page/..%2fguard.py",
    "/page//main.js",
    "/PAGE/main.js",
    "/index.html",
    "//",
]


@pytest.fixture(scope="module")
def locked() -> Iterator[Live]:
    with live_server(server={"api_key": "s3cret"}) as live:
        yield live


def test_every_file_is_served_and_nothing_else_lies_there() -> None:
    assert {path.name for path in DIRECTORY.iterdir()} == set(FILES.values())
    for path in DIRECTORY.glob("*.js"):
        for name in re.findall(r'from "\./([^"]+)"', path.read_text()):
            assert f"/page/{name}" in FILES, path.name


@pytest.mark.parametrize("path", FILES)
def test_a_file_and_its_headers(server: Live, path: str) -> None:
    response = server.get(path)
    assert response.status_code == 200
    assert response.content == (DIRECTORY / FILES[path]).read_bytes()
    kind = response.headers["content-type"].partition(";")[0]
    assert kind == {"html": "text/html", "css": "text/css", "svg": "image/svg+xml"}.get(
        FILES[path].rpartition(".")[2], "text/javascript"
    )
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self';" in policy
    assert "frame-ancestors 'none'" in policy
    assert "require-trusted-types-for 'script'" in policy
    assert "unsafe" not in policy
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["referrer-policy"] == "no-referrer"


def test_a_browser_that_has_it_gets_no_body(server: Live) -> None:
    tag = server.get("/").headers["etag"]
    for given in (tag, f'W/{tag}, "other"'):
        response = server.get("/", headers={"if-none-match": given})
        assert (response.status_code, response.content) == (304, b"")
        assert response.headers["etag"] == tag
    assert server.get("/", headers={"if-none-match": '"other"'}).status_code == 200
    assert server.get("/page/main.js").headers["etag"] != tag


def test_methods(server: Live) -> None:
    head = server.http.head(server.url + "/")
    assert (head.status_code, head.content) == (200, b"")
    assert int(head.headers["content-length"]) == len((DIRECTORY / "index.html").read_bytes())
    assert server.post("/", json={}).status_code == 405


@pytest.mark.parametrize("path", CLOSED)
def test_no_path_leads_to_another_file(server: Live, locked: Live, path: str) -> None:
    assert raw_status(server, path) == 404
    assert raw_status(locked, path) == 401


def test_the_page_needs_no_key_and_its_calls_do(locked: Live) -> None:
    for path in FILES:
        assert locked.get(path).status_code == 200
    assert locked.get("/v1/models").status_code == 401
    assert locked.get("/stats").status_code == 401


def test_a_server_without_the_page() -> None:
    with live_server(server={"page": False, "api_key": "s3cret"}) as live:
        for path in FILES:
            assert live.get(path).status_code == 401
            assert live.get(path, headers={"x-api-key": "s3cret"}).status_code == 404


def raw_status(server: Live, path: str) -> int:
    """httpx would tidy the path."""
    host = server.url.removeprefix("http://")
    connection = http.client.HTTPConnection(host, timeout=20)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    finally:
        connection.close()


def test_a_report_is_shown_in_a_sandbox_and_linked(tmp_path: Path) -> None:
    report = tmp_path / "report.html"
    report.write_text("<script>1</script>")
    with live_server(server={"report": str(report), "api_key": "s3cret"}) as live:
        response = live.get("/report")
        assert response.text == "<script>1</script>"
        policy = response.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "sandbox allow-scripts" in policy
        assert "allow-same-origin" not in policy
        assert 'href="report" id="report">' in live.get("/").text
        report.unlink()
        assert live.get("/report").status_code == 200  # it was read at start
    with live_server() as live:
        assert live.get("/report").status_code == 404
        assert 'href="report" id="report" hidden>' in live.get("/").text
