"""What a load is told before it, tells while it runs, and leaves behind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from trimtab.bench.saturation import Saturation
from trimtab.workloads.records import RequestRecord


@dataclass(frozen=True)
class LoadOptions:
    max_concurrency: int | None = None  # in an open loop: waiting for it counts as latency
    max_seconds: float | None = None  # nothing is begun after that
    request_seconds: float = 600.0  # for one answer
    warm_up: int = 8  # requests before the load, with prompts that share nothing with it
    obey_retry_after: bool = False  # 429 and 503: ask again when the server says, else an error
    stop_when_saturated: bool = True
    token_ids: bool = False  # asked for: exact counts for each event, more work for the server
    on_start: Callable[[], None] | None = None  # called behind the warm-up


@dataclass(frozen=True)
class LoadProgress:
    elapsed: float
    num_due: int  # scheduled until now
    num_ended: int
    num_failed: int
    num_planned: int
    in_flight: int
    num_tokens: int
    last_due: float  # when the last one is planned to be sent; 0 of a closed loop


@dataclass
class Outcome:
    """What a load leaves behind, beside its records."""

    records: list[RequestRecord] = field(default_factory=list)
    sources: Counter[str] = field(default_factory=Counter)  # how tokens were counted -> answers
    statuses: Counter[int] = field(default_factory=Counter)
    num_short: int = 0  # answers with fewer tokens than were planned
    num_retried: int = 0
    num_unsent: int = 0  # never due, because the load was ended before
    peak_in_flight: int = 0
    saturation: Saturation | None = None
    elapsed: float = 0.0  # until the last answer ended
