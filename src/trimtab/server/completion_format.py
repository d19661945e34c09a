"""Choice events to the documents of completions, streamed or whole."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from trimtab.server import api_types as api
from trimtab.server.choice import ChoiceEvent, TokenText
from trimtab.server.formats import (
    TEXT_MARK,
    Collected,
    Extras,
    Header,
    OpenAIFormat,
    finite,
)
from trimtab.tokenization import Tokenizer


class CompletionFormat(OpenAIFormat):
    def __init__(
        self,
        header: Header,
        tokenizer: Tokenizer,
        num_logprobs: int | None,
        echoes: Sequence[str],
        *,
        include_usage: bool,
        extras: Extras | None = None,
    ) -> None:
        """`echoes` holds, for each prompt, the text that its choices start with."""
        super().__init__(header, tokenizer, extras or Extras(num_choices=1))
        self._num_logprobs = num_logprobs
        self._echoes = echoes
        self._include_usage = include_usage
        self._echoed: set[int] = set()

    def chunks(self, event: ChoiceEvent) -> list[msgspec.Struct]:
        text, prompt = event.text, event.index // self._extras.num_choices
        is_first = event.index not in self._echoed
        if is_first:
            self._echoed.add(event.index)
            text = self._echoes[prompt] + text
        tokens = _with_stop(event.tokens, event.stop_token)
        choice = self._choice(event.index, prompt, text, tokens, event.finish_reason)
        if event.finish_reason is not None:
            choice.stop_reason = event.stop_reason
        if self._extras.token_ids:
            choice.token_ids = event.token_ids
            if is_first:
                choice.prompt_token_ids = self._prompt_ids(prompt)
        header = self._header
        return [api.Completion(header.id, header.created, header.model, [choice])]

    def text_template(self, index: int) -> tuple[bytes, bytes] | None:
        if index not in self._echoed or self._num_logprobs is not None or self._extras.token_ids:
            return None
        return self._template(self.chunks(ChoiceEvent(index, TEXT_MARK))[0])

    def ending(self, usage: api.Usage) -> list[msgspec.Struct]:
        if not self._include_usage:
            return []
        header = self._header
        return [api.Completion(header.id, header.created, header.model, [], usage)]

    def whole(self, choices: Sequence[Collected], usage: api.Usage) -> msgspec.Struct:
        answers: list[api.CompletionChoice] = []
        each = len(choices) // len(self._echoes)
        for prompt, echo in enumerate(self._echoes):
            group = choices[prompt * each : (prompt + 1) * each]
            prompt_ids = self._prompt_ids(prompt)
            prompt_logprobs = self._prompt_logprobs(prompt, group[0])
            for one in self._best(prompt, group):
                tokens = _with_stop(one.tokens, one.stop_token)
                text = echo + one.text
                answer = self._choice(len(answers), prompt, text, tokens, one.finish_reason)
                answer.stop_reason = one.stop_reason
                answer.token_ids = self._token_ids(one.token_ids)
                answer.prompt_token_ids = prompt_ids
                answer.prompt_logprobs = prompt_logprobs
                answers.append(answer)
        header = self._header
        return api.Completion(header.id, header.created, header.model, answers, usage)

    def _best(self, prompt: int, choices: Sequence[Collected]) -> Sequence[Collected]:
        """Those of the highest mean logprob, the best first; all in their order if all are shown.

        An end token counts as a token; of equal ones the earlier is better.
        """
        if len(choices) == self._extras.num_choices:
            return choices

        def mean(choice: Collected) -> float:
            tokens = _with_stop(choice.tokens, choice.stop_token)
            if self._extras.prompts[prompt].token_offsets is not None:
                tokens = tokens[len(self._extras.prompts[prompt].token_ids) :]
            logprobs = [token.logprobs.logprob for token in tokens if token.logprobs is not None]
            return sum(logprobs) / len(logprobs) if logprobs else -math.inf

        return sorted(choices, key=mean, reverse=True)[: self._extras.num_choices]

    def _choice(
        self,
        index: int,
        prompt: int,
        text: str,
        tokens: Sequence[TokenText],
        finish_reason: str | None,
    ) -> api.CompletionChoice:
        logprobs = None
        if self._num_logprobs is not None:
            logprobs = self._completion_logprobs(tokens, len(self._echoes[prompt]))
        return api.CompletionChoice(index, text, logprobs, finish_reason)

    def _completion_logprobs(
        self, tokens: Sequence[TokenText], first_offset: int
    ) -> api.CompletionLogprobs:
        return api.CompletionLogprobs(
            tokens=[self._token_text(token.token_id) for token in tokens],
            token_logprobs=[
                None if token.logprobs is None else finite(token.logprobs.logprob)
                for token in tokens
            ],
            top_logprobs=[self._top(token) for token in tokens] if self._num_logprobs else None,
            text_offset=[first_offset + token.text_offset for token in tokens],
        )

    def _top(self, token: TokenText) -> dict[str, float] | None:
        """The most likely tokens by text, and the token itself. Of tokens that have the same text
        the most likely counts."""
        if token.logprobs is None:
            return None
        top: dict[str, float] = {}
        for token_id, logprob in [*token.logprobs.top, (token.token_id, token.logprobs.logprob)]:
            top.setdefault(self._token_text(token_id), finite(logprob))
        return top


def _with_stop(tokens: Sequence[TokenText], stop_token: TokenText | None) -> Sequence[TokenText]:
    """As OpenAI's API has it: an end token is no text, but it is among the tokens."""
    return tokens if stop_token is None else [*tokens, stop_token]
