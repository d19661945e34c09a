"""A request that is not finished yet: what it asks, what it got, and who works on it."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from trimtab.engine.client import EngineRequest, PrefillChunk, RequestTimeline, TokenOutput

Sink = Callable[[TokenOutput | Exception], None]


@dataclass(eq=False, slots=True)
class LiveRequest:
    """Everything that another engine process needs to go on with it.

    `sink` is its consumer; an exception or an output with a finish_reason is the last it gets.
    """

    request: EngineRequest  # as it came, with a seed
    sink: Sink
    token_ids: list[int] = field(default_factory=list)  # emitted, and given to the sink
    num_cached_tokens: int | None = None  # as first reported; None: nothing was yet
    scored: bool = False  # its prompt's logprobs are out
    submitted: bool = False  # the present engine process has it
    progressed: bool = False  # that process has emitted something for it
    timeline: RequestTimeline | None = None  # as last reported
    first_submitted: float | None = None  # monotonic seconds; None: no process ever had it
    shift: float = 0.0  # seconds from there to the submission to the present process
    barren_deaths: int = 0  # processes in a row that ended with it and had emitted nothing for it

    @classmethod
    def of(cls, request: EngineRequest, sink: Sink) -> LiveRequest:
        """Draws the seed here if the request has none: every process must sample with the same."""
        if request.params.seed is None and request.params.temperature > 0:
            params = replace(request.params, seed=secrets.randbits(64))
            request = replace(request, params=params)
        return cls(request, sink)

    @property
    def request_id(self) -> str:
        return self.request.request_id

    @property
    def begun(self) -> bool:
        """Its consumer has something of it."""
        return self.num_cached_tokens is not None

    def take(self, output: TokenOutput) -> None:
        """Pass on what an engine emitted, in its order. Changes `output` where a process that took
        the request over counts otherwise than the first one did."""
        self.progressed = True
        self.token_ids += output.token_ids
        if output.prompt_logprobs is not None:
            self.scored = True
        if output.timeline is not None:
            output.timeline = self.timeline = self._continued(output.timeline)
        if self.num_cached_tokens is None:
            self.num_cached_tokens = output.num_cached_tokens
        else:
            output.num_cached_tokens = self.num_cached_tokens
        self.sink(output)

    def _continued(self, timeline: RequestTimeline) -> RequestTimeline:
        """What this process says of its part, as part of the whole."""
        if not self.shift:
            return timeline
        earlier, first = self.timeline, timeline.first_token
        own = [replace(chunk, start=chunk.start + self.shift) for chunk in timeline.prefill]
        return replace(
            timeline,
            queued=timeline.queued + self.shift if earlier is None else earlier.queued,
            prefill=own if earlier is None else [*self._prefill_before(earlier), *own],
            first_token=(
                (None if first is None else first + self.shift)
                if earlier is None
                else earlier.first_token
            ),
            total=timeline.total + self.shift,
        )

    def _prefill_before(self, earlier: RequestTimeline) -> list[PrefillChunk]:
        """Chunks of the processes before this one."""
        return [chunk for chunk in earlier.prefill if chunk.start < self.shift]

    def to_submit(self) -> EngineRequest:
        """The request for an engine that knows nothing of it: it goes on behind what was emitted,
        and repeats nothing. To be called when it is sent."""
        now = time.monotonic()
        if self.first_submitted is None:
            self.first_submitted = now
        self.shift = now - self.first_submitted
        if not self.begun:
            return self.request
        return replace(
            self.request,
            completion_ids=[*self.request.completion_ids, *self.token_ids],
            prompt_logprobs=None if self.scored else self.request.prompt_logprobs,
        )
