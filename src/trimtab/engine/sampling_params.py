"""SamplingParams: what a caller may ask of one completion."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from typing import Any

from trimtab.errors import RequestError

MAX_TOP_LOGPROBS = 20
MAX_STOP_STRINGS = 16
MAX_STOP_BYTES = 1024
MAX_LOGIT_BIAS = 1024
MAX_CHOICES = 128
SMALLEST = 2.0**-126  # the engine computes in float32, where less may be nothing
MAX_BANNED_SEQUENCES = 256
MAX_BANNED_TOKENS = 4096  # of all banned sequences together


def _check(ok: bool, param: str, value: Any, rule: str) -> None:
    if not ok:
        raise RequestError(f"{param}={value!r}: must be {rule}", param=param)


@dataclass(frozen=True)
class SamplingParams:
    """Immutable; every range is checked here, once. Raises RequestError naming the field.

    The order in which the parameters act on the logits is written down at
    `trimtab.executors.base.SamplingBatch`. Stop strings act on text and are applied above the
    engine; everything else acts on tokens, in the engine.
    """

    max_tokens: int | None = 16  # None = up to the context limit
    min_tokens: int = 0
    temperature: float = 1.0  # 0 = greedy
    top_k: int = 0  # 0 = off
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = field(default_factory=dict)
    seed: int | None = None  # None = drawn at random for each request
    stop: tuple[str, ...] = ()
    include_stop_in_output: bool = False
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    allowed_token_ids: tuple[int, ...] = ()  # no other token is chosen; () = any may be
    banned_sequences: tuple[tuple[int, ...], ...] = ()  # tokens that never stand in this order
    skip_special_tokens: bool = True  # in the text; acts above the engine, like `stop`
    logprobs: int | None = None  # number of alternatives to report; None = no logprobs
    n: int = 1

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        else:
            object.__setattr__(self, "stop", tuple(self.stop))
        object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids))
        object.__setattr__(self, "allowed_token_ids", tuple(self.allowed_token_ids))
        object.__setattr__(self, "banned_sequences", tuple(map(tuple, self.banned_sequences)))
        _check(
            self.max_tokens is None or self.max_tokens >= 1, "max_tokens", self.max_tokens, ">= 1"
        )
        _check(self.min_tokens >= 0, "min_tokens", self.min_tokens, ">= 0")
        _check(
            self.max_tokens is None or self.min_tokens <= self.max_tokens,
            "min_tokens",
            self.min_tokens,
            "at most max_tokens",
        )
        # Written so that NaN fails every one of them.
        _check(0 <= self.temperature <= 100, "temperature", self.temperature, "in [0, 100]")
        _check(self.top_k >= -1, "top_k", self.top_k, ">= 0 (0 or -1 = off)")
        _check(SMALLEST <= self.top_p <= 1, "top_p", self.top_p, "in (0, 1]")
        _check(0 <= self.min_p <= 1, "min_p", self.min_p, "in [0, 1]")
        _check(
            0.01 <= self.repetition_penalty <= 100,
            "repetition_penalty",
            self.repetition_penalty,
            "in [0.01, 100]",
        )
        for name in ("presence_penalty", "frequency_penalty"):
            _check(-2 <= getattr(self, name) <= 2, name, getattr(self, name), "in [-2, 2]")
        _check(
            len(self.logit_bias) <= MAX_LOGIT_BIAS,
            "logit_bias",
            f"{len(self.logit_bias)} entries",
            f"at most {MAX_LOGIT_BIAS} entries",
        )
        for value in self.logit_bias.values():
            _check(-100 <= value <= 100, "logit_bias", value, "in [-100, 100]")
        _check(
            self.seed is None or -(1 << 63) <= self.seed < 1 << 64,
            "seed",
            self.seed,
            "a 64-bit integer",
        )
        _check(len(self.stop) <= MAX_STOP_STRINGS, "stop", len(self.stop), f"<= {MAX_STOP_STRINGS}")
        for text in self.stop:
            _check(text != "", "stop", text, "a non-empty string")
            _check(
                len(text.encode(errors="replace")) <= MAX_STOP_BYTES,
                "stop",
                text[:32] + "...",
                f"at most {MAX_STOP_BYTES} bytes",
            )
        sequences = self.banned_sequences
        _check(all(sequences), "banned_sequences", sequences, "free of empty sequences")
        _check(
            len(sequences) <= MAX_BANNED_SEQUENCES
            and sum(map(len, sequences)) <= MAX_BANNED_TOKENS,
            "banned_sequences",
            f"{len(sequences)} sequences of {sum(map(len, sequences))} tokens",
            f"at most {MAX_BANNED_SEQUENCES} sequences of {MAX_BANNED_TOKENS} tokens in all",
        )
        _check(
            self.logprobs is None or 0 <= self.logprobs <= MAX_TOP_LOGPROBS,
            "logprobs",
            self.logprobs,
            f"in [0, {MAX_TOP_LOGPROBS}]",
        )
        _check(1 <= self.n <= MAX_CHOICES, "n", self.n, f"in [1, {MAX_CHOICES}]")


def choice_params(
    params: SamplingParams, index: int, eos_token_ids: tuple[int, ...] = ()
) -> SamplingParams:
    """The parameters of choice `index` of `params.n`, as a request of its own (n = 1).

    Choice 0 has the seed itself, choice i a seed derived from (seed, i); without a seed, each
    choice draws its own. `eos_token_ids`, end tokens that the engine may not know of (those of the
    tokenizer), end it too, unless it ignores them.
    """
    seed = params.seed
    if seed is not None and index > 0:
        key = (seed % (1 << 64)).to_bytes(8, "little") + index.to_bytes(8, "little")
        seed = int.from_bytes(hashlib.sha256(key).digest()[:8], "little")
    stop_token_ids = params.stop_token_ids
    if not params.ignore_eos:
        stop_token_ids = tuple(dict.fromkeys(stop_token_ids + eos_token_ids))
    return replace(params, n=1, seed=seed, stop_token_ids=stop_token_ids)
