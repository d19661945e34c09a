"""Defaults that fit a model to this machine's memory and cores, for `trimtab serve` without a plan.

    free memory | reserve | weights | Python, activations | KV cache, at most half of the rest |

Nothing is measured here that takes longer than a moment, and nothing is promised: what a machine
can really do with a model, `trimtab optimize` finds out.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from typing import Any

from trimtab.bench.footprint import footprint
from trimtab.checkpoints.base import Checkpoint
from trimtab.config import ExecutorConfig, SchedulerConfig, WeightFormat
from trimtab.errors import ConfigError
from trimtab.executors.formats import choose_formats
from trimtab.models.spec import ModelSpec
from trimtab.optimizer.memory import activation_bytes, block_bytes, python_bytes
from trimtab.optimizer.variants import stores_integers

GIB = 1 << 30
RESERVE = 0.1  # of free memory, for everybody else
KV_SHARE = 0.5  # of what is left: the rest is the system's cache of files
REQUEST_TOKENS = 2048  # that a request is given room for, if the context is that long
REQUESTS_PER_CORE = 32
MOST_REQUESTS = 256
STEP_SECONDS = 0.25  # that a prefill may hold up everybody else's next token
BATCH_TOKENS = (128, 256, 512, 1024, 2048)
DEFAULT_BATCH_TOKENS = 512
NARROWER: tuple[tuple[WeightFormat, int], ...] = (("bf16", 0), ("int8", 0), ("int4", 64))


@dataclass(frozen=True)
class Fitted:
    """Settings, and what was chosen of them and why."""

    executor: ExecutorConfig
    scheduler: SchedulerConfig
    chosen: dict[str, Any]
    reasons: list[str]

    def lines(self) -> list[tuple[str, str]]:
        """A word and a line each; none if the user chose everything."""
        if not self.chosen:
            return []
        settings = ", ".join(f"{name}={_show(value)}" for name, value in self.chosen.items())
        reasons = [("because", "; ".join(self.reasons))] if self.reasons else []
        return [("fitted", f"to this machine: {settings}"), *reasons]

    def as_json(self) -> dict[str, Any]:
        return {"chosen": self.chosen, "reasons": self.reasons}


def fit_to_machine(
    checkpoint: Checkpoint,
    executor: ExecutorConfig,
    scheduler: SchedulerConfig,
    given: Collection[str] = (),
    *,
    free_bytes: int | None,
    cores: int,
    macs_per_s: float | None = None,
    draft: ModelSpec | None = None,
) -> Fitted:
    """`given`: knobs that the user set, which stay. `free_bytes` None: the system does not say.
    `macs_per_s`: of all cores, in the weights' format.

    Raises ConfigError, one line that says what would fit, if nothing does.
    """
    room = None if free_bytes is None else int(free_bytes * (1 - RESERVE))
    fit = _Fit(checkpoint, executor, scheduler, frozenset(given), room, cores, draft)
    fit.choose_threads()
    fit.choose_weights()
    fit.choose_batch_tokens(macs_per_s)
    fit.choose_cache()
    fit.choose_requests()
    return Fitted(fit.executor, fit.scheduler, fit.chosen, fit.reasons)


class _Fit:
    """One choice after the other, each with what is left."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        executor: ExecutorConfig,
        scheduler: SchedulerConfig,
        given: frozenset[str],
        room: int | None,
        cores: int,
        draft: ModelSpec | None,
    ) -> None:
        self.checkpoint = checkpoint
        self.spec = checkpoint.spec
        self.executor = executor
        self.scheduler = scheduler
        self.given = given
        self.room = room
        self.cores = cores
        self.draft = draft
        self.chosen: dict[str, Any] = {}
        self.reasons: list[str] = []
        self.num_tokens = 0  # of the KV cache

    def choose_threads(self) -> None:
        if "threads" not in self.given:
            self._set(threads=self.cores)
            self.reasons.append(f"{self.cores} core{'s' if self.cores > 1 else ''} may be used")

    def choose_weights(self) -> None:
        """bf16, unless memory forces less."""
        stored = stores_integers(self.checkpoint)
        if self.given & {"weights", "group_size"} or stored:
            self._check_weights(stored)
            return
        sizes = {}
        for weights, group_size in NARROWER:
            config = replace(self.executor, weights=weights, group_size=group_size)
            sizes[config.weights_label] = self._weight_bytes(config)
            if self.room is None or self._needed(config) <= self.room:
                self._set(weights=weights)
                if group_size:
                    self._set(group_size=group_size)
                if weights != "bf16":
                    self.reasons.append(
                        f"{_gib(sizes['bf16'])} of bf16 weights do not fit into the "
                        f"{_gib(self.room or 0)} that may be used"
                    )
                return
        self._refuse(sizes)

    def choose_batch_tokens(self, macs_per_s: float | None) -> None:
        """As many as a step of STEP_SECONDS takes, at half of what the arithmetic can do."""
        if "max_batch_tokens" in self.given:
            return
        tokens = DEFAULT_BATCH_TOKENS
        if macs_per_s is not None:
            per_token = footprint(
                self.spec, self.executor, choose_formats(self.checkpoint, self.executor)
            ).layer_macs_per_token
            fitting = STEP_SECONDS * macs_per_s / 2 / per_token
            tokens = max((one for one in BATCH_TOKENS if one <= fitting), default=BATCH_TOKENS[0])
            milliseconds = 1000 * STEP_SECONDS * tokens / fitting
            self.reasons.append(f"a step of {tokens} tokens takes about {milliseconds:.0f} ms")
        self._set(max_batch_tokens=tokens)

    def choose_cache(self) -> None:
        if self.given & {"kv_cache_gib", "num_blocks"} or self.room is None:
            return
        from trimtab import _native

        size, per_block = _native.KV_BLOCK_TOKENS, block_bytes(self.spec, self.executor)
        if self.draft is not None:
            per_block += block_bytes(self.draft, self.executor)
        context = self.executor.max_context or self.spec.max_context
        left = max(0, self.room - self._fixed_bytes(self.executor))
        most = int(left * KV_SHARE) // per_block
        one = -(-context // size)  # blocks of the longest sequence
        requests = min(MOST_REQUESTS, REQUESTS_PER_CORE * self.cores)
        wanted = max(16 * one, requests * -(-min(REQUEST_TOKENS, context) // size))
        blocks = min(wanted, most)
        if blocks < one:
            blocks = min(one, left // per_block)
            if blocks < one:
                self._shorten(blocks * size, context)
        self._set(num_blocks=blocks)
        self.num_tokens = blocks * size
        self.reasons.append(
            f"the KV cache of {_gib(blocks * per_block)} holds {self.num_tokens:,} tokens"
        )

    def choose_requests(self) -> None:
        """As many as the cores keep busy and the cache has room for."""
        if "max_num_requests" in self.given:
            return
        most = min(MOST_REQUESTS, REQUESTS_PER_CORE * self.cores)
        if self.num_tokens:
            most = max(1, min(most, self.num_tokens // 256))
        self._set(max_num_requests=most)

    def _shorten(self, tokens: int, context: int) -> None:
        """Not even one sequence of the whole context has room."""
        if "max_context" in self.given or tokens < min(512, context):
            raise ConfigError(
                f"{self.checkpoint.path}: a context of {context} tokens needs more KV cache than "
                f"there is memory for ({tokens} tokens): use --max-context {max(tokens, 16)}, "
                "--kv-cache int8 or a narrower weight format"
            )
        self._set(max_context=tokens)
        self.reasons.append(f"a context of {context:,} tokens has no room, {tokens:,} have")

    def _check_weights(self, stored: bool) -> None:
        if self.room is None or self._needed(self.executor) <= self.room:
            return
        name = "the weights as stored" if stored else self.executor.weights_label
        self._refuse({name: self._weight_bytes(self.executor)})

    def _refuse(self, sizes: dict[str, int]) -> None:
        listed = ", ".join(f"{name} {_gib(size)}" for name, size in sizes.items())
        least = min(sizes.values()) + self._other_bytes()
        narrower = (
            ""
            if "int4-g64" in sizes or stores_integers(self.checkpoint)
            else (", or a narrower format (--weights int4)")
        )
        free = _gib(int(least / (1 - RESERVE)))
        raise ConfigError(
            f"{self.checkpoint.path}: does not fit: weights take {listed}, and of memory "
            f"{_gib(self.room or 0)} may be used; it needs a machine with {free} free, a smaller "
            f"model{narrower}"
        )

    def _needed(self, config: ExecutorConfig) -> int:
        """With a KV cache for one short request."""
        from trimtab import _native

        context = min(512, config.max_context or self.spec.max_context)
        blocks = -(-context // _native.KV_BLOCK_TOKENS)
        return self._fixed_bytes(config) + blocks * block_bytes(self.spec, config)

    def _fixed_bytes(self, config: ExecutorConfig) -> int:
        total = self._weight_bytes(config) + self._other_bytes()
        return total if self.draft is None else total + footprint(self.draft, config).weight_bytes

    def _other_bytes(self) -> int:
        return python_bytes(self.spec.vocab_size) + activation_bytes(self.spec, self.scheduler)

    def _weight_bytes(self, config: ExecutorConfig) -> int:
        return footprint(self.spec, config, choose_formats(self.checkpoint, config)).weight_bytes

    def _set(self, **values: Any) -> None:
        self.chosen |= values
        of_executor = {k: v for k, v in values.items() if k in asdict(self.executor)}
        of_scheduler = {k: v for k, v in values.items() if k not in of_executor}
        self.executor = replace(self.executor, **of_executor)
        self.scheduler = replace(self.scheduler, **of_scheduler)


def _gib(count: int) -> str:
    return f"{count / GIB:.2f} GiB"


def _show(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
