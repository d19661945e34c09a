"""OpenTelemetry traces of requests, sent as OTLP over HTTP. An extra: trimtab[otel].

One span a request, whose children are made when it is over, from what was observed:

    POST /v1/completions
      read | tokenize | queue | prefill (an event for each chunk) | decode       the last three
                                                                                 for each choice
The clock of the engine's process is laid on the server's where the request was handed over.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from trimtab.errors import ConfigError
from trimtab.server.observation import Call, ChoiceLife

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span

MAX_CHOICES = 16  # of one request that have spans
EXPORT_SECONDS = 5
TRACES_PATH = "/v1/traces"


class CallTrace:
    """The span of a request that runs."""

    def __init__(self, span: Span) -> None:
        self.span = span

    def response_headers(self) -> list[tuple[bytes, bytes]]:
        """By which a client finds the trace."""
        context = self.span.get_span_context()
        trace_id = f"{context.trace_id:032x}"
        parent = f"00-{trace_id}-{context.span_id:016x}-{int(context.trace_flags):02x}"
        return [(b"x-trace-id", trace_id.encode()), (b"traceparent", parent.encode())]


class Tracing:
    """Makes spans of calls; `close` sends what has not been sent."""

    def __init__(self, exporter: SpanExporter, model: str, *, batch: bool = True) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        resource = Resource.create({"service.name": "trimtab"})
        self._provider: TracerProvider = TracerProvider(resource=resource, shutdown_on_exit=False)
        processor = BatchSpanProcessor if batch else SimpleSpanProcessor
        self._provider.add_span_processor(processor(exporter))
        self._tracer = self._provider.get_tracer("trimtab")
        self._propagator = TraceContextTextMapPropagator()
        self._model = model

    def begin(self, call: Call, headers: list[tuple[bytes, bytes]]) -> None:
        """Start the span of a call, as a child of the one that its `traceparent` names."""
        from opentelemetry.trace import SpanKind

        carrier = {
            name.decode(): value.decode("latin-1")
            for name, value in headers
            if name in (b"traceparent", b"tracestate")
        }
        span = self._tracer.start_span(
            f"{call.method} {call.path}"[:128],
            self._propagator.extract(carrier),
            SpanKind.SERVER,
            start_time=call.arrived_ns,
        )
        call.trace = CallTrace(span)

    def end(self, call: Call) -> None:
        """For Observer.on_end."""
        if not isinstance(call.trace, CallTrace):
            return
        from opentelemetry.trace import Status, StatusCode, set_span_in_context

        span = call.trace.span
        if span.is_recording():
            span.update_name(f"{call.method} {call.route}")
            span.set_attributes(_attributes(call, self._model))
            if call.status is not None and call.status >= 500:
                span.set_status(Status(StatusCode.ERROR, call.error))
            self._children(call, set_span_in_context(span))
        span.end(_clock(call, call.ended))

    def close(self) -> None:
        self._provider.force_flush(EXPORT_SECONDS * 1000)
        self._provider.shutdown()

    def _children(self, call: Call, parent: Any) -> None:
        if call.read is not None:
            self._child(call, parent, "read", call.arrived, call.read)
            if call.prepared is not None:
                self._child(call, parent, "tokenize", call.read, call.prepared)
        for index, life in enumerate(call.choices[:MAX_CHOICES]):
            self._choice(call, parent, index, life)

    def _choice(self, call: Call, parent: Any, index: int, life: ChoiceLife) -> None:
        timeline, origin = life.timeline, call.prepared
        if timeline is not None and origin is not None:
            ran = origin + timeline.queued
            self._child(call, parent, "queue", origin, ran, {"trimtab.choice": index})
            if timeline.prefill:
                last = timeline.prefill[-1]
                attributes = {
                    "trimtab.choice": index,
                    "trimtab.cached_tokens": life.num_cached_tokens,
                    "trimtab.preemptions": timeline.num_preemptions,
                }
                end = origin + (timeline.first_token or last.start + last.seconds)
                span = self._start(call, parent, "prefill", ran, attributes)
                for chunk in timeline.prefill:
                    told = {"tokens": chunk.num_tokens, "ms": round(chunk.seconds * 1000, 3)}
                    span.add_event("chunk", told, _clock(call, origin + chunk.start))
                span.end(_clock(call, end))
        if life.num_tokens:
            attributes = {"trimtab.choice": index, "trimtab.tokens": life.num_tokens}
            self._child(call, parent, "decode", life.first_token, life.last_token, attributes)

    def _start(
        self, call: Call, parent: Any, name: str, start: float, attributes: dict[str, Any]
    ) -> Span:
        return self._tracer.start_span(
            name, parent, start_time=_clock(call, start), attributes=attributes
        )

    def _child(
        self,
        call: Call,
        parent: Any,
        name: str,
        start: float,
        end: float,
        attributes: dict[str, Any] | None = None,
    ) -> None:
        self._start(call, parent, name, start, attributes or {}).end(_clock(call, end))


def tracing_to(endpoint: str, model: str) -> Tracing:
    """Traces to a collector. Raises ConfigError for what is no address, and without the extra."""
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError:
        raise ConfigError(
            "otlp_endpoint needs OpenTelemetry: pip install 'trimtab[otel]'"
        ) from None
    return Tracing(OTLPSpanExporter(traces_url(endpoint), timeout=EXPORT_SECONDS), model)


def traces_url(endpoint: str) -> str:
    """`http://collector:4318` and `http://collector:4318/v1/traces` are the same."""
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"otlp_endpoint={endpoint!r}: use http://host:4318")
    return endpoint.rstrip("/") + TRACES_PATH if parts.path in ("", "/") else endpoint


def _clock(call: Call, seconds: float | None) -> int | None:
    """A time of perf_counter in nanoseconds since 1970."""
    return None if seconds is None else call.arrived_ns + int((seconds - call.arrived) * 1e9)


def _attributes(call: Call, model: str) -> dict[str, Any]:
    """By OpenTelemetry's semantic conventions, where they have a name."""
    found: dict[str, Any] = {
        "http.request.method": call.method,
        "http.route": call.route,
        "http.response.status_code": call.status,
        "error.type": call.error,
        "trimtab.request_id": call.request_id,
        "trimtab.key": call.key_name,
    }
    if call.prepared is not None:
        first = None if call.first_token is None else call.first_token - call.arrived
        found |= {
            "gen_ai.request.model": model,
            "gen_ai.response.id": call.answer_id,
            "gen_ai.usage.input_tokens": call.num_prompt_tokens,
            "gen_ai.usage.output_tokens": sum(life.num_tokens for life in call.choices),
            "gen_ai.response.finish_reasons": [str(one.finish_reason) for one in call.choices],
            "gen_ai.latency.time_to_first_token": first,
        }
    return {name: value for name, value in found.items() if value is not None}
