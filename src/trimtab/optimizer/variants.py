"""What can be done to a model, and how its numbers can be held: all that quality depends on."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, cast, get_args

from trimtab.checkpoints.base import Checkpoint
from trimtab.compression.settings import GROUP_SIZES, QuantizeSettings
from trimtab.config import (
    DEVICE_KV,
    DEVICE_WEIGHTS,
    KV_FORMATS,
    WEIGHT_FORMATS,
    Device,
    ExecutorConfig,
    KVFormat,
    WeightFormat,
)
from trimtab.errors import ConfigError, UserError
from trimtab.numerics.stored import Fp8Format, GroupFormat
from trimtab.optimizer.content import content_hash

VariantWeights = Literal[WeightFormat, "stored"]
VariantMethod = Literal["none", "gptq", "awq", "autoround", "smoothquant"]
HeadFormat = Literal["", "bf16", "int8"]
METHODS: tuple[VariantMethod, ...] = get_args(VariantMethod)
REVISION = 1  # raise it when the same variant begins to be built otherwise
BITS = {"int8": 8, "int4": 4}
SAMPLES, SAMPLE_TOKENS = 16, 512  # of calibration


@dataclass(frozen=True)
class Variant:
    """Frozen and validated; ConfigError for what cannot be.

    `weights` "stored" are the integers that a checkpoint has; they stay. Without a method, weights
    are rounded to nearest at load, as ExecutorConfig does it; with one, a quantized checkpoint is
    made of the model first.
    """

    weights: VariantWeights = "bf16"
    group_size: int = 0  # input columns that share a scale; 0 = a channel's
    method: VariantMethod = "none"
    bits_per_weight: float | None = None  # mixed precision within this budget, scales included
    head: HeadFormat = ""  # the output head, with a method; "" = int8
    kv_cache: KVFormat = "bf16"
    calibration: str = ""  # with a method: file of text; "" = the model's own, see artifacts.py

    def __post_init__(self) -> None:
        for name, known in (
            ("weights", get_args(VariantWeights)),
            ("method", METHODS),
            ("head", get_args(HeadFormat)),
            ("kv_cache", KV_FORMATS),
            ("group_size", (0, *GROUP_SIZES)),
        ):
            value = getattr(self, name)
            if value not in known or isinstance(value, bool):
                raise ConfigError(f"{name}={value!r}: must be one of {', '.join(map(str, known))}")
        if not isinstance(self.calibration, str):
            raise ConfigError(f"calibration={self.calibration!r}: must be the name of a file")
        budget = self.bits_per_weight
        if budget is not None and (isinstance(budget, bool) or not isinstance(budget, float | int)):
            raise ConfigError(f"bits_per_weight={budget!r}: must be a number")
        if self.group_size and self.weights not in BITS:
            raise ConfigError(f"group_size={self.group_size}: {self.weights} has no groups")
        if self.method != "none":
            if self.weights not in BITS:
                raise ConfigError(f"method={self.method}: makes int8 or int4, not {self.weights}")
            self.quantize_settings()
        elif budget is not None or self.head or self.calibration:
            raise ConfigError("bits_per_weight, head and calibration belong to a method")
        elif self.weights == "int4" and not self.group_size:
            object.__setattr__(self, "group_size", 64)

    @property
    def is_baseline(self) -> bool:
        """The unmodified model, as its checkpoint has it."""
        return self.weights in ("bf16", "stored") and self.kv_cache == "bf16"

    @property
    def needs_build(self) -> bool:
        """A checkpoint has to be made first."""
        return self.method != "none"

    @property
    def stored(self) -> Variant:
        """With all that a checkpoint does not depend on left out: how its head and the KV cache
        are held, which the executor does."""
        return replace(self, kv_cache="bf16", head="")

    @property
    def label(self) -> str:
        """For people: `bf16`, `gptq int4-g64, KV int8`."""
        group = f"-g{self.group_size}" if self.group_size else ""
        name = f"{self.weights}{group}"
        if self.bits_per_weight is not None:
            name = f"{self.bits_per_weight:g} bits{group}"
        if self.method != "none":
            name = f"{self.method} {name}"
        if self.head:
            name += f", head {self.head}"
        return name if self.kv_cache == "bf16" else f"{name}, KV {self.kv_cache}"

    def executor_config(self, base: ExecutorConfig | None = None) -> ExecutorConfig:
        """`base` with this variant's formats. Of a checkpoint with integers the weight format is
        that of what it stores as floats: the output head."""
        base = base or ExecutorConfig()
        weights: WeightFormat
        if self.method != "none":
            weights, group_size = self.head or "int8", 0
        elif self.weights == "stored":
            weights, group_size = "bf16", 0
        else:
            weights, group_size = self.weights, self.group_size
        return replace(base, weights=weights, group_size=group_size, kv_cache=self.kv_cache)

    def quantize_settings(self) -> QuantizeSettings:
        """Of the checkpoint that is to be made; ConfigError for a combination that no method makes,
        and for a variant without a method."""
        if self.method == "none":
            raise ConfigError(f"{self.label}: nothing is to be built")
        return QuantizeSettings(
            method=self.method,
            bits=BITS[self.weights],
            group_size=self.group_size,
            bits_per_weight=self.bits_per_weight,
            num_samples=SAMPLES,
            sequence_length=SAMPLE_TOKENS,
        )

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Variant:
        """Raises ConfigError for unknown keys and for values that cannot be."""
        unknown = sorted(str(key) for key in set(value) - set(cls.__dataclass_fields__))
        if unknown:
            raise ConfigError(f"unknown setting of a variant: {', '.join(unknown)}")
        return cls(**cast(dict[str, Any], dict(value)))

    def identity(self, checkpoint: Checkpoint) -> str:
        """Hex digest of the model's content and of all that is done to it, this code included."""
        return self.identity_of(content_hash(checkpoint))

    def identity_of(self, model_hash: str) -> str:
        """`identity`, of a model whose content hash is known."""
        from trimtab.executors.cpu import NUMERICS_REVISION

        parts = ["trimtab variant", str(REVISION), str(NUMERICS_REVISION), model_hash]
        parts.append(json.dumps(self.as_json(), sort_keys=True))
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def stores_integers(checkpoint: Checkpoint) -> bool:
    """Whether any matrix of it is quantized already."""
    return any(
        isinstance(checkpoint.format(name), GroupFormat | Fp8Format) for name in checkpoint.names()
    )


def has_torch() -> bool:
    return importlib.util.find_spec("torch") is not None


def baseline_of(checkpoint: Checkpoint) -> Variant:
    """What others are compared with."""
    return Variant(weights="stored") if stores_integers(checkpoint) else Variant()


_WIDE = ("f32", "bf16")
_GROUPED = (Variant("int8"), Variant("int4", 64), Variant("int4", 32))
_OTHERS = (Variant("int8", 32), Variant("int4", 128))
# Formats that only some devices take, such as float8, have no groups to choose.
_PROMISING = (
    *(Variant(name) for name in WEIGHT_FORMATS if name not in (*_WIDE, *BITS)),
    *_GROUPED,
)


def variants_for(
    checkpoint: Checkpoint,
    *,
    methods: bool | None = None,
    calibration: str = "",
    float32: bool = False,
    device: Device = "cpu",
) -> list[Variant]:
    """Everything that can be done to a model that `device` is to run, in order of promise, the
    unmodified model first: the bf16 KV cache before narrower ones.

    `methods`: with those that build a checkpoint; by default where torch is installed. `float32`:
    with f32, which is slower and no better. `calibration`: for all that need one.
    """
    if stores_integers(checkpoint):
        found = [Variant(weights="stored")]
    else:
        found = [Variant()]
        found += [one for one in _PROMISING if one.weights in DEVICE_WEIGHTS[device]]
        if has_torch() if methods is None else methods:
            found += _built(checkpoint, calibration)
        found += [one for one in _OTHERS if one.weights in DEVICE_WEIGHTS[device]]
    narrower = [name for name in DEVICE_KV[device] if name not in _WIDE]
    found += [replace(one, kv_cache=name) for name in narrower for one in found]
    if float32 and not stores_integers(checkpoint):
        found.append(Variant("f32", kv_cache="f32"))
    return found


def _built(checkpoint: Checkpoint, calibration: str) -> list[Variant]:
    """By what the methods gave on the built-in model (docs/quality.md): at 4 bits GPTQ loses a
    third of what rounding does, AutoRound as much and takes longer, AWQ half."""
    candidates: list[tuple[VariantMethod, VariantWeights, int, float | None]] = [
        ("gptq", "int4", 64, None),
        ("gptq", "int4", 32, None),
        ("gptq", "int4", 128, None),
        ("gptq", "int4", 64, 6.0),
        ("autoround", "int4", 64, None),
        ("awq", "int4", 64, None),
        ("smoothquant", "int8", 0, None),
    ]
    found = []
    for method, weights, group_size, budget in candidates:
        one = Variant(weights, group_size, method, budget, calibration=calibration)
        try:
            one.quantize_settings().check_model(checkpoint.spec)
        except UserError:
            continue  # its columns cannot be grouped so
        found.append(one)
    return found


def by_promise(sizes: Mapping[Variant, int], default: Variant) -> list[Variant]:
    """The default first, then the lightest of each weight format, the second lightest of each and
    so on, and what differs by its KV cache behind all of them: time that runs out takes no whole
    format away. What is lightest is not always fastest: prompts are bound by arithmetic.

    `sizes`: bytes that a step reads."""
    places: Counter[tuple[str, str]] = Counter()
    keys = {}
    for variant in sorted(sizes, key=lambda one: sizes[one]):
        kind = variant.weights, variant.kv_cache
        has_other_cache = variant.kv_cache != default.kv_cache
        keys[variant] = variant != default, has_other_cache, places[kind], sizes[variant]
        places[kind] += 1
    return sorted(sizes, key=lambda one: keys[one])
