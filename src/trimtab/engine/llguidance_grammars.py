"""GrammarCompiler on llguidance: the only place in the engine that knows text, and lazily so.

Compiled grammars are kept and copied for each request. Copies share one lexer, which remembers what
it worked out: a mask that took milliseconds the first time takes microseconds the next. What one
request makes it remember must not fail another, so a matcher that runs into a limit of the shared
lexer goes on with one of its own.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from trimtab.engine.client import Grammar
from trimtab.engine.grammar import GrammarError, GrammarMatcher
from trimtab.engine.grammar_checker import GrammarChecker
from trimtab.engine.grammar_source import check_source, refused
from trimtab.errors import RequestError
from trimtab.executors.base import UInt32Array
from trimtab.tokenization import Tokenizer

CACHE_BYTES = 128 << 20
MATCHER_BYTES = 256 << 10  # of a compiled grammar, at first: some 70 KiB measured, and its lexer
BYTES_PER_SOURCE_BYTE = 64
MAX_USES = 1024  # of one shared lexer, which only grows
MAX_REFUSALS = 256  # remembered
# Of the work in one step. A mask takes some 50 us as a rule; with a pattern of many Unicode classes
# and a vocabulary of 150,000 tokens it was seen to take 10 ms, and 135 at worst.
LIMITS: dict[str, Any] = {
    "max_lexer_states": 50_000,
    "step_max_items": 30_000,
    "verbose_errors": False,
}


class _Compiled:
    def __init__(self, source: str, inner: Any) -> None:
        self.source = source  # in llguidance's own form
        self.inner = inner  # an LLMatcher at the start, never moved
        self.num_uses = 0
        self.num_bytes = MATCHER_BYTES + BYTES_PER_SOURCE_BYTE * len(source)


class LlguidanceGrammars:
    """See GrammarCompiler. Nothing is loaded before the first grammar comes."""

    def __init__(self, load_tokenizer: Callable[[], Tokenizer], vocab_size: int) -> None:
        self._load_tokenizer = load_tokenizer
        self._vocab_size = vocab_size
        self._lock = threading.Lock()
        self._tokenizer: Any = None  # an LLTokenizer
        self._checker: GrammarChecker | None = None
        self._compiled: OrderedDict[bytes, _Compiled] = OrderedDict()
        self._num_bytes = 0
        self._refusals: OrderedDict[bytes, str] = OrderedDict()

    def compile(self, grammar: Grammar) -> GrammarMatcher:
        check_source(grammar)
        with self._lock:
            key = hashlib.sha256(f"{grammar.kind}\0{grammar.source}".encode()).digest()
            compiled = self._compiled.get(key)
            if compiled is None or compiled.num_uses >= MAX_USES:
                compiled = self._compile(key, grammar, compiled)
            self._compiled.move_to_end(key)
            compiled.num_uses += 1
            inner = compiled.inner.deep_copy()
        return LlguidanceMatcher(inner, lambda: self._new(compiled.source), self._vocab_size)

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
            compiled = _Compiled(source, self._new(source))
            if compiled.inner.is_error():
                raise refused(compiled.inner.get_error().strip().split("\n", 1)[0][:200])
        except RequestError as error:
            self._refusals[key] = str(error)
            if len(self._refusals) > MAX_REFUSALS:
                self._refusals.popitem(last=False)
            raise
        self._compiled[key] = compiled
        self._num_bytes += compiled.num_bytes - (known.num_bytes if known else 0)
        while self._num_bytes > CACHE_BYTES and len(self._compiled) > 1:
            _, oldest = self._compiled.popitem(last=False)
            self._num_bytes -= oldest.num_bytes
        return compiled

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
    """See GrammarMatcher. `fresh` makes an LLMatcher that shares nothing."""

    def __init__(self, inner: Any, fresh: Callable[[], Any], vocab_size: int) -> None:
        self._inner = inner
        self._fresh: Callable[[], Any] | None = fresh
        self._tokens: list[int] = []
        self._last_bits = np.uint32((1 << (vocab_size % 32 or 32)) - 1)
        # llguidance counts one token more than we do: its own end of text.
        self._bits = np.zeros(-(-(vocab_size + 1) // 32), np.uint32)
        self._address = self._bits.ctypes.data

    def consume(self, token_ids: Sequence[int]) -> None:
        tokens = list(token_ids)
        if not self._inner.consume_tokens(tokens):
            self._recover()
            if not self._inner.consume_tokens(tokens):
                raise self._error()
        self._tokens += tokens

    def forced(self) -> list[int]:
        tokens: list[int] = self._inner.compute_ff_tokens()
        if self._inner.is_error():
            self._recover()
            tokens = self._inner.compute_ff_tokens()
            if self._inner.is_error():
                raise self._error()
        return tokens

    def fill(self, mask: UInt32Array) -> None:
        self._compute()
        if self._inner.is_error():
            self._recover()
            self._compute()
            if self._inner.is_error():
                raise self._error()
        mask[:] = self._bits[: len(mask)]
        mask[-1] &= self._last_bits

    @property
    def is_complete(self) -> bool:
        return bool(self._inner.is_accepting())

    @property
    def is_over(self) -> bool:
        return bool(self._inner.is_stopped())

    def _compute(self) -> None:
        self._inner.unsafe_compute_mask_ptr(self._address, self._bits.nbytes)

    def _recover(self) -> None:
        """Go on with a lexer of its own, once."""
        if self._fresh is None:
            raise self._error()
        self._inner, self._fresh = self._fresh(), None
        self._inner.consume_tokens(self._tokens)

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
        cuts it. Their bytes are always those of the text."""
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
