"""One choice of one prompt: tokens in, text out, cut at stop strings. Used by `LLM`."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from trimtab.engine.client import EngineRequest, FinishReason, TokenLogprobs, TokenOutput
from trimtab.tokenization import TextStream, Tokenizer


@dataclass(frozen=True)
class CompletionDelta:
    """What one step added to one choice."""

    index: int  # of the choice
    text: str  # final: later tokens do not change it
    token_ids: list[int]
    logprobs: list[TokenLogprobs] | None
    finish_reason: FinishReason | None = None  # in the last one


@dataclass(frozen=True)
class CompletionResult:
    """A whole choice. `text`, `token_ids` and `logprobs` agree: a stop string is in none of them
    (unless `include_stop_in_output`), but for a token that also has text before it."""

    index: int
    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    logprobs: list[TokenLogprobs] | None = None
    stop_reason: str | int | None = None  # the stop string or stop token that ended it
    error: str | None = None  # one line, with finish_reason "error"


@dataclass(frozen=True)
class RequestResult:
    """Everything that came of one prompt."""

    prompt_ids: list[int]
    outputs: list[CompletionResult]
    prompt: str | None = None  # if it was given as text
    num_cached_tokens: int = 0  # prompt tokens out of the prefix cache, of choice 0


@dataclass(eq=False)
class Completion:
    """The state of one choice; `add` is its only step."""

    index: int
    request: EngineRequest
    text_stream: TextStream
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    error: str | None = None
    num_cached_tokens: int = 0
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    deltas: deque[CompletionDelta] = field(default_factory=deque)  # not yet handed out

    @classmethod
    def start(cls, index: int, request: EngineRequest, tokenizer: Tokenizer) -> Completion:
        params = request.params
        stream = TextStream(
            tokenizer, params.stop, params.include_stop_in_output, params.skip_special_tokens
        )
        return cls(index, request, stream, logprobs=None if params.logprobs is None else [])

    @property
    def is_open(self) -> bool:
        """Something is still to be computed or to be handed out."""
        return self.finish_reason is None or bool(self.deltas)

    def add(self, output: TokenOutput) -> bool:
        """Take an output of the engine. True if the text ended at a stop string and the request,
        if it is still live, should be aborted. Outputs after the end are ignored."""
        if self.finish_reason is not None:
            return False
        known = len(self.token_ids)
        self.token_ids += output.token_ids
        if self.logprobs is not None:
            self.logprobs += output.logprobs or []
        text = self.text_stream.push(output.token_ids)
        if self.text_stream.stopped:
            self.finish_reason, self.stop_reason = "stop", self.text_stream.stop
            self._cut(self.text_stream.num_tokens)
        elif output.finish_reason is not None:
            text += self.text_stream.finish()
            self.finish_reason, self.stop_reason = output.finish_reason, output.stop_token_id
            if self.text_stream.stopped:
                self.finish_reason, self.stop_reason = "stop", self.text_stream.stop
                self._cut(self.text_stream.num_tokens)
        self.text += text
        self.error = output.error
        self.num_cached_tokens = output.num_cached_tokens
        self.prompt_logprobs = output.prompt_logprobs or self.prompt_logprobs
        new_logprobs = None if self.logprobs is None else self.logprobs[known:]
        self.deltas.append(
            CompletionDelta(
                self.index, text, self.token_ids[known:], new_logprobs, self.finish_reason
            )
        )
        return self.finish_reason is not None and output.finish_reason is None

    def result(self) -> CompletionResult:
        """Once `finish_reason` is set."""
        if self.finish_reason is None:
            raise RuntimeError(f"{self.request.request_id} is not finished")
        return CompletionResult(
            index=self.index,
            text=self.text,
            token_ids=self.token_ids,
            finish_reason=self.finish_reason,
            logprobs=self.logprobs,
            stop_reason=self.stop_reason,
            error=self.error,
        )

    def _cut(self, num_tokens: int) -> None:
        """Forget tokens that lie behind the end of the text."""
        del self.token_ids[num_tokens:]
        if self.logprobs is not None:
            del self.logprobs[num_tokens:]
