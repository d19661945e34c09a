"""Traces: the spans of a request, its place in its caller's trace, their way to a collector."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from live import HERE, environment, live_server, wait_until
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from trimtab.engine.client import PrefillChunk, RequestTimeline, TokenOutput
from trimtab.errors import ConfigError
from trimtab.server.observation import Call, Observer
from trimtab.server.tracing import CallTrace, Tracing, traces_url

TEXT = "/v1/completions"
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def trace_a_call(headers: list[tuple[bytes, bytes]], status: int = 200) -> list[ReadableSpan]:
    exporter = InMemorySpanExporter()
    tracing = Tracing(exporter, "a-model", batch=False)
    observer = Observer()
    observer.on_end.append(tracing.end)
    call = Call(observer, "req-1", "POST", TEXT)
    observer.begin(call)
    tracing.begin(call, headers)
    assert isinstance(call.trace, CallTrace)
    call.read = time.perf_counter()
    call.prepare(100, 1, "cmpl-1")
    chunks = [PrefillChunk(0.001, 0.002, 64), PrefillChunk(0.003, 0.001, 36)]
    timeline = RequestTimeline(0.001, chunks, 0.004, 0.01)
    call.output(0, TokenOutput("r", [1], num_cached_tokens=16, timeline=timeline))
    call.output(0, TokenOutput("r", [2, 3], "length", timeline=timeline))
    call.finish(0, "length")
    observer.end(call, TEXT, status, True)
    tracing.close()
    return list(exporter.get_finished_spans())


def test_the_spans_of_a_request() -> None:
    spans = {span.name: span for span in trace_a_call([])}
    root = spans.pop(f"POST {TEXT}")
    assert set(spans) == {"read", "tokenize", "queue", "prefill", "decode"}
    assert root.parent is None
    for span in spans.values():
        assert span.parent is not None
        assert span.parent.span_id == root.context.span_id
        assert span.context.trace_id == root.context.trace_id
        assert root.start_time <= span.start_time <= span.end_time
    attributes = root.attributes
    assert attributes["gen_ai.usage.input_tokens"] == 100
    assert attributes["gen_ai.usage.output_tokens"] == 3
    assert attributes["gen_ai.response.finish_reasons"] == ("length",)
    assert attributes["http.response.status_code"] == 200
    assert root.status.is_ok
    prefill = spans["prefill"]
    assert [dict(event.attributes)["tokens"] for event in prefill.events] == [64, 36]
    assert prefill.attributes["trimtab.cached_tokens"] == 16
    assert prefill.end_time - prefill.start_time == pytest.approx(3e6, rel=0.01)
    assert spans["queue"].end_time == prefill.start_time
    assert spans["read"].end_time == spans["tokenize"].start_time


def test_a_request_is_part_of_its_callers_trace() -> None:
    parent = f"00-{TRACE}-{PARENT}-01".encode()
    root = trace_a_call([(b"traceparent", parent)])[-1]
    assert f"{root.context.trace_id:032x}" == TRACE
    assert root.parent is not None
    assert f"{root.parent.span_id:016x}" == PARENT
    assert trace_a_call([(b"traceparent", f"00-{TRACE}-{PARENT}-00".encode())]) == []
    for nonsense in (b"00-zz-1-01", b"", b"\xff\xfe"):
        assert trace_a_call([(b"traceparent", nonsense)])[-1].parent is None


def test_our_fault_is_an_error() -> None:
    assert not trace_a_call([], 500)[-1].status.is_ok


def test_addresses() -> None:
    assert traces_url("http://c:4318") == traces_url("http://c:4318/v1/traces")
    assert traces_url("https://c/other/path") == "https://c/other/path"
    for wrong in ("c:4318", "ftp://c", "http://", ""):
        with pytest.raises(ConfigError, match="otlp_endpoint"):
            traces_url(wrong)


def test_traces_reach_a_collector_and_name_no_text() -> None:
    received: list[bytes] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            received.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Collector) as collector:
        serving = threading.Thread(target=collector.serve_forever)
        serving.start()
        endpoint = f"http://127.0.0.1:{collector.server_port}"
        try:
            with live_server(server={"otlp_endpoint": endpoint}) as server:
                headers = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
                body = {"prompt": "SECRET", "max_tokens": 3, "stream": True}
                answer = server.post(TEXT, json=body, headers=headers)
                assert answer.headers["x-trace-id"] == TRACE
                assert answer.headers["traceparent"].startswith(f"00-{TRACE}-")
                assert "x-trace-id" in server.post(TEXT, json={"prompt": []}).headers
                assert "x-trace-id" not in server.get("/health").headers
                assert server.stop() == 0  # what is left is sent on the way out
                assert server.error_text() == ""
            wait_until(lambda: bool(received))
        finally:
            collector.shutdown()
            serving.join()
    requests = [ExportTraceServiceRequest.FromString(one) for one in received]
    spans = [
        span
        for request in requests
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]
    names = sorted(span.name for span in spans if span.trace_id.hex() == TRACE)
    assert names == ["POST " + TEXT, "decode", "prefill", "queue", "read", "tokenize"]
    assert len(spans) > len(names)
    assert not any(b"SECRET" in one for one in received)


def test_a_collector_that_is_not_there_stops_nobody() -> None:
    with live_server(server={"otlp_endpoint": "http://127.0.0.1:9"}) as server:
        assert server.post(TEXT, json={"prompt": "hi", "max_tokens": 2}).status_code == 200
        assert server.stop(seconds=30) == 0


def test_what_is_no_address_is_told() -> None:
    options = json.dumps({"server": {"otlp_endpoint": "nonsense"}})
    command = [sys.executable, str(HERE / "serve_fake.py"), options]
    done = subprocess.run(command, capture_output=True, env=environment(), text=True, timeout=30)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("trimtab: error: otlp_endpoint='nonsense': use http://")
