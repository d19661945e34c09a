"""What became of a request, measured or simulated, and the latencies of the field.

Times are seconds on one clock that starts with the load. Latencies count from when the schedule
said that a request is to be sent, so that a client which falls behind, or a server that makes it
wait, is not flattered (coordinated omission). Not a number stands for what is undefined.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field

NAN = math.nan


@dataclass(slots=True)
class RequestRecord:
    index: int  # of the `PlannedRequest`
    scheduled: float
    sent: float = NAN
    ended: float = NAN
    token_times: list[float] = field(default_factory=list)  # of events that brought tokens
    token_counts: list[int] = field(default_factory=list)  # tokens of each event
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0  # of those, found in the prefix cache, where the server says so
    num_output_tokens: int = 0
    error: str | None = None
    cut: bool = False  # still running when the load was ended: counts as nothing
    session: int = 0
    turn: int = 0

    @property
    def is_complete(self) -> bool:
        return self.error is None and not self.cut

    @property
    def client_queue(self) -> float:
        """From its schedule until it was sent."""
        return self.sent - self.scheduled

    @property
    def ttft(self) -> float:
        """Time to first token, from the schedule."""
        return self.token_times[0] - self.scheduled if self.token_times else NAN

    @property
    def ttft_service(self) -> float:
        """Time to first token, from when it was sent: what most other tools call TTFT."""
        return self.token_times[0] - self.sent if self.token_times else NAN

    @property
    def e2e(self) -> float:
        """From the schedule to the end of the answer."""
        return self.ended - self.scheduled

    @property
    def e2e_service(self) -> float:
        return self.ended - self.sent

    @property
    def tpot(self) -> float:
        """Time per output token behind the first: (last token - first token) / (tokens - 1)."""
        if self.num_output_tokens < 2 or not self.token_times:
            return NAN
        return (self.token_times[-1] - self.token_times[0]) / (self.num_output_tokens - 1)

    @property
    def tpot_inclusive(self) -> float:
        """(last token - sent) / tokens: the other definition, with the first token in it."""
        if not self.token_times or not self.num_output_tokens:
            return NAN
        return (self.token_times[-1] - self.sent) / self.num_output_tokens

    @property
    def normalized_latency(self) -> float:
        """E2E a token."""
        return self.e2e / self.num_output_tokens if self.num_output_tokens else NAN

    def chunk_gaps(self) -> list[float]:
        """Between events, whatever they bring; the largest is the request's stall."""
        return [later - earlier for earlier, later in itertools.pairwise(self.token_times)]

    def itls(self) -> list[float]:
        """Inter-token latencies: each gap shared by the tokens of the event that ends it."""
        gaps = []
        for gap, count in zip(self.chunk_gaps(), self.token_counts[1:], strict=True):
            gaps += [gap / count] * count
        return gaps
