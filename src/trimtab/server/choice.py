"""One choice of an answer: engine tokens in, text with its logprobs out."""

from __future__ import annotations

import bisect
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from trimtab.engine.client import TokenLogprobs, TokenOutput
from trimtab.engine.sampling_params import SamplingParams
from trimtab.server.api_errors import generation_failed
from trimtab.server.parsing.choose import Parsing
from trimtab.server.parsing.machine import OutputParser
from trimtab.server.parsing.pieces import Kind, Piece
from trimtab.tokenization import TextStream, Tokenizer


@dataclass(frozen=True)
class TokenText:
    """A token with its logprobs, and where its text starts in the choice's text."""

    token_id: int
    logprobs: TokenLogprobs | None  # None: a prompt's first token
    text_offset: int  # in characters; of prompt tokens, which stand before the text, not above 0


@dataclass(slots=True)
class ToolCallDelta:
    """A call's first delta has its id and name; arguments come in any number of deltas."""

    index: int
    arguments: str = ""
    id: str | None = None
    name: str | None = None


@dataclass(slots=True)  # never changed once it is out; freezing costs time for each token
class ChoiceEvent:
    """What one output added to a choice. Of an output that is parsed, `text` is the content, and
    `pieces` tells in which order content, reasoning and calls (by index) came."""

    index: int
    text: str
    tokens: list[TokenText] = field(default_factory=list)  # only when logprobs were asked for
    finish_reason: str | None = None
    stop_token: TokenText | None = None  # that ended it, if logprobs were asked for; not in `text`
    stop_reason: str | int | None = None  # the stop string, or one of `stop_token_ids`
    token_ids: list[int] = field(default_factory=list)  # new ones, stop token included; if reported
    prompt_logprobs: list[TokenLogprobs] | None = None  # of prompt tokens 1, 2 ...; once
    reasoning: str = ""
    tool_calls: list[ToolCallDelta] = field(default_factory=list)
    pieces: list[Piece] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        """Nobody needs to be told of it."""
        return not (self.text or self.tokens or self.finish_reason or self.token_ids or self.pieces)


class Choice:
    """A state machine without I/O: `take` each engine output, in order, until `finished`.

    Logprobs come with the text of their token: what is held back because a stop string may have
    begun is held back for both, and what a stop string cuts off is dropped for both. Stop strings
    are found in all of an output that is parsed; only the tokens of its content have logprobs.
    """

    def __init__(
        self,
        index: int,
        params: SamplingParams,
        tokenizer: Tokenizer,
        prompt_tokens: Sequence[tuple[int, int]] = (),
        eos_token_ids: Collection[int] = (),
        reports_token_ids: bool = False,
        parsing: Parsing | None = None,
    ) -> None:
        """`prompt_tokens` (token, text_offset) come out first, when their logprobs do. Tokens of
        `eos_token_ids` are no `stop_reason`."""
        self.index = index
        self._eos_token_ids = eos_token_ids
        self._reports_token_ids = reports_token_ids
        self._num_prompt_top = params.logprobs or 0
        self._reports_logprobs = params.logprobs is not None
        self._prompt_tokens = prompt_tokens
        self._num_characters = 0
        self.finished = False
        self.num_tokens = 0
        self.num_cached_tokens = 0
        self._stream = TextStream(
            tokenizer,
            params.stop,
            params.include_stop_in_output,
            params.skip_special_tokens,
            frozenset() if parsing is None else parsing.kept_ids,
        )
        self._parsing = parsing
        self._parser = None if parsing is None else parsing.parser()
        self._logprobs: list[tuple[int, TokenLogprobs]] = []  # of every token so far
        self._num_out = 0  # of these, how many have left
        # Nothing but text comes of it before its end: `take_text` may stand in for `take`.
        self.is_plain = not (
            self._parser or self._reports_logprobs or reports_token_ids or params.stop
        )

    def take_text(self, output: TokenOutput) -> str:
        """What `take` would give as an event's text: of a plain choice, an output with new tokens
        and nothing else."""
        if output.num_cached_tokens > self.num_cached_tokens:
            self.num_cached_tokens = output.num_cached_tokens
        self.num_tokens += len(output.token_ids)
        return self._stream.push_text(output.token_ids)

    def take(self, output: TokenOutput) -> ChoiceEvent:
        """Raises ApiError 500 if the engine gave the request up."""
        if output.finish_reason in ("error", "abort"):
            raise generation_failed(output.error or output.finish_reason)
        if output.num_cached_tokens > self.num_cached_tokens:
            self.num_cached_tokens = output.num_cached_tokens
        before = len(self._stream.token_offsets)
        text = self._stream.push(output.token_ids)
        num_new = len(self._stream.token_offsets) - before  # fewer where a stop string cut
        self.num_tokens += num_new
        if output.finish_reason is not None:
            text += self._stream.finish()
        reason = "stop" if self._stream.stopped else output.finish_reason
        self.finished = reason is not None
        self._num_characters += len(text)
        if self._parser is None:
            event = ChoiceEvent(self.index, text, finish_reason=reason)
            if self._reports_logprobs:
                event.tokens = self._prompt_out(output) + self._tokens_out(output)
                event.stop_token = self._stop_token(output)
        else:
            event = self._parsed(text, output, reason, self._parser)
        if self.finished:
            event.stop_reason = self._stop_reason(output)
        if self._reports_token_ids:
            event.token_ids = output.token_ids[:num_new]
            if output.stop_token_id is not None and not self._stream.stopped:
                event.token_ids = [*event.token_ids, output.stop_token_id]
        event.prompt_logprobs = output.prompt_logprobs
        return event

    @property
    def num_reasoning_tokens(self) -> int:
        """Markers included; as far as the output went."""
        if self._parser is None:
            return 0
        return bisect.bisect_left(self._stream.token_offsets, self._parser.reasoning_end)

    def _parsed(
        self, text: str, output: TokenOutput, reason: str | None, parser: OutputParser
    ) -> ChoiceEvent:
        event = ChoiceEvent(self.index, "", finish_reason=reason)
        event.pieces = parser.push(text)
        if parser.over:
            self.finished = True
            event.finish_reason = reason = "stop"
        if self.finished:
            event.pieces += parser.finish()
        if output.logprobs is not None:
            self._logprobs += zip(output.token_ids, output.logprobs, strict=True)
        for piece in event.pieces:
            self._add_piece(event, piece)
        if reason == "stop" and parser.num_calls and not (self._parsing and self._parsing.named):
            event.finish_reason = "tool_calls"
        return event

    def _add_piece(self, event: ChoiceEvent, piece: Piece) -> None:
        if piece.kind is Kind.REASONING:
            event.reasoning += piece.text
        elif piece.kind is Kind.CONTENT:
            event.text += piece.text
            if self._logprobs:
                event.tokens += self._tokens_within(piece.start, piece.start + len(piece.text))
        elif piece.kind is Kind.CALL_BEGIN:
            call_id = self._parsing.call_id() if self._parsing else None
            event.tool_calls.append(ToolCallDelta(piece.call, "", call_id, piece.text))
        elif piece.kind is Kind.ARGUMENTS:
            calls = event.tool_calls
            if calls and calls[-1].index == piece.call:
                calls[-1].arguments += piece.text
            else:
                calls.append(ToolCallDelta(piece.call, piece.text))

    def _tokens_within(self, start: int, end: int) -> list[TokenText]:
        """The tokens that a part of the text is made of, whole or in part; earlier ones that have
        not left are markers, reasoning or calls, and never will."""
        offsets = self._stream.token_offsets
        found = []
        while self._num_out < min(len(offsets), len(self._logprobs)):
            i = self._num_out
            if offsets[i] >= end:
                break
            next_offset = offsets[i + 1] if i + 1 < len(offsets) else self._num_characters
            if offsets[i] >= start or next_offset > start:
                found.append(TokenText(*self._logprobs[i], offsets[i]))
            self._num_out += 1
        return found

    def _stop_reason(self, output: TokenOutput) -> str | int | None:
        if self._stream.stopped:
            return self._stream.stop
        return None if output.stop_token_id in self._eos_token_ids else output.stop_token_id

    def _prompt_out(self, output: TokenOutput) -> list[TokenText]:
        if output.prompt_logprobs is None or not self._prompt_tokens:
            return []
        logprobs = [None, *output.prompt_logprobs]
        return [
            TokenText(token_id, own and self._trimmed(own), offset)
            for (token_id, offset), own in zip(self._prompt_tokens, logprobs, strict=True)
        ]

    def _trimmed(self, logprobs: TokenLogprobs) -> TokenLogprobs:
        """Without the alternatives that were asked for elsewhere."""
        if len(logprobs.top) <= self._num_prompt_top:
            return logprobs
        return TokenLogprobs(logprobs.logprob, logprobs.top[: self._num_prompt_top])

    def _stop_token(self, output: TokenOutput) -> TokenText | None:
        if output.stop_token_id is None or output.stop_logprobs is None or self._stream.stopped:
            return None
        return TokenText(output.stop_token_id, output.stop_logprobs, self._num_characters)

    def _tokens_out(self, output: TokenOutput) -> list[TokenText]:
        """The tokens whose text is out by now and was not before."""
        if output.logprobs is not None:
            self._logprobs += zip(output.token_ids, output.logprobs, strict=True)
        first = self._num_out
        self._num_out = min(self._stream.num_tokens, len(self._logprobs))
        offsets = self._stream.token_offsets
        return [TokenText(*self._logprobs[i], offsets[i]) for i in range(first, self._num_out)]
