"""LLM: text in, text out, in the caller's own process and thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Mapping, Sequence
from dataclasses import fields
from itertools import count
from types import TracebackType
from typing import Any

from trimtab.config import ExecutorConfig, SchedulerConfig, replace_from
from trimtab.engine.admission import validate_request
from trimtab.engine.client import EngineRequest, Grammar
from trimtab.engine.completion import Completion, CompletionDelta, RequestResult
from trimtab.engine.engine import Engine
from trimtab.engine.sampling_params import SamplingParams, choice_params
from trimtab.errors import ConfigError, EngineDeadError, RequestError, TrimtabError
from trimtab.tokenization import Tokenizer

Prompt = str | list[int]
Message = Mapping[str, Any]


class LLM:
    """A model, ready to complete. Not thread-safe; several streams may be read in turns.

    Keyword arguments are the fields of ExecutorConfig and SchedulerConfig (`weights="int4"`,
    `threads=4`, `max_batch_tokens=256` ...). Raises CheckpointError for a model that cannot be
    loaded and ConfigError for settings that cannot work.
    """

    def __init__(self, model: str = "builtin", **settings: Any) -> None:
        from trimtab.checkpoints import resolve_model
        from trimtab.engine.loading import load_engine
        from trimtab.tokenization import load_tokenizer

        executor_config, scheduler_config = split_settings(settings)
        path = resolve_model(str(model))
        # One after the other: parsing a vocabulary holds the GIL, so that threads gain nothing.
        tokenizer = load_tokenizer(path)
        self._start(load_engine(path, executor_config, scheduler_config, tokenizer), tokenizer)

    @classmethod
    def from_engine(cls, engine: Engine, tokenizer: Tokenizer) -> LLM:
        """An LLM on an engine that is loaded already; `close` closes the engine."""
        llm = cls.__new__(cls)
        llm._start(engine, tokenizer)
        return llm

    def _start(self, engine: Engine, tokenizer: Tokenizer) -> None:
        self.engine = engine
        self.tokenizer = tokenizer
        self._live: dict[str, Completion] = {}
        self._backlog: deque[Completion] = deque()  # the engine's queue is full
        self._ids = count()
        # A tokenizer may name an end token that the model's own config does not.
        self._eos_token_ids = tuple(
            token_id for token_id in tokenizer.eos_token_ids if token_id < engine.info.vocab_size
        )

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        grammar: Grammar | None = None,
    ) -> list[RequestResult]:
        """Complete prompts, texts or token ids: one result for each, in their order.

        `params` is one for all, or one for each prompt; `grammar` is what every completion must
        be. Raises RequestError, before anything runs, if any of them can never be served.
        """
        return self._complete(_prompt_list(prompts), params, grammar)

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        grammar: Grammar | None = None,
        **template_variables: Any,
    ) -> list[RequestResult]:
        """The assistant's answer to a conversation, or to each of several.

        RequestError if the model has no chat template or it refuses the messages.
        """
        one = not messages or isinstance(messages[0], Mapping)
        conversations: Any = [messages] if one else messages
        prompts: list[Prompt] = [
            self.tokenizer.encode_chat(conversation, **template_variables)
            for conversation in conversations
        ]
        return self._complete(prompts, params, grammar)

    def stream(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        grammar: Grammar | None = None,
    ) -> Generator[CompletionDelta, None, None]:
        """Complete one prompt step by step; choices interleave. Closing the iterator aborts.

        RequestError is raised here, not at the first step.
        """
        prepared = self._prepare([prompt], params or SamplingParams(), grammar=grammar)
        return self._follow(prepared[0])

    def score(self, prompts: Prompt | Sequence[Prompt]) -> list[list[float]]:
        """Of each prompt, the log-probability of its tokens 1, 2, ... given those before.

        RequestError if one of them is empty or too long.
        """
        params = SamplingParams(max_tokens=1, temperature=0)
        prepared = self._prepare(_prompt_list(prompts), params, completes=False)
        self._run([choice for choices in prepared for choice in choices])
        for (choice,) in prepared:
            if choice.error is not None:
                raise TrimtabError(f"scoring failed: {choice.error}")
        return [[one.logprob for one in choice.prompt_logprobs] for (choice,) in prepared]

    def close(self) -> None:
        """Abort what is live and free the model."""
        self._live.clear()
        self._backlog.clear()
        self.engine.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _complete(
        self,
        prompts: list[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None,
        grammar: Grammar | None,
    ) -> list[RequestResult]:
        prepared = self._prepare(prompts, params or SamplingParams(), grammar=grammar)
        self._run([choice for choices in prepared for choice in choices])
        return [
            RequestResult(
                prompt_ids=choices[0].request.prompt_ids,
                outputs=[choice.result() for choice in choices],
                prompt=prompt if isinstance(prompt, str) else None,
                num_cached_tokens=choices[0].num_cached_tokens,
            )
            for prompt, choices in zip(prompts, prepared, strict=True)
        ]

    def _prepare(
        self,
        prompts: list[Prompt],
        params: SamplingParams | Sequence[SamplingParams],
        completes: bool = True,
        grammar: Grammar | None = None,
    ) -> list[list[Completion]]:
        """Of each prompt, its choices, validated and not yet submitted."""
        each = [params] * len(prompts) if isinstance(params, SamplingParams) else list(params)
        if len(each) != len(prompts):
            raise RequestError(f"{len(prompts)} prompts, but {len(each)} SamplingParams")
        prepared: list[list[Completion]] = []
        for prompt, own in zip(prompts, each, strict=True):
            ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
            choices: list[Completion] = []
            for index in range(own.n):
                request = EngineRequest(
                    request_id=f"llm-{next(self._ids)}",
                    prompt_ids=[int(token_id) for token_id in ids],
                    params=choice_params(own, index, self._eos_token_ids),
                    prompt_logprobs=None if completes else 0,
                    completes=completes,
                    grammar=grammar,
                )
                validate_request(request, self.engine.info)
                if not prepared and not choices:
                    self.engine.read_grammar(request)  # the same for all of them
                choices.append(Completion.start(index, request, self.tokenizer))
            prepared.append(choices)
        return prepared

    def _run(self, choices: list[Completion]) -> None:
        for _ in self._follow(choices):
            pass

    def _follow(self, choices: list[Completion]) -> Generator[CompletionDelta, None, None]:
        """Submit and step until these choices are finished, handing out what they add."""
        self._backlog.extend(choices)
        self._live.update((choice.request.request_id, choice) for choice in choices)
        try:
            while any(choice.is_open for choice in choices):
                for choice in choices:
                    while choice.deltas:
                        yield choice.deltas.popleft()
                if any(choice.finish_reason is None for choice in choices):
                    self._step()
        finally:
            for choice in choices:
                self._leave(choice)

    def _step(self) -> None:
        """Fill the engine from the backlog, run one step, hand its outputs to their choices."""
        while self._backlog and self.engine.num_live_requests < self.engine.max_live_requests:
            self.engine.add_request(self._backlog.popleft().request)
        if not self.engine.num_live_requests:
            raise EngineDeadError("the engine was closed while a stream was being read")
        for output in self.engine.step():
            choice = self._live.get(output.request_id)
            if choice is not None and choice.add(output):
                self.engine.abort(output.request_id)

    def _leave(self, choice: Completion) -> None:
        self._live.pop(choice.request.request_id, None)
        if choice.finish_reason is None:
            self.engine.abort(choice.request.request_id)
            if choice in self._backlog:
                self._backlog.remove(choice)


def split_settings(settings: Mapping[str, Any]) -> tuple[ExecutorConfig, SchedulerConfig]:
    """Both configurations from one flat mapping; ConfigError names what neither of them has."""
    of_executor = {field.name for field in fields(ExecutorConfig)}
    of_scheduler = {field.name for field in fields(SchedulerConfig)}
    unknown = sorted(set(settings) - of_executor - of_scheduler)
    if unknown:
        known = ", ".join(sorted(of_executor | of_scheduler))
        raise ConfigError(f"unknown setting: {', '.join(unknown)} (there are: {known})")
    executor_config = {name: value for name, value in settings.items() if name in of_executor}
    scheduler_config = {name: value for name, value in settings.items() if name in of_scheduler}
    return (
        replace_from(ExecutorConfig, executor_config),
        replace_from(SchedulerConfig, scheduler_config),
    )


def _prompt_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """One prompt (a text, or a list of token ids) or several, as several."""
    if isinstance(prompts, str):
        return [prompts]
    values = list(prompts)
    if values and all(isinstance(value, int) for value in values):
        return [values]  # type: ignore[list-item]
    return values  # type: ignore[return-value]
