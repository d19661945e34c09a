"""All choices of one request, run on the engine and merged into one stream of events."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from trimtab.engine.client import EngineRequest, TokenOutput
from trimtab.engine.sampling_params import SamplingParams, choice_params
from trimtab.errors import RequestError
from trimtab.server.api_errors import timed_out
from trimtab.server.api_types import CompletionTokensDetails, PromptTokensDetails, Usage
from trimtab.server.choice import Choice, ChoiceEvent
from trimtab.server.observation import current_call
from trimtab.server.parsing.choose import Parsing
from trimtab.server.structured import AskedGrammar
from trimtab.server.supervised import SupervisedEngine
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
    """Choice i * n + j is choice j of prompt i. Leaving `deliver` aborts whatever still runs."""

    def __init__(
        self,
        client: SupervisedEngine,
        prompts: Sequence[Prompt],
        placement: Placement,
        tokenizer: Tokenizer,
    ) -> None:
        """Raises ApiError 429 if the caller's key has not so many tokens left."""
        self._client = client
        self._call = current_call.get()
        self._prompts = prompts
        self._timeout_seconds = placement.timeout_seconds
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

    async def deliver(
        self,
        take: Callable[[ChoiceEvent], None],
        take_text: Callable[[int, str], bool] | None = None,
    ) -> None:
        """Run all choices to their ends. `take` gets each event within the very call that brought
        the tokens: nothing is scheduled for a token. Every choice ends with one finish_reason.
        `take_text` is asked first for an event that is text of a choice (by index) and nothing
        else; where it says False, the event is made.

        Raises what the engine raises, what `take` raises, and ApiError 408 when the request's time
        is over; whatever still runs is aborted then.
        """
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = loop.create_future()
        choices, call = self.choices, self._call
        running = len(choices)

        def fail(error: Exception) -> None:
            if isinstance(error, RequestError) and error.param == "grammar" and self._asked_grammar:
                error = self._asked_grammar.refusal(error)
            if not ended.done():
                ended.set_exception(error)

        def on_output(index: int, output: TokenOutput | Exception) -> None:
            nonlocal running
            choice = choices[index]
            if ended.done() or choice.finished:
                return
            try:
                if isinstance(output, Exception):
                    raise output
                if call is not None:
                    call.output(index, output)
                if choice.is_plain and not (output.finish_reason or output.prompt_logprobs):
                    text = choice.take_text(output)
                    if text and not (take_text is not None and take_text(index, text)):
                        take(ChoiceEvent(index, text))
                    return
                event = choice.take(output)
                if call is not None and event.finish_reason is not None:
                    call.finish(index, event.finish_reason)
                if not event.is_empty:
                    take(event)
            except Exception as error:
                fail(error)
                return
            if choice.finished:
                cancels[index]()
                running -= 1
                if not running:
                    ended.set_result(None)

        cancels: list[Callable[[], None]] = []
        timer = None
        if self._timeout_seconds is not None:
            timer = loop.call_later(self._timeout_seconds, fail, timed_out())
        try:
            for index, request in enumerate(self._requests):
                cancels.append(self._client.submit(request, partial(on_output, index)))
            await ended
        finally:
            if timer is not None:
                timer.cancel()
            for cancel in cancels:
                cancel()
