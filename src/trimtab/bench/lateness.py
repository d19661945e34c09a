"""How late the load generator itself was. A client that cannot keep up measures itself."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trimtab.bench.pacing import Pacer
from trimtab.workloads.slo import Slo

TICK_SECONDS = 0.01
LIMIT_SHARE = 0.05  # of the tightest limit of the SLO
LIMIT_SECONDS = 0.010  # without one
LIMIT_CORE_SHARE = 0.9


@dataclass(frozen=True)
class Lateness:
    """Of one load, seconds. Send lag: from when a request was due until the client turned to it;
    loop delay: from when a timer was due until it was served, which is also how late the client may
    have seen an event of the server."""

    lag_p50: float
    lag_p99: float
    lag_max: float
    loop_p50: float
    loop_p99: float
    loop_max: float
    core_share: float  # of one core, used by the client's process
    limit: float  # what the p99s may be

    def reasons_against(self) -> list[str]:
        """Why the run says nothing about the server; empty: it does."""
        reasons = []
        for name, value in (("sent", self.lag_p99), ("served its timers", self.loop_p99)):
            if value > self.limit:
                reasons.append(
                    f"the client {name} up to {1e3 * value:.2f} ms late (p99), "
                    f"{1e3 * self.limit:.2f} ms are allowed"
                )
        if self.core_share > LIMIT_CORE_SHARE:
            reasons.append(f"the client took {100 * self.core_share:.0f} % of a core")
        return reasons

    def as_json(self) -> dict[str, Any]:
        return {
            "send_lag_ms": _milliseconds(self.lag_p50, self.lag_p99, self.lag_max),
            "loop_delay_ms": _milliseconds(self.loop_p50, self.loop_p99, self.loop_max),
            "core_share": round(self.core_share, 4),
            "limit_ms": 1e3 * self.limit,
        }

    def line(self) -> str:
        return (
            f"client: sent {1e3 * self.lag_p99:.2f} ms late, served its timers "
            f"{1e3 * self.loop_p99:.2f} ms late (p99; {1e3 * self.limit:.2f} allowed), "
            f"{100 * self.core_share:.0f} % of a core"
        )


class LatenessMeter:
    """Ticks beside a load, and collects its lags. `start` and `stop` around what counts."""

    def __init__(self, pacer: Pacer) -> None:
        self._pacer = pacer
        self._running = False
        self.lags: list[float] = []
        self._delays: list[float] = []
        self._started = self._started_cpu = 0.0

    def start(self) -> None:
        self._running = True
        self._started, self._started_cpu = time.monotonic(), time.process_time()
        self._schedule(self._started + TICK_SECONDS)

    def _schedule(self, due: float) -> None:
        self._pacer.at(due, lambda: self._tick(due))

    def _tick(self, due: float) -> None:
        if not self._running:
            return
        now = time.monotonic()
        # Every tick that was due in the meantime was late: one sample would hide a long delay.
        while due <= now:
            self._delays.append(now - due)
            due += TICK_SECONDS
        self._schedule(due)

    def stop(self, slo: Slo | None) -> Lateness:
        self._running = False
        elapsed = max(time.monotonic() - self._started, 1e-9)
        share = (time.process_time() - self._started_cpu) / elapsed
        lags, delays = sorted(self.lags), sorted(self._delays)
        return Lateness(
            _quantile(lags, 0.5),
            high_lag(lags),
            _quantile(lags, 1.0),
            _quantile(delays, 0.5),
            _quantile(delays, 0.99),
            _quantile(delays, 1.0),
            core_share=share,
            limit=allowed_lateness(slo),
        )


def allowed_lateness(slo: Slo | None) -> float:
    """Seconds. Of limits that grow with a request, their constant part."""
    constants = [term.limit.constant for term in slo.terms] if slo is not None else []
    tightest = min((one for one in constants if one > 0), default=0.0)
    return LIMIT_SHARE * tightest if tightest else LIMIT_SECONDS


def high_lag(ordered: Sequence[float]) -> float:
    """The p99. Of fewer than a hundred that is the largest, and one hiccup of the machine under one
    request makes no load late: then the second largest, from twenty on."""
    if 20 <= len(ordered) < 100:
        return ordered[-2]
    return _quantile(ordered, 0.99)


def _quantile(ordered: Sequence[float], at: float) -> float:
    if not ordered:
        return 0.0
    return ordered[min(len(ordered) - 1, max(0, math.ceil(at * len(ordered)) - 1))]


def _milliseconds(p50: float, p99: float, largest: float) -> dict[str, float]:
    return {"p50": round(1e3 * p50, 4), "p99": round(1e3 * p99, 4), "max": round(1e3 * largest, 4)}
