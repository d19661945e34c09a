"""What Prometheus reads on `/metrics`, out of what the Observer and the engine know.

Names and bounds are those that vLLM's dashboards use, behind `trimtab:`. Nothing is counted here: a
scrape reads the Observer's counters, so that a token costs the same whether anybody looks or not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from time import perf_counter

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from trimtab.engine.client import EngineStats, SpeculationStats
from trimtab.engine.timing import STEP_SIZES
from trimtab.server.dashboard import blocks_of, parts_of
from trimtab.server.desk import Desk
from trimtab.server.observation import Observer
from trimtab.server.tally import (
    CHOICES_BOUNDS,
    COUNT_BOUNDS,
    FIRST_TOKEN_BOUNDS,
    REQUEST_BOUNDS,
    TOKEN_BOUNDS,
    Distribution,
)

PREFIX = "trimtab:"
CONTENT_TYPE = CONTENT_TYPE_LATEST


def scrape(desk: Desk, stats: EngineStats | None) -> bytes:
    """Everything, at this moment, as CONTENT_TYPE; without `stats`, all but the engine's part."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Scrape(desk, stats))
    return generate_latest(registry)


class _Scrape(Collector):
    """Everything, at one moment."""

    def __init__(self, desk: Desk, stats: EngineStats | None) -> None:
        self._desk = desk
        self._stats = stats
        self._labels = {"model_name": desk.model.name}

    def collect(self) -> Iterator[Metric]:
        observer = self._desk.observer
        yield from self._requests(observer)
        yield from self._latencies(observer)
        yield from self._server(observer)
        if self._stats is not None:
            yield from self._engine(self._stats)

    def _requests(self, observer: Observer) -> Iterator[Metric]:
        totals = observer.totals
        yield self._counter("prompt_tokens", "Prompt tokens taken.", totals.num_prompt_tokens)
        yield self._counter("generation_tokens", "Tokens generated.", totals.num_generated_tokens)
        finished = dict.fromkeys(("stop", "length", "abort", "error"), 0)
        yield self._counters(
            "request_success",
            "Choices that ended, by finish reason.",
            ("finished_reason",),
            [((reason,), count) for reason, count in (finished | observer.finished).items()],
        )
        for name, help_text, counted, bounds in (
            ("request_prompt_tokens", "Prompt tokens of a request.", observer.prompt_tokens,
             COUNT_BOUNDS),
            ("request_generation_tokens", "Tokens of a choice.", observer.completion_tokens,
             COUNT_BOUNDS),
            ("request_params_n", "Choices of a request.", observer.num_choices, CHOICES_BOUNDS),
        ):  # fmt: skip
            yield self._histogram(name, help_text, counted, bounds)

    def _latencies(self, observer: Observer) -> Iterator[Metric]:
        totals = observer.totals
        for name, help_text, counted, bounds in (
            ("time_to_first_token_seconds", "From a request's headers to its first token.",
             totals.first_token, FIRST_TOKEN_BOUNDS),
            ("inter_token_latency_seconds", "Between two tokens of a choice.", totals.token,
             TOKEN_BOUNDS),
            ("request_time_per_output_token_seconds",
             "Mean time between the tokens of a choice.", observer.per_token, TOKEN_BOUNDS),
            ("e2e_request_latency_seconds", "From a request's headers to the end of its answer.",
             observer.latency, REQUEST_BOUNDS),
            ("request_queue_time_seconds", "A choice in the engine before its first step.",
             observer.queue, REQUEST_BOUNDS),
            ("request_prefill_time_seconds", "From a choice's first step to its first token.",
             observer.prefill, REQUEST_BOUNDS),
            ("request_decode_time_seconds", "From a choice's first token to its last.",
             observer.decode, REQUEST_BOUNDS),
            ("request_inference_time_seconds", "Prefill and decode of a choice.",
             observer.inference, REQUEST_BOUNDS),
        ):  # fmt: skip
            yield self._histogram(name, help_text, counted, bounds)

    def _server(self, observer: Observer) -> Iterator[Metric]:
        engine = self._desk.engine
        yield self._gauge("http_requests_open", "HTTP requests being answered.", observer.num_open)
        yield self._counters(
            "http_requests",
            "HTTP requests answered; status 499: the client did not wait for it.",
            ("method", "route", "status"),
            [((method, route, str(status)), n) for (method, route, status), n in
             observer.http.items()],
        )  # fmt: skip
        yield self._counters(
            "requests_rejected",
            "Requests answered with an error, by its code.",
            ("reason",),
            [((reason,), count) for reason, count in observer.refused.items()],
        )
        yield self._gauge("engine_up", "1 while the engine takes requests.", int(engine.healthy))
        yield self._counter(
            "engine_restarts", "Engine processes that were lost and replaced.", engine.num_restarts
        )
        yield self._gauge(
            "uptime_seconds", "Since the server began.", perf_counter() - observer.started
        )

    def _engine(self, stats: EngineStats) -> Iterator[Metric]:
        held = stats.num_blocks - stats.num_free_blocks
        for name, help_text, value in (
            ("num_requests_running", "Requests in the running batch.", stats.num_running),
            ("num_requests_waiting", "Requests that wait for a step.", stats.num_waiting),
            ("kv_cache_usage_perc", "Share of KV blocks that requests hold; 1 = all.",
             held / stats.num_blocks if stats.num_blocks else 0.0),
        ):  # fmt: skip
            yield self._gauge(name, help_text, value)
        blocks = GaugeMetricFamily(
            PREFIX + "kv_blocks",
            "KV blocks: held by requests, cached and free to be taken, empty.",
            labels=[*self._labels, "state"],
        )
        for state, count in blocks_of(stats).items():
            blocks.add_metric([*self._labels.values(), state], count)
        yield blocks
        for name, help_text, count in (
            ("prefix_cache_queries", "Prompt tokens looked up.", stats.num_prompt_tokens),
            ("prefix_cache_hits", "Of those, found.", stats.num_cached_prompt_tokens),
            ("prompt_tokens_cached", "The same.", stats.num_cached_prompt_tokens),
            ("num_preemptions", "Requests that gave their blocks back.", stats.num_preemptions),
            ("engine_steps", "Steps of the engine.", stats.num_steps),
            ("non_finite_requests", "Requests whose logits were not finite.",
             stats.num_non_finite_requests),
        ):  # fmt: skip
            yield self._counter(name, help_text, count)
        yield self._counters(
            "engine_step_seconds",
            "Time of the engine's steps, by part.",
            ("part",),
            [((part,), seconds) for part, seconds in parts_of(stats).items()],
        )
        if stats.speculation is not None:
            yield from self._speculation(stats.speculation)
        if stats.step_size_counts:
            sizes = Distribution(STEP_SIZES)
            sizes.counts, sizes.sum = stats.step_size_counts, float(stats.num_step_tokens)
            yield self._histogram(
                "iteration_tokens_total", "Tokens of a step: prefill and decode.", sizes, STEP_SIZES
            )

    def _speculation(self, stats: SpeculationStats) -> Iterator[Metric]:
        for name, help_text, count in (
            ("spec_decode_num_drafts", "Guesses that a step verified.", stats.num_drafts),
            ("spec_decode_num_draft_tokens", "Tokens of those.", stats.num_drafted),
            ("spec_decode_num_accepted_tokens", "Of those, emitted.", stats.num_accepted),
        ):
            yield self._counter(name, help_text, count)
        yield self._counters(
            "spec_decode_num_accepted_tokens_per_pos",
            "Emitted tokens by their place in the guess.",
            ("position",),
            [((str(place),), count) for place, count in enumerate(stats.accepted_by_position)],
        )
        accepted = stats.accepted_by_proposer
        yield self._counters(
            "spec_decode_tokens",
            "Guessed tokens by who guessed them: accepted, or wasted.",
            ("proposer", "outcome"),
            [
                ((name, outcome), count)
                for name, drafted in stats.drafted_by_proposer.items()
                for outcome, count in (
                    ("accepted", accepted[name]),
                    ("wasted", drafted - accepted[name]),
                )
            ],
        )

    def _gauge(self, name: str, help_text: str, value: float) -> Metric:
        family = GaugeMetricFamily(PREFIX + name, help_text, labels=list(self._labels))
        family.add_metric(list(self._labels.values()), value)
        return family

    def _counter(self, name: str, help_text: str, value: float) -> Metric:
        return self._counters(name, help_text, (), [((), value)])

    def _counters(
        self,
        name: str,
        help_text: str,
        labels: Sequence[str],
        values: Iterable[tuple[Sequence[str], float]],
    ) -> Metric:
        family = CounterMetricFamily(PREFIX + name, help_text, labels=[*self._labels, *labels])
        for own, value in values:
            family.add_metric([*self._labels.values(), *own], value)
        return family

    def _histogram(
        self, name: str, help_text: str, counted: Distribution, bounds: Sequence[float]
    ) -> Metric:
        family = HistogramMetricFamily(PREFIX + name, help_text, labels=list(self._labels))
        names = [str(float(bound)) for bound in bounds] + ["+Inf"]
        buckets = list(zip(names, map(float, counted.cumulative(bounds)), strict=True))
        family.add_metric(list(self._labels.values()), buckets, counted.sum)
        return family
