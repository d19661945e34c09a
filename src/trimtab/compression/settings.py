"""What a quantization is asked to do, validated; knows nothing of torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from trimtab.errors import ConfigError
from trimtab.models.spec import ModelSpec
from trimtab.numerics.stored import ScaleType

Method = Literal["rtn", "gptq", "awq", "smoothquant", "autoround"]
METHODS: tuple[Method, ...] = ("rtn", "gptq", "awq", "smoothquant", "autoround")
BITS = (2, 3, 4, 8)
GROUP_SIZES = (32, 64, 128)
MATRICES = ("q", "k", "v", "o", "gate", "up", "down")


def check_method(name: str) -> Method:
    """Raises ConfigError for a name that is none."""
    for method in METHODS:
        if name == method:
            return method
    raise ConfigError(f"method {name!r}: use one of {', '.join(METHODS)}")


@dataclass(frozen=True)
class Grid:
    """The numbers that a matrix may be rounded to.

    symmetric: value * scale; else (value - zero) * scale, the zero an integer of as many bits.
    """

    bits: int
    group_size: int  # input columns that share a scale; 0 = all of a row do
    symmetric: bool
    scale_type: ScaleType = "f16"  # or bf16, f32

    def columns(self, cols: int) -> int:
        """Of a group, in a matrix of `cols` columns."""
        return self.group_size or cols

    def bits_per_weight(self, cols: int) -> float:
        """Scales and zeros included."""
        extra = (32 if self.scale_type == "f32" else 16) + (0 if self.symmetric else self.bits)
        return self.bits + extra / self.columns(cols)

    def __str__(self) -> str:
        group = f"-g{self.group_size}" if self.group_size else ""
        return f"int{self.bits}{group}{'' if self.symmetric else '-asymmetric'}"


@dataclass(frozen=True)
class QuantizeSettings:
    """Of one run. What is None follows from the method: see `resolved_symmetric`."""

    method: Method = "gptq"
    bits: int = 4
    group_size: int = 128  # 0 = per channel
    symmetric: bool | None = None
    scale_type: ScaleType = "f16"
    head: bool = False  # the output head, too
    embedding: bool = False  # the embedding, too
    bits_per_weight: float | None = None  # a budget: bits of each matrix by its sensitivity
    num_samples: int = 128  # calibration sequences
    sequence_length: int = 512  # tokens of each
    seed: int = 0
    device: str = "cpu"
    search: bool | None = None  # scales of the least squared error, not of the largest weight: rtn
    # does if asked to, gptq unless asked not to, the others as their papers say
    damping: float = 0.01  # GPTQ: of the mean diagonal of the Hessian
    ordering: Literal["groups", "columns", "none"] = "groups"  # GPTQ: in which columns are rounded
    grid_points: int = 20  # AWQ, SmoothQuant: strengths of the scaling that are tried
    iterations: int = 200  # AutoRound
    learning_rate: float | None = None  # AutoRound: of the first step; None: 1 / iterations
    batch_size: int = 8  # AutoRound: sequences of a step
    start: Literal["nearest", "gptq"] = "nearest"  # AutoRound: the rounding that it begins with

    def __post_init__(self) -> None:
        check_method(self.method)
        if self.bits not in BITS:
            raise ConfigError(f"{self.bits} bits: use one of {', '.join(map(str, BITS))}")
        if self.group_size not in (0, *GROUP_SIZES):
            raise ConfigError(
                f"group size {self.group_size}: use 32, 64 or 128, or 0 for one scale a channel"
            )
        for name, least in (
            ("num_samples", 1),
            ("sequence_length", 2),
            ("grid_points", 1),
            ("iterations", 1),
            ("batch_size", 1),
        ):
            if getattr(self, name) < least:
                raise ConfigError(f"{name}={getattr(self, name)}: must be at least {least}")
        if not 0 <= self.seed < 1 << 63:
            raise ConfigError(f"seed={self.seed}: must be in [0, 2^63 - 1]")
        if self.learning_rate is not None and not 0 < self.learning_rate <= 1:
            raise ConfigError(f"learning_rate={self.learning_rate}: must be in (0, 1]")
        if not 0 < self.damping < 1:
            raise ConfigError(f"damping={self.damping}: must be between 0 and 1")
        if self.method == "smoothquant":
            self._check_smoothquant()
        if self.bits_per_weight is not None:
            self._check_budget(self.bits_per_weight)

    def _check_smoothquant(self) -> None:
        if self.bits != 8 or self.group_size or self.symmetric is False:
            raise ConfigError(
                "smoothquant makes symmetric 8-bit weights with one scale a channel: "
                "use --bits 8 --group-size 0 --symmetric"
            )
        if self.bits_per_weight is not None:
            raise ConfigError("smoothquant has 8 bits for every matrix: no --bits-per-weight")

    def _check_budget(self, budget: float) -> None:
        least = Grid(3, self.group_size, self.resolved_symmetric).bits_per_weight(1 << 30)
        if not least <= budget <= 16:
            raise ConfigError(
                f"bits_per_weight={budget:g}: must be between {least:g} (3 bits and their scales) "
                "and 16"
            )

    @property
    def resolved_symmetric(self) -> bool:
        """AWQ is asymmetric unless asked otherwise, as the files of that name are."""
        return self.method != "awq" if self.symmetric is None else self.symmetric

    @property
    def grid(self) -> Grid:
        return Grid(self.bits, self.group_size, self.resolved_symmetric, self.scale_type)

    @property
    def needs_calibration(self) -> bool:
        return self.method != "rtn" or self.bits_per_weight is not None

    @property
    def activation_bits(self) -> int | None:
        """Of activations, quantized a token at a time when the model runs; None: as they are."""
        return 8 if self.method == "smoothquant" else None

    def check_model(self, spec: ModelSpec) -> None:
        """Raises ConfigError for a group size that does not divide the columns of a matrix."""
        columns = {
            "q, k, v, gate, up": spec.hidden_size,
            "o": spec.num_heads * spec.head_dim,
            "down": spec.intermediate_size,
        }
        for names, cols in columns.items():
            if self.group_size and cols % self.group_size:
                fitting = [str(size) for size in GROUP_SIZES if cols % size == 0]
                raise ConfigError(
                    f"group size {self.group_size} does not divide the {cols} input columns of "
                    f"{names}: use {' or '.join([*fitting, '0 (one scale a channel)'])}"
                )
