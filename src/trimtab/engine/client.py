"""EngineClient: how the layers above talk to an engine, wherever it lives.

Implementations: `engine.async_engine.AsyncEngine` (in this process), `server.engine_client`
(a supervised child process). Everything here is plain data that msgspec can carry.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Literal, Protocol

from trimtab.engine.sampling_params import SamplingParams
from trimtab.engine.struct import Struct

FinishReason = Literal["stop", "length", "abort", "error"]


GrammarKind = Literal["json_schema", "json_object", "regex", "choice", "lark"]


@dataclass(frozen=True)
class Grammar:
    """What a completion's text must be. Its tokens are counted and sampled like any others; those
    that it leaves no choice about are emitted without running the model for each.

    `source`: the schema as JSON text; the pattern; a JSON array of strings; the grammar in
    llguidance's dialect of Lark (or llama.cpp's GBNF). Ignored for json_object.
    """

    kind: GrammarKind
    source: str = ""
    after: tuple[int, ...] = ()  # it begins behind the first of these tokens; at once, if empty


@dataclass(frozen=True)
class EngineRequest:
    """One sequence to complete. `params.n` and `params.stop` are not the engine's business:
    the caller makes one request a choice and cuts stop strings out of the text."""

    request_id: str  # unique among the live ones
    prompt_ids: list[int]
    params: SamplingParams
    priority: int = 0  # smaller runs first
    cache_salt: str = ""  # prefix-cache namespace: only equal salts share blocks
    # Tokens of the completion that were emitted already, by an engine that is gone: it goes on
    # behind them exactly as it would have. Needs `params.seed`, unless greedy.
    completion_ids: list[int] = field(default_factory=list)
    # Also report the logprob of each prompt token, with so many of the most likely at its place.
    prompt_logprobs: int | None = None
    completes: bool = True  # False: the prompt's logprobs, or its embedding, are all that is wanted
    embeds: bool = False  # report the prompt's embedding; then it neither completes nor is scored
    grammar: Grammar | None = None


@dataclass(frozen=True)
class TokenLogprobs:
    logprob: float  # of the token that stands there
    top: list[tuple[int, float]] = field(default_factory=list)  # most likely first


@dataclass(frozen=True)
class PrefillChunk:
    """Prompt tokens that one step computed. What was cached comes in none."""

    start: float  # of the step, in seconds since the engine took the request
    seconds: float  # until the step had run
    num_tokens: int


@dataclass(frozen=True)
class RequestTimeline:
    """Where the time of one request went, on the monotonic clock of the engine's process: seconds
    since the engine took it."""

    queued: float  # until the first step with it began; all of it if there was none
    prefill: list[PrefillChunk]  # those after a preemption, which compute again, included
    first_token: float | None  # until the step that emitted it had run
    total: float
    num_preemptions: int = 0
    num_drafts: int = 0  # tokens proposed by speculation
    num_accepted_drafts: int = 0


class TokenOutput(Struct, array_like=True, omit_defaults=True):
    """What one step added to one request. The last one of a request has a finish_reason."""

    request_id: str
    token_ids: list[int]  # new ones; a stop token (EOS included) is not among them
    logprobs: list[TokenLogprobs] | None = None  # one for each of token_ids, if asked for
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None  # the token that stopped it
    error: str | None = None  # one line, with finish_reason "error"
    num_cached_tokens: int = 0  # prompt tokens that came out of the prefix cache
    prompt_logprobs: list[TokenLogprobs] | None = None  # of tokens 1, 2 ...; once, in the first
    stop_logprobs: TokenLogprobs | None = None  # of stop_token_id, if logprobs were asked for
    # What the output head would read behind the prompt's last token: [hidden_size], not normalised.
    embedding: list[float] | None = None
    # In the output with the first token, and, whole, in the last one.
    timeline: RequestTimeline | None = None


@dataclass(frozen=True)
class SpeculationStats:
    """Since start. A token counts as drafted when a step has computed it; as accepted when it was
    emitted. Position 0 is the first token of a draft."""

    num_drafts: int
    drafted_by_position: list[int]
    accepted_by_position: list[int]
    drafted_by_proposer: dict[str, int]
    accepted_by_proposer: dict[str, int]

    @property
    def num_drafted(self) -> int:
        return sum(self.drafted_by_position)

    @property
    def num_accepted(self) -> int:
        return sum(self.accepted_by_position)


@dataclass(frozen=True)
class EngineStats:
    num_running: int
    num_waiting: int
    num_blocks: int
    num_free_blocks: int  # including cached ones that nobody holds
    num_cached_blocks: int  # of the free ones, those that still hold a prefix
    num_steps: int
    num_preemptions: int
    num_prompt_tokens: int  # since start
    num_cached_prompt_tokens: int
    num_generated_tokens: int
    num_step_tokens: int = 0  # rows of all steps: prefilled, decoded, computed again
    schedule_seconds: float = 0.0  # the parts of all steps, since start
    build_seconds: float = 0.0
    draft_seconds: float = 0.0
    execute_seconds: float = 0.0
    commit_seconds: float = 0.0
    between_seconds: float = 0.0  # from step to step, while requests are live
    step_size_counts: list[int] = field(default_factory=list)  # see engine.timing.STEP_SIZES
    step_size_seconds: list[float] = field(default_factory=list)  # the executor's, likewise
    num_non_finite_requests: int = 0  # ended with an error: the model's numbers were not finite
    executor_progress: int = 0  # grows within a step, too, where the executor can tell
    speculation: SpeculationStats | None = None


@dataclass(frozen=True)
class EngineInfo:
    """What a front process must know of the engine to validate requests."""

    vocab_size: int
    max_context: int
    max_queued_requests: int
    kv_capacity_tokens: int
    executor: str  # for people: "cpu avx512 int4-g64, KV bf16, 2 threads"
    eos_token_ids: tuple[int, ...] = ()  # that the engine knows of
    identity: str = ""  # the executor's: engines of equal ones give the same answers
    max_running_requests: int = 0  # in one step


class EngineClient(Protocol):
    @property
    def info(self) -> EngineInfo: ...

    def generate(self, request: EngineRequest) -> AsyncIterator[TokenOutput]:
        """Submit and stream. Closing or cancelling the iterator aborts the request.

        Raises RequestError for what can never be served, QueueFullError when the queue is full,
        EngineDeadError if the engine is gone.
        """
        ...

    async def reset_prefix_cache(self) -> None:
        """Requests that come after this find nothing of what was computed before it."""
        ...

    async def stats(self) -> EngineStats: ...

    async def close(self) -> None: ...
