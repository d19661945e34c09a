"""TextStream: token ids in, text that can no longer change out, cut at stop strings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from trimtab.tokenization.detokenizer import make_detokenizer
from trimtab.tokenization.stop_strings import StopMatcher

if TYPE_CHECKING:
    from trimtab.tokenization.tokenizer import Tokenizer


class TextStream:
    """The text of one completion. The texts of `push` and `finish`, joined, are the decoding of all
    the tokens up to the stop string (with it, if `include_stop_in_output`); they do not depend on
    how the tokens were dealt out over the calls.

    Held back are incomplete characters and the longest end of the text that may be the start of a
    stop string. The stop string that is completed first wins; of several completed by the same
    character, the longest.

    For logprobs: `token_offsets[i]` is where token i starts in the text, in characters (the pieces
    of one character all start with it), and `num_tokens` says how many tokens make up the text that
    is out. After a stop string, a token that the cut goes through counts; those behind it do not.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        stop: Sequence[str] = (),
        include_stop_in_output: bool = False,
        skip_special_tokens: bool = True,
        kept_ids: frozenset[int] = frozenset(),
    ) -> None:
        """`kept_ids`: special tokens that are part of the text all the same."""
        self.stop: str | None = None  # the stop string that was found
        self.token_offsets: list[int] = []
        self.num_tokens = 0
        self._vocabulary = tokenizer.vocabulary
        self._skip_special_tokens = skip_special_tokens
        self._kept_ids = kept_ids
        self._include_stop = include_stop_in_output
        self._whole_texts = tokenizer.vocabulary.whole_texts
        self._detokenizer = make_detokenizer(tokenizer.vocabulary)
        self._matcher = StopMatcher(stop) if stop else None
        self._held = ""  # decoded, and maybe the start of a stop string
        self._num_out = 0  # characters that are out
        self._ends: list[int] = []  # of the tokens whose text is decoded: where it ends
        self._finished = False

    @property
    def stopped(self) -> bool:
        """A stop string was found: the text is complete and nothing more will come."""
        return self.stop is not None

    def push(self, token_ids: Sequence[int]) -> str:
        """The text that these tokens released. Once `stopped`, tokens are ignored."""
        if self._finished:
            raise ValueError("the stream is finished")
        text = ""
        for token_id in token_ids:
            if self.stopped:
                break
            self.token_offsets.append(self._num_out + len(self._held))
            skips = self._skip_special_tokens and token_id not in self._kept_ids
            if self._vocabulary.is_visible(token_id, skips):
                text += self._release(self._detokenizer.push(token_id))
        return text

    def push_text(self, token_ids: Sequence[int]) -> str:
        """`push` of a stream without stop strings whose offsets and `num_tokens` nobody wants: most
        streams, and most of what is computed for a token."""
        if len(token_ids) == 1 and not self._detokenizer.pending and not self._finished:
            text = self._whole_texts.get(token_ids[0])
            if text is not None:
                self._num_out += len(text)
                return text
        return self.push(token_ids)

    def finish(self) -> str:
        """The rest: no token follows. Idempotent, and "" after a stop string."""
        text = ""
        if not self._finished and not self.stopped:
            text = self._release(self._detokenizer.flush())
            if not self.stopped:
                text += self._held
                self._num_out += len(self._held)
                self._held = ""
                self.num_tokens = len(self.token_offsets)
        self._finished = True
        return text

    def _release(self, piece: str) -> str:
        """Append `piece` to the decoded text; what of it may go out."""
        if not piece:
            return ""
        if self._matcher is None:  # then nothing is ever held
            self._num_out += len(piece)
            self.num_tokens = len(self.token_offsets)
            return piece
        match = self._matcher.scan(piece)
        decoded = self._held + piece
        if match is None:
            num_free = len(decoded) - self._matcher.num_held
        else:
            self.stop = match.stop
            num_free = len(self._held) + match.end
            if not self._include_stop:
                num_free -= len(match.stop)
        self._ends += [self._num_out + len(decoded)] * (len(self.token_offsets) - len(self._ends))
        self._held = "" if self.stopped else decoded[num_free:]
        self._num_out += num_free
        self._count_tokens()
        return decoded[:num_free]

    def _count_tokens(self) -> None:
        ends, offsets = self._ends, self.token_offsets
        while self.num_tokens < len(ends) and (
            ends[self.num_tokens] <= self._num_out
            or (self.stopped and offsets[self.num_tokens] < self._num_out)
        ):
            self.num_tokens += 1
