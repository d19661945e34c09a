"""One live request, as the scheduler, the KV cache and the batch builder see it."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from enum import Enum

from trimtab.engine.client import FinishReason, TokenLogprobs
from trimtab.engine.grammar import GrammarState
from trimtab.engine.sampling_params import SamplingParams
from trimtab.engine.timing import RequestTimer
from trimtab.executors.base import UInt32Array


class RequestState(Enum):
    WAITING = "waiting"  # holds no blocks
    RUNNING = "running"
    FINISHED = "finished"  # holds no blocks and is known to nobody


@dataclass(eq=False, slots=True)
class Request:
    """A sequence of tokens that grows, and how much of it lies in the KV cache.

        token_ids   | p p p p p p p p p p | c c c |      prompt, completion
        computed    | x x x x x x x x x x   x x   .      K and V of these are in the blocks
        block_ids   | b0      | b1      | b2      |      append-only while running

    A running request holds blocks for all of `token_ids` or, just after tokens were appended, for
    all but those.
    """

    request_id: str
    params: SamplingParams
    token_ids: array[int]
    num_prompt_tokens: int
    max_total_tokens: int  # prompt + completion never get longer
    stop_ids: frozenset[int]  # tokens that end it (EOS included, unless it ignores EOS)
    seed: int  # in [0, 2**64)
    order: tuple[int, int]  # (priority, arrival): the smaller runs first
    cache_root: bytes  # what its block hashes start from
    num_prompt_logprobs: int | None = None  # alternatives at each prompt token; None: not scored
    completes: bool = True  # False: it ends when its prompt is scored or embedded
    embeds: bool = False
    allowed_mask: UInt32Array | None = None  # a row of SamplingBatch.mask; None: all are allowed

    state: RequestState = RequestState.WAITING
    num_computed_tokens: int = 0
    block_ids: array[int] = field(default_factory=lambda: array("i"))
    num_published_blocks: int = 0  # leading blocks already offered to the prefix cache
    block_hashes: list[bytes] = field(default_factory=list)  # of leading full blocks, on demand
    num_cached_tokens: int | None = None  # prompt tokens found in the cache; None: never admitted
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)  # of tokens 1, 2 ...
    has_reported: bool = False  # an output of it is out, and with it its prompt's logprobs
    num_preemptions: int = 0
    num_drafts: int = 0  # tokens that were proposed for it, and computed
    num_accepted_drafts: int = 0
    num_prefill_tokens: int = 0  # num_tokens when last admitted: steps up to there are prefill
    timer: RequestTimer = field(default_factory=RequestTimer)

    grammar: GrammarState | None = None
    num_reported: int = 0  # of token_ids, those that are out; only kept if there is a grammar
    num_unscored: int = 0  # tokens at the end, forced by the grammar, whose logprobs are owed
    unreported_logprobs: list[TokenLogprobs] = field(default_factory=list)
    is_held: bool = False  # its mask is being made: it takes part in no step
    ending: FinishReason | None = None  # how it ends as soon as nothing is owed

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_generated(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_needed(self) -> int:
        """Tokens whose K and V are needed: all, but for the last of a completion."""
        return len(self.token_ids) - (self.ending is not None)

    @property
    def num_missing(self) -> int:
        """Tokens whose K and V are needed and not computed yet."""
        return self.num_needed - self.num_computed_tokens

    @property
    def chooses(self) -> bool:
        """A token is wanted behind those it has."""
        return self.completes and self.ending is None

    @property
    def owed_rows(self) -> range:
        """Positions whose logits must still be computed to score the token behind each: prompt
        tokens, and those that the grammar forced. What lies between the two is scored with them."""
        stop = len(self.token_ids) - 1
        if self.num_prompt_logprobs is not None:
            first = len(self.prompt_logprobs)
            if first < self.num_prompt_tokens - 1:
                return range(first, stop if self.num_unscored else self.num_prompt_tokens - 1)
        return range(stop - self.num_unscored, stop)

    @property
    def banned_ids(self) -> frozenset[int]:
        """Tokens that must not be chosen next. A grammar that has begun bans them itself, unless it
        allows nothing else."""
        if self.grammar is not None and self.grammar.active:
            return frozenset()
        return self.unwanted_ids

    @property
    def unwanted_ids(self) -> frozenset[int]:
        """What would end it before min_tokens, or complete a banned sequence."""
        stops = self.stop_ids if self.num_generated < self.params.min_tokens else frozenset()
        if not self.params.banned_sequences:
            return stops
        return stops.union(
            sequence[-1]
            for sequence in self.params.banned_sequences
            if self._ends_in(sequence[:-1])
        )

    @property
    def mask(self) -> UInt32Array | None:
        """[ceil(vocab / 32)] the tokens that may be chosen next; None: all."""
        if self.grammar is not None and self.grammar.active:
            return self.grammar.mask
        return self.allowed_mask

    def _ends_in(self, tokens: tuple[int, ...]) -> bool:
        """Whether these are the latest tokens of the completion."""
        first = len(self.token_ids) - len(tokens)
        return first >= self.num_prompt_tokens and tuple(self.token_ids[first:]) == tokens

    def accept(self, token_id: int) -> FinishReason | None:
        """Take the next token, chosen among those not banned. A stop token is not appended."""
        if token_id in self.stop_ids:
            return "stop"
        self.token_ids.append(token_id)
        return "length" if len(self.token_ids) >= self.max_total_tokens else None
