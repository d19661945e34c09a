"""All choices of one request, run on the engine and merged into one stream of events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import cast

from trimtab.engine.client import EngineClient, EngineRequest, TokenOutput
from trimtab.engine.sampling_params import SamplingParams, choice_params
from trimtab.errors import RequestError
from trimtab.server.api_errors import timed_out
from trimtab.server.api_types import CompletionTokensDetails, PromptTokensDetails, Usage
from trimtab.server.choice import Choice, ChoiceEvent
from trimtab.server.observation import current_call
from trimtab.server.parsing.choose import Parsing
from trimtab.server.structured import AskedGrammar
from trimtab.tokenization import Tokenizer


@dataclass(frozen=True)
class Prompt:
    token_ids: list[int]
    params: SamplingParams  # fitted to this prompt's length; params.n choices of it
    text: str = ""  # what `echo` gives back
    # Where the text of each token starts, counted from the end of `text`: not above 0. None unless
    # the logprobs of the prompt are wanted.
    token_offsets: list[int] | None = None
    completes: bool = True  # False: nothing is wanted behind the prompt
    num_logprobs: int | None = None  # of the most likely tokens at each place of the prompt
    reports_token_ids: bool = False
    grammar: AskedGrammar | None = None  # what each completion must be
    parsing: Parsing | None = None  # None: the output is text and nothing else


@dataclass(frozen=True)
class Placement:
    """Where a request stands among the others."""

    request_id: str
    priority: int = 0
    cache_salt: str = ""
    timeout_seconds: float | None = None  # from here to its end, waiting included


async def _in_words_of(
    asked: AskedGrammar, outputs: AsyncGenerator[TokenOutput, None]
) -> AsyncGenerator[TokenOutput, None]:
    """What the engine has against the grammar is told with the name of the client's field."""
    async with aclosing(outputs):
        try:
            async for output in outputs:
                yield output
        except RequestError as error:
            raise asked.refusal(error) if error.param == "grammar" else error from None


def _num_prompt_logprobs(prompt: Prompt, is_first: bool) -> int | None:
    """Of one choice of a prompt. An echo is scored for each of them, anything else once."""
    wanted = []
    if prompt.token_offsets is not None:
        wanted.append(prompt.params.logprobs or 0)
    if is_first and prompt.num_logprobs is not None:
        wanted.append(prompt.num_logprobs)
    if not prompt.completes:
        wanted.append(0)  # what completes nothing must at least score
    return max(wanted, default=None)


class Generation:
    """Choice i * n + j is choice j of prompt i. Closing `events` aborts whatever still runs."""

    def __init__(
        self,
        client: EngineClient,
        prompts: Sequence[Prompt],
        placement: Placement,
        tokenizer: Tokenizer,
    ) -> None:
        """Raises ApiError 429 if the caller's key has not so many tokens left."""
        self._client = client
        self._call = current_call.get()
        self._prompts = prompts
        self._timeout_seconds = placement.timeout_seconds
        self._expired = False
        self._aborts: set[asyncio.Future[None]] = set()  # held until they are done
        self.choices: list[Choice] = []
        self._requests: list[EngineRequest] = []
        self._asked_grammar = prompts[0].grammar if prompts else None  # the same for all
        # A tokenizer may name an end token that the model's own config does not.
        vocab_size = client.info.vocab_size
        eos_token_ids = tuple(i for i in tokenizer.eos_token_ids if i < vocab_size)
        end_ids = frozenset(eos_token_ids) | frozenset(client.info.eos_token_ids)
        for prompt in prompts:
            for j in range(prompt.params.n):
                index = len(self.choices)
                params = choice_params(prompt.params, j, eos_token_ids)
                offsets = prompt.token_offsets
                echoed = (
                    () if offsets is None else list(zip(prompt.token_ids, offsets, strict=True))
                )
                self.choices.append(
                    Choice(
                        index,
                        params,
                        tokenizer,
                        echoed,
                        () if params.ignore_eos else end_ids,
                        prompt.reports_token_ids,
                        prompt.parsing,
                    )
                )
                self._requests.append(
                    EngineRequest(
                        request_id=f"{placement.request_id}-{index}",
                        prompt_ids=prompt.token_ids,
                        params=params,
                        priority=placement.priority,
                        cache_salt=placement.cache_salt,
                        prompt_logprobs=_num_prompt_logprobs(prompt, j == 0),
                        completes=prompt.completes,
                        grammar=None if prompt.grammar is None else prompt.grammar.grammar,
                    )
                )

        if self._call is not None:
            num_prompt_tokens = sum(len(prompt.token_ids) for prompt in prompts)
            self._call.prepare(num_prompt_tokens, len(self.choices), placement.request_id)

    def usage(self) -> Usage:
        """As far as the events went. Each prompt counts once, however many choices it has."""
        num_prompt_tokens = sum(len(prompt.token_ids) for prompt in self._prompts)
        num_completion_tokens = sum(choice.num_tokens for choice in self.choices)
        num_reasoning_tokens = sum(choice.num_reasoning_tokens for choice in self.choices)
        cached = 0
        first = 0
        for prompt in self._prompts:
            group = self.choices[first : first + prompt.params.n]
            cached += max(choice.num_cached_tokens for choice in group)
            first += prompt.params.n
        return Usage(
            num_prompt_tokens,
            num_completion_tokens,
            num_prompt_tokens + num_completion_tokens,
            PromptTokensDetails(cached),
            CompletionTokensDetails(num_reasoning_tokens),
        )

    def events(self) -> AsyncGenerator[ChoiceEvent, None]:
        """Raises what the engine raises, and ApiError 408 when its time is over; every choice ends
        with one finish_reason otherwise."""
        seconds = self._timeout_seconds
        return self._all_events() if seconds is None else self._events_within(seconds)

    async def _events_within(self, seconds: float) -> AsyncGenerator[ChoiceEvent, None]:
        timer = asyncio.get_running_loop().call_later(seconds, self._expire)
        try:
            async with aclosing(self._all_events()) as events:
                async for event in events:
                    yield event
        finally:
            timer.cancel()

    def _expire(self) -> None:
        self._expired = True
        for request in self._requests:
            aborting = asyncio.ensure_future(self._client.abort(request.request_id))
            self._aborts.add(aborting)
            aborting.add_done_callback(self._aborts.discard)

    async def _all_events(self) -> AsyncGenerator[ChoiceEvent, None]:
        if len(self.choices) == 1:
            async with aclosing(self._run(0)) as events:
                async for event in events:
                    yield event
            return
        queue: asyncio.Queue[ChoiceEvent | Exception | None] = asyncio.Queue()
        tasks = [asyncio.create_task(self._pump(i, queue)) for i in range(len(self.choices))]
        running = len(tasks)
        try:
            while running:
                item = await queue.get()
                if item is None:
                    running -= 1
                elif isinstance(item, Exception):
                    raise item
                else:
                    yield item
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _pump(self, index: int, queue: asyncio.Queue[ChoiceEvent | Exception | None]) -> None:
        try:
            async with aclosing(self._run(index)) as events:
                async for event in events:
                    queue.put_nowait(event)
            queue.put_nowait(None)
        except Exception as error:
            queue.put_nowait(error)

    async def _run(self, index: int) -> AsyncGenerator[ChoiceEvent, None]:
        choice, call = self.choices[index], self._call
        outputs = cast(
            "AsyncGenerator[TokenOutput, None]", self._client.generate(self._requests[index])
        )
        if self._asked_grammar is not None:
            outputs = _in_words_of(self._asked_grammar, outputs)
        async with aclosing(outputs):
            async for output in outputs:
                if self._expired and output.finish_reason == "abort":
                    raise timed_out()
                if call is not None:
                    call.output(index, output)
                event = choice.take(output)
                if call is not None and event.finish_reason is not None:
                    call.finish(index, event.finish_reason)
                if not event.is_empty:
                    yield event
                if choice.finished:
                    return
