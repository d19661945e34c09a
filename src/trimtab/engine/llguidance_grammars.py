"""GrammarCompiler on llguidance: the only place in the engine that knows text, and lazily so.

Compiled grammars are kept and copied for each request. Copies share one lexer, which remembers what
it worked out: a mask that took milliseconds the first time takes microseconds the next. What one
request makes it remember must not fail another, so a matcher that runs into a limit of the shared
lexer goes on with one of its own.

Long stretches of forced text take seconds, and llguidance does not let go of the interpreter while
it looks for them, except in one of its calls: the mask. So that comes first; what is then left is
done in small pieces. Copies that share a lexer wait for each other under a lock of ours, since
within llguidance they would wait with the interpreter in their hands.
"""

from __future__ import annotations

import copy
import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from trimtab.engine.client import Grammar
from trimtab.engine.grammar import GrammarError, GrammarMatcher
from trimtab.engine.grammar_checker import GrammarChecker
from trimtab.engine.grammar_source import check_source, forces_little, refused
from trimtab.errors import RequestError
from trimtab.executors.base import UInt32Array
from trimtab.tokenization import Tokenizer

# What a compiled grammar takes, which llguidance does not say: 130 KiB were measured with small
# schemas. Its lexer grows with use, up to 40 MiB with classes of Unicode, and where it does, masks
# are slow: 30 to 330 MiB for each second of masks that took more than this.
MATCHER_BYTES = 256 << 10
BYTES_PER_SOURCE_BYTE = 64
QUICK_SECONDS = 0.00025
QUICK_BYTES = 1 << 20  # that a lexer has grown by: some milliseconds of slow masks
BYTES_PER_SLOW_SECOND = 192 << 20
MAX_SHARE = 1 / 4  # of the cache, that a lexer may grow: then it is left to those that have it
MAX_USES = 1024  # of one lexer
MAX_REFUSALS = 256  # remembered
COPY_SECONDS = 0.1  # that a copy is waited for, before another is made
FORCED_CHARACTERS = 1024  # of a stretch that are cut into tokens at once: a millisecond
TOKENS_AT_ONCE = 32  # that a matcher is given: a millisecond, with grammars that are slow
# Of the work in one step. A mask takes some 50 us as a rule; with a pattern of many Unicode classes
# and a vocabulary of 150,000 tokens it was seen to take 10 ms, and 135 at worst.
LIMITS: dict[str, Any] = {
    "max_lexer_states": 50_000,
    "step_max_items": 30_000,
    "verbose_errors": False,
}


class _Compiled:
    """A compiled grammar that is kept, with the lexer that its copies share."""

    def __init__(self, source: str, inner: Any, forces_little: bool) -> None:
        self.forces_little = forces_little
        self.source = source  # in llguidance's own form
        self.inner = inner  # an LLMatcher at the start, never moved
        self.lock = threading.Lock()  # of the lexer that it shares with its copies
        self.num_uses = 0
        self.num_grown_bytes = 0  # since then: an estimate

    @property
    def num_bytes(self) -> int:
        return MATCHER_BYTES + BYTES_PER_SOURCE_BYTE * len(self.source) + self.num_grown_bytes

    def note_mask(self, seconds: float) -> None:
        """A copy has made a mask; to be called under `lock`."""
        if seconds > QUICK_SECONDS:
            self.num_grown_bytes += int(seconds * BYTES_PER_SLOW_SECOND)


class LlguidanceGrammars:
    """See GrammarCompiler. Nothing is loaded before the first grammar comes."""

    def __init__(
        self, load_tokenizer: Callable[[], Tokenizer], vocab_size: int, cache_bytes: int = 64 << 20
    ) -> None:
        self._load_tokenizer = load_tokenizer
        self._vocab_size = vocab_size
        self._lock = threading.Lock()
        self._tokenizer: Any = None  # an LLTokenizer
        self._checker: GrammarChecker | None = None
        self._compiled: OrderedDict[bytes, _Compiled] = OrderedDict()
        self._cache_bytes = cache_bytes
        self._refusals: OrderedDict[bytes, str] = OrderedDict()

    def compile(self, grammar: Grammar) -> GrammarMatcher:
        check_source(grammar)
        with self._lock:
            key = hashlib.sha256(f"{grammar.kind}\0{grammar.source}".encode()).digest()
            compiled = self._compiled.get(key)
            if compiled is None or self._is_used_up(compiled):
                compiled = self._compile(key, grammar, compiled)
            self._compiled.move_to_end(key)
            compiled.num_uses += 1
            self._evict()
            return self._copy(compiled)

    def close(self) -> None:
        if self._checker is not None:
            self._checker.interrupt()
        with self._lock:
            if self._checker is not None:
                self._checker.close()

    def _compile(self, key: bytes, grammar: Grammar, known: _Compiled | None) -> _Compiled:
        if key in self._refusals:
            self._refusals.move_to_end(key)
            raise RequestError(self._refusals[key], param="grammar")
        if self._checker is None:
            self._load()
        assert self._checker is not None
        try:
            source = known.source if known else self._checker.check(grammar)
            compiled = _Compiled(source, self._new(source), forces_little(grammar))
            if compiled.inner.is_error():
                raise refused(compiled.inner.get_error().strip().split("\n", 1)[0][:200])
        except RequestError as error:
            self._refusals[key] = str(error)
            if len(self._refusals) > MAX_REFUSALS:
                self._refusals.popitem(last=False)
            raise
        self._compiled[key] = compiled
        return compiled

    @property
    def num_bytes(self) -> int:
        """Of what is kept, estimated."""
        return sum(compiled.num_bytes for compiled in self._compiled.values())

    def _is_used_up(self, compiled: _Compiled) -> bool:
        share = self._cache_bytes * MAX_SHARE
        return compiled.num_uses >= MAX_USES or compiled.num_grown_bytes > share

    def _evict(self) -> None:
        """The latest one stays, whatever it takes."""
        excess = self.num_bytes - self._cache_bytes
        while excess > 0 and len(self._compiled) > 1:
            excess -= self._compiled.popitem(last=False)[1].num_bytes

    def _copy(self, compiled: _Compiled) -> LlguidanceMatcher:
        """With a lexer of its own if another copy is slow."""

        def fresh() -> tuple[Any, _Compiled]:
            inner = self._new(compiled.source)
            return inner, _Compiled(compiled.source, inner, compiled.forces_little)

        if not compiled.lock.acquire(timeout=COPY_SECONDS):
            return LlguidanceMatcher(*fresh(), None, self._vocab_size)
        try:
            inner = compiled.inner.deep_copy()
        finally:
            compiled.lock.release()
        return LlguidanceMatcher(inner, compiled, fresh, self._vocab_size)

    def _new(self, source: str) -> Any:
        from llguidance import LLMatcher, LLParserLimits

        return LLMatcher(self._tokenizer, source, log_level=0, limits=LLParserLimits(**LIMITS))

    def _load(self) -> None:
        from llguidance import LLTokenizer

        tokenizer = self._load_tokenizer()
        known = min(tokenizer.vocab_size, self._vocab_size)
        special = {i: tokenizer.token_bytes(i).decode() for i in tokenizer.special_ids if i < known}
        tokens = [tokenizer.token_bytes(token_id) for token_id in range(known)]
        tokens += [b""] * (self._vocab_size - known)
        self._tokenizer = LLTokenizer(_Encoder(tokenizer, tokens, sorted(special)))
        self._checker = GrammarChecker(self._vocab_size, special)


class LlguidanceMatcher:
    """See GrammarMatcher. `inner` is a copy of `origin`'s; `fresh` makes another pair of them that
    shares nothing (None: this one does not)."""

    def __init__(
        self,
        inner: Any,
        origin: _Compiled,
        fresh: Callable[[], tuple[Any, _Compiled]] | None,
        vocab_size: int,
    ) -> None:
        self._inner = inner
        self._origin = origin
        self._fresh = fresh
        self._tokens: list[int] = []
        self._last_bits = np.uint32((1 << (vocab_size % 32 or 32)) - 1)
        # llguidance counts one token more than we do: its own end of text.
        self._bits = np.zeros(-(-(vocab_size + 1) // 32), np.uint32)
        self._address = self._bits.ctypes.data
        self._is_computed = False  # `_bits` are of this place

    @property
    def forces_little(self) -> bool:
        return self._origin.forces_little and self._origin.num_grown_bytes < QUICK_BYTES

    def fork(self) -> LlguidanceMatcher:
        other = copy.copy(self)
        with self._origin.lock:
            other._inner = self._inner.deep_copy()
        other._tokens = list(self._tokens)
        other._bits = self._bits.copy()
        other._address = other._bits.ctypes.data
        return other

    def consume(self, token_ids: Sequence[int]) -> None:
        for first in range(0, len(token_ids), TOKENS_AT_ONCE):
            if first:
                time.sleep(0)  # somebody else's turn
            tokens = list(token_ids[first : first + TOKENS_AT_ONCE])
            self._is_computed = False
            if not self._consume(tokens):
                self._recover()
                if not self._consume(tokens):
                    raise self._error()
            self._tokens += tokens

    def forced(self) -> list[int]:
        if self.is_over:
            return []
        self._compute()
        with self._origin.lock:
            tokens: list[int] = self._inner.compute_ff_tokens()
            is_error = self._inner.is_error()
        if is_error:
            self._recover()
            return self.forced()
        return tokens

    def fill(self, mask: UInt32Array) -> None:
        self._compute()
        mask[:] = self._bits[: len(mask)]
        mask[-1] &= self._last_bits

    @property
    def is_complete(self) -> bool:
        with self._origin.lock:
            return bool(self._inner.is_accepting())

    @property
    def is_over(self) -> bool:
        return bool(self._inner.is_stopped())

    def _consume(self, tokens: list[int]) -> bool:
        with self._origin.lock:
            return bool(self._inner.consume_tokens(tokens))

    def _compute(self) -> None:
        """The mask, and with it what is forced here, if it is not there yet."""
        if self._is_computed:
            return
        with self._origin.lock:
            started = time.thread_time()
            self._inner.unsafe_compute_mask_ptr(self._address, self._bits.nbytes)
            self._origin.note_mask(time.thread_time() - started)
            is_error = self._inner.is_error()
        if is_error:
            self._recover()
            self._compute()
        self._is_computed = True

    def _recover(self) -> None:
        """Go on with a lexer of its own, once."""
        if self._fresh is None:
            raise self._error()
        (self._inner, self._origin), self._fresh = self._fresh(), None
        self._is_computed = False
        tokens, self._tokens = self._tokens, []
        self.consume(tokens)

    def _error(self) -> GrammarError:
        reason = self._inner.get_error().strip().split("\n", 1)[0][:200]
        if reason.startswith("NoExtension"):
            reason = "no token of this model continues its text"
        return GrammarError(f"the grammar cannot be followed any further: {reason}")


class _Encoder:
    """What LLTokenizer wants of a tokenizer: tokens as bytes, and how a text is cut into them."""

    is_tokenizer_wrapper = True
    eos_token_id = None  # it adds its own: which of ours may come is decided by GrammarState
    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, tokens: list[bytes], special_ids: list[int]) -> None:
        self.tokens = tokens
        self.special_token_ids = special_ids
        self._special = frozenset(special_ids)
        self._tokenizer = tokenizer
        self._longest = max(map(len, tokens), default=0)
        self._ids: dict[bytes, int] | None = None  # made when first needed

    def __call__(self, text: str) -> list[int]:
        """Token ids of a text that stands in the middle of another, as the model's own tokenizer
        cuts it. Their bytes are always those of the text, or of the beginning of a long one."""
        text = text[: max(FORCED_CHARACTERS, 4 * self._longest)]
        wanted = text.encode()
        ids = self._tokenizer.encode(text, add_special_tokens=False)
        if self._are(ids, wanted):
            return ids
        # Tokenizers that put a blank before a text do it to the mark.
        ids = self._tokenizer.encode("\x02" + text, add_special_tokens=False)
        for first in range(1, min(len(ids), 5)):
            if self._are(ids[first:], wanted):
                return ids[first:]
        return self._greedy(wanted)

    def _are(self, ids: list[int], wanted: bytes) -> bool:
        if not self._special.isdisjoint(ids) or max(ids, default=0) >= len(self.tokens):
            return False
        return b"".join([self.tokens[token_id] for token_id in ids]) == wanted

    def _greedy(self, text: bytes) -> list[int]:
        """The longest token each time, for a text that the tokenizer takes for special tokens."""
        if self._ids is None:
            pairs = reversed(list(enumerate(self.tokens)))
            self._ids = {t: i for i, t in pairs if t and i not in self._special}
        ids: list[int] = []
        start = 0
        while start < len(text):
            for end in range(min(len(text), start + self._longest), start, -1):
                token_id = self._ids.get(text[start:end])
                if token_id is not None:
                    ids.append(token_id)
                    start = end
                    break
            else:
                break  # a byte that no token has: nothing behind it can be forced
        return ids
