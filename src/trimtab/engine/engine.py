"""The engine: requests in, tokens out, one step at a time. Knows nothing of text."""

from __future__ import annotations

import logging
import secrets
from array import array
from bisect import bisect_left
from typing import cast

import numpy as np

from trimtab.config import SchedulerConfig
from trimtab.engine.admission import max_total_tokens, validate_request
from trimtab.engine.ahead import StepsAhead
from trimtab.engine.batch import BatchBuilder, allowed_mask, is_embedded, logit_span
from trimtab.engine.client import (
    EngineInfo,
    EngineRequest,
    EngineStats,
    FinishReason,
    TokenLogprobs,
    TokenOutput,
)
from trimtab.engine.grammar import GrammarCompiler, GrammarError, GrammarState
from trimtab.engine.grammar_follower import GrammarFollower
from trimtab.engine.grammar_source import refused
from trimtab.engine.host_tier import HostTier
from trimtab.engine.kv_cache import KVCacheManager, cache_root
from trimtab.engine.outputs import joined, request_output, score, token_logprobs
from trimtab.engine.request import Request, RequestState
from trimtab.engine.sampling_params import SamplingParams
from trimtab.engine.scheduler import Chunk, Scheduler, StepPlan
from trimtab.engine.speculation.draft import Draft
from trimtab.engine.speculation.speculator import Speculator
from trimtab.engine.timing import STEP_SIZES, StepClock, StepPart
from trimtab.environment import debug_checks
from trimtab.errors import QueueFullError, RequestError
from trimtab.executors.base import (
    AsyncExecutor,
    Executor,
    Float32Array,
    HostStore,
    StepBatch,
    StepResult,
    UInt32Array,
)

logger = logging.getLogger(__name__)


class Engine:
    """The synchronous core. Not thread-safe; owns the executor from here on.

    Every request that `add_request` took gets exactly one output with a finish_reason: from
    `step()`, or from `abort()`.
    """

    def __init__(
        self,
        executor: Executor,
        config: SchedulerConfig | None = None,
        debug: bool | None = None,
        grammars: GrammarCompiler | None = None,
        speculator: Speculator | None = None,
    ) -> None:
        """Without `grammars`, requests that have one are refused; without a `speculator`, which the
        engine owns from here on, each step gives a request one token."""
        self.executor = executor
        self.grammars = grammars
        self.config = config or SchedulerConfig()
        self.debug = debug_checks() if debug is None else debug
        capacity = executor.capacity
        self._host_store: HostStore | None = getattr(executor, "host_store", None)
        self.kv_cache = KVCacheManager(
            capacity.num_blocks,
            capacity.block_size,
            self.config.prefix_cache,
            None if self._host_store is None else HostTier(self._host_store.num_slots),
        )
        self.scheduler = Scheduler(self.config, self.kv_cache)
        self.speculator = speculator
        if speculator is not None:
            speculator.start(self.kv_cache, self.config.max_batch_tokens)
        self.info = EngineInfo(
            vocab_size=executor.spec.vocab_size,
            max_context=executor.spec.max_context,
            max_queued_requests=self.config.max_queued_requests,
            max_running_requests=self.config.max_num_requests,
            kv_capacity_tokens=capacity.num_tokens,
            executor=str(getattr(executor, "description", type(executor).__name__)),
            eos_token_ids=tuple(executor.spec.eos_token_ids),
            identity=executor.identity,
        )
        self._batches = BatchBuilder()
        self._requests: dict[str, Request] = {}
        self._follower = GrammarFollower()
        self._arrivals = 0
        self._num_steps = 0
        self._num_generated_tokens = 0
        self._num_step_tokens = 0
        self._step_size_counts = [0] * (len(STEP_SIZES) + 1)
        self._step_size_seconds = [0.0] * (len(STEP_SIZES) + 1)
        self._clock = StepClock()
        self._goes_on = False  # the latest step left somebody waiting for the next one
        self._ahead: StepsAhead | None = None
        if hasattr(executor, "execute_async") and speculator is None:  # drafts need its tokens
            asynchronous = cast(AsyncExecutor, executor)
            self._ahead = StepsAhead(asynchronous, self.scheduler, self._build, self._clock)
        self._num_non_finite_requests = 0

    @property
    def max_live_requests(self) -> int:
        """Requests that may run or wait at once; one more raises QueueFullError."""
        return self.config.max_num_requests + self.config.max_queued_requests

    @property
    def num_live_requests(self) -> int:
        return len(self._requests)

    def read_grammar(self, request: EngineRequest) -> GrammarState | None:
        """What `add_request` needs of a request's grammar. Blocks for two seconds at most; in any
        thread, also while a step runs. RequestError for a grammar that cannot be used."""
        if request.grammar is None:
            return None
        if self.grammars is None:
            raise RequestError("this engine takes no grammars", param="grammar")
        eos_ids = () if request.params.ignore_eos else self.executor.spec.eos_token_ids
        grammar = GrammarState(
            self.grammars.compile(request.grammar),
            request.grammar.after,
            (*request.params.stop_token_ids, *eos_ids),
            self.info.vocab_size,
        )
        grammar.replay(request.completion_ids)
        try:
            grammar.prepare(())  # the first mask is the slowest, and shows whether there is any
        except GrammarError as error:
            raise refused(str(error)) from None
        return grammar

    def add_request(self, request: EngineRequest, grammar: GrammarState | None = None) -> None:
        """Queue it. RequestError for what can never be served, QueueFullError beyond the limit.

        `grammar` is what `read_grammar` gave for it; if it was not asked, it is now.
        """
        validate_request(request, self.info)
        if request.request_id in self._requests:
            raise RequestError(f"request id {request.request_id!r} is in use", param="request_id")
        if len(self._requests) >= self.max_live_requests:
            raise QueueFullError(
                f"{len(self._requests)} requests are running or waiting; try again later"
            )
        grammar = grammar or self.read_grammar(request)
        params = request.params
        eos_ids = () if params.ignore_eos else self.executor.spec.eos_token_ids
        live = Request(
            request_id=request.request_id,
            params=params,
            token_ids=array("i", request.prompt_ids + request.completion_ids),
            num_prompt_tokens=len(request.prompt_ids),
            max_total_tokens=max_total_tokens(request, self.info),
            stop_ids=frozenset(params.stop_token_ids) | frozenset(eos_ids),
            seed=secrets.randbits(64) if params.seed is None else params.seed % (1 << 64),
            order=(request.priority, self._arrivals),
            cache_root=cache_root(self.executor.identity, request.cache_salt),
            num_prompt_logprobs=request.prompt_logprobs,
            completes=request.completes,
            embeds=request.embeds,
            allowed_mask=_allowed_mask(params, self.info),
            grammar=grammar,
        )
        self._arrivals += 1
        self._requests[live.request_id] = live
        self.scheduler.add(live)
        if grammar is not None:
            self._follower.add(live)

    def step(self) -> list[TokenOutput]:
        """Plan, execute, commit. Empty if nothing is live, or nothing was chosen."""
        clock = self._clock
        clock.start(self._goes_on)
        self._goes_on = False
        ended = self._settle_grammars() if self._follower.has_work else []
        plan = (self._ahead and self._ahead.plan) or self.scheduler.schedule()
        clock.lap(StepPart.SCHEDULE)
        if not plan.chunks:
            self._follower.wait()
            return ended
        if self.speculator is not None:
            self.speculator.extend(plan)
            clock.lap(StepPart.DRAFT)
        try:
            if self._ahead is None:
                result = self.executor.execute(self._build(plan))
            else:
                result = self._ahead.run(plan)
            clock.lap(StepPart.EXECUTE)
        except Exception as error:  # whatever it was, only this step's requests pay for it
            outputs = self._fail(plan, error)
        else:
            outputs = self._commit(plan, result)
            if self.speculator is not None:
                self.speculator.observe(plan, result)
        clock.lap(StepPart.COMMIT)
        if self.speculator is not None:
            self.speculator.stepped(plan, clock.latest)
        self._num_steps += 1
        self._num_step_tokens += plan.num_rows
        size = bisect_left(STEP_SIZES, plan.num_rows)
        self._step_size_counts[size] += 1
        self._step_size_seconds[size] += clock.latest[StepPart.EXECUTE]
        if self._ahead is not None and not self._requests:
            self._ahead.land()
        self._goes_on = bool(self._requests)
        if self.debug:
            self.check()
        return ended + outputs

    def abort(self, request_id: str) -> TokenOutput | None:
        """Forget a request, at any moment; its last output, or None if it is not live.

        May be called while the executor runs a step that the request is part of.
        """
        request = self._requests.get(request_id)
        return None if request is None else self._finish(request, "abort")

    def reset_prefix_cache(self) -> None:
        """Between steps, or while one runs."""
        self.kv_cache.reset_prefix_cache()

    def stats(self) -> EngineStats:
        return EngineStats(
            num_running=self.scheduler.num_running,
            num_waiting=self.scheduler.num_waiting,
            num_blocks=self.kv_cache.pool.num_blocks,
            num_free_blocks=self.kv_cache.pool.num_free,
            num_cached_blocks=self.kv_cache.pool.num_cached,
            num_steps=self._num_steps,
            num_preemptions=self.scheduler.num_preemptions,
            num_prompt_tokens=self.scheduler.num_prompt_tokens,
            num_cached_prompt_tokens=self.scheduler.num_cached_prompt_tokens,
            num_generated_tokens=self._num_generated_tokens + self._follower.num_forced,
            num_step_tokens=self._num_step_tokens,
            schedule_seconds=self._clock.seconds[StepPart.SCHEDULE],
            build_seconds=self._clock.seconds[StepPart.BUILD],
            draft_seconds=self._clock.seconds[StepPart.DRAFT],
            execute_seconds=self._clock.seconds[StepPart.EXECUTE],
            commit_seconds=self._clock.seconds[StepPart.COMMIT],
            between_seconds=self._clock.seconds[StepPart.BETWEEN],
            step_size_counts=list(self._step_size_counts),
            step_size_seconds=list(self._step_size_seconds),
            num_non_finite_requests=self._num_non_finite_requests,
            executor_progress=getattr(self.executor, "progress", 0),
            speculation=None if self.speculator is None else self.speculator.stats(),
        )

    def check(self) -> None:
        """RuntimeError unless every invariant holds. Between steps only."""
        self.scheduler.check()
        num_live = self.scheduler.num_running + self.scheduler.num_waiting
        if num_live != len(self._requests):
            raise RuntimeError(f"{len(self._requests)} live requests, but {num_live} are queued")

    def close(self) -> None:
        """Abort everything and close the executor."""
        for request_id in list(self._requests):
            self.abort(request_id)
        if self._ahead is not None:
            self._ahead.land()
        self._follower.close()
        if self.speculator is not None:
            self.speculator.close()
        if self.grammars is not None:
            self.grammars.close()
        self.executor.close()

    def _build(self, plan: StepPlan) -> StepBatch:
        if self._host_store is not None and self.kv_cache.host is not None:
            self.kv_cache.host.run_copies(self._host_store)
        batch = self._batches.build(plan.chunks)
        batch.features = self.speculator is not None and self.speculator.needs_features
        self._clock.lap(StepPart.BUILD)
        return batch

    def _commit(self, plan: StepPlan, result: StepResult) -> list[TokenOutput]:
        outputs: list[TokenOutput] = []
        tokens = result.tokens.tolist()
        all_finite = min(tokens, default=0) >= 0
        end = 0
        embeddings = iter(() if result.hidden is None else result.hidden)
        for chunk in plan.chunks:
            request = chunk.request
            first, last = logit_span(chunk)
            row, end = end, end + last - first
            embedding = next(embeddings) if is_embedded(chunk) else None
            if request.state is not RequestState.RUNNING:
                continue  # aborted while the step ran
            num_drafted = 0 if chunk.draft is None else len(chunk.draft)
            if not all_finite and min(tokens[row : end - num_drafted], default=0) < 0:
                error = "the model's logits were not finite"
                self._num_non_finite_requests += 1
                outputs.append(self._finish(request, "error", error=error))
                continue
            self.scheduler.commit(chunk)
            is_prefill = chunk.start < request.num_prefill_tokens
            if is_prefill:
                request.timer.prefilled(self._clock, chunk.count, chunk.emits)
            if request.num_prompt_logprobs is not None or request.num_unscored:
                score(request, result, row, end - row)
            if chunk.draft is not None:
                outputs.append(self._emit_drafted(chunk, chunk.draft, tokens, result, end))
            elif chunk.emits and request.chooses:
                outputs.append(self._emit(request, tokens[end - 1], result, end - 1))
                if is_prefill:
                    outputs[-1].timeline = request.timer.timeline(request)
            elif embedding is not None:
                outputs.append(self._embed(request, embedding))
            elif chunk.emits and request.ending is not None:
                outputs.append(self._report(request, request.ending))
            elif chunk.emits:
                outputs.append(self._finish(request, "length"))
        return outputs

    def _emit(self, request: Request, token_id: int, result: StepResult, row: int) -> TokenOutput:
        reason = request.accept(token_id)
        logprobs = None
        if request.params.logprobs is not None:
            logprobs = [token_logprobs(result, row, request.params.logprobs, result.logprobs)]
        if reason == "stop":
            end = self._finish if request.grammar is None else self._report
            output = end(request, "stop")
            output.stop_token_id = token_id
            output.stop_logprobs = logprobs[0] if logprobs else None
            return output
        self._num_generated_tokens += 1
        if request.grammar is not None:
            return self._emit_with_grammar(request, token_id, reason, logprobs)
        if reason is not None:
            return self._finish(request, reason, [token_id], logprobs)
        return request_output(request, [token_id], logprobs)

    def _emit_drafted(
        self, chunk: Chunk, draft: Draft, tokens: list[int], result: StepResult, end: int
    ) -> TokenOutput:
        """The token chosen behind the known ones; and, as long as the draft had what was chosen,
        the one behind that. Rows up to `end` of the result are those of the draft."""
        request = chunk.request
        row = end - 1 - len(draft)
        output = self._emit(request, tokens[row], result, row)
        num_accepted = 0
        for drafted in draft.token_ids:
            if tokens[row] != drafted or output.finish_reason is not None or not request.chooses:
                break
            num_accepted += 1
            row += 1
            if tokens[row] < 0 or request.num_missing != 1:
                break  # the next step meets these logits again; or the grammar appended more
            self.scheduler.commit_draft(request)
            output = joined(output, self._emit(request, tokens[row], result, row))
        assert self.speculator is not None
        self.speculator.settle(draft, num_accepted)
        return output

    def _embed(self, request: Request, embedding: Float32Array) -> TokenOutput:
        if not np.isfinite(embedding).all():
            return self._finish(request, "error", error="the model's output was not finite")
        output = self._finish(request, "stop")
        output.embedding = embedding.tolist()
        return output

    def _emit_with_grammar(
        self,
        request: Request,
        token_id: int,
        reason: FinishReason | None,
        logprobs: list[TokenLogprobs] | None,
    ) -> TokenOutput:
        """Of a token that was appended; those that the grammar makes follow come with the next."""
        request.unreported_logprobs += logprobs or []
        if reason is None:
            self._follower.take(request, token_id)
        return self._report(request, reason)

    def _settle_grammars(self) -> list[TokenOutput]:
        endings = self._follower.settle()
        return [self._report(one.request, one.reason, one.error) for one in endings]

    def _report(
        self, request: Request, reason: FinishReason | None, error: str | None = None
    ) -> TokenOutput:
        """What is not out yet of a request whose tokens need not come one by one. An end comes when
        nothing is owed: until then it is kept."""
        logprobs: list[TokenLogprobs] | None = None
        end = len(request.token_ids)
        if request.params.logprobs is not None:
            logprobs, request.unreported_logprobs = request.unreported_logprobs, []
            end = request.num_reported + len(logprobs)
        tokens = request.token_ids[request.num_reported : end].tolist()
        request.num_reported = end
        if reason is not None and error is None and request.num_unscored:
            request.ending, reason = reason, None
        if reason is None:
            return request_output(request, tokens, logprobs)
        return self._finish(request, reason, tokens, logprobs, error=error)

    def _fail(self, plan: StepPlan, error: Exception) -> list[TokenOutput]:
        logger.error("step %d failed", self._num_steps, exc_info=error)
        message = f"the executor failed in a step of this request ({type(error).__name__})"
        return [
            self._finish(chunk.request, "error", error=message)
            for chunk in plan.chunks
            if chunk.request.state is RequestState.RUNNING
        ]

    def _finish(
        self,
        request: Request,
        reason: FinishReason,
        token_ids: list[int] | None = None,
        logprobs: list[TokenLogprobs] | None = None,
        error: str | None = None,
    ) -> TokenOutput:
        self.scheduler.finish(request, reason)
        del self._requests[request.request_id]
        if self.speculator is not None:
            self.speculator.forget(request)
        output = request_output(request, token_ids or [], logprobs, reason, error)
        output.timeline = request.timer.timeline(request)
        return output


def _allowed_mask(params: SamplingParams, info: EngineInfo) -> UInt32Array | None:
    if not params.allowed_token_ids:
        return None
    return allowed_mask(params.allowed_token_ids, info.vocab_size)
