"""What a quantization did to each matrix."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class MatrixReport:
    name: str  # canonical
    shape: tuple[int, int]
    format: str  # int4-g128, ...
    bits_per_weight: float  # scales and zeros included
    weight_error: float  # |W' - W|^2 / |W|^2, both with the scaling that the method folded in


@dataclass
class Report:
    """Of one run. Errors are relative squared errors on the calibration text."""

    method: str
    matrices: list[MatrixReport] = field(default_factory=list)
    layer_errors: list[float] = field(default_factory=list)  # of the residual stream after each
    kept: dict[str, str] = field(default_factory=dict)  # matrices left as they are, and why
    changed: list[str] = field(default_factory=list)  # norms and biases that took up a scaling
    notes: list[str] = field(default_factory=list)
    sensitivity: dict[str, float] = field(default_factory=dict)  # of a budget: see `sensitivity`
    calibration_tokens: int = 0
    files: list[str] = field(default_factory=list)  # that hold weights
    total_bytes: int = 0  # of these
    kl: float | None = None  # from the original model, nats a token, on the calibration text

    @property
    def bits_per_weight(self) -> float:
        """Of all quantized matrices together, scales and zeros included."""
        sizes = [entry.shape[0] * entry.shape[1] for entry in self.matrices]
        spent = [
            entry.bits_per_weight * size for entry, size in zip(self.matrices, sizes, strict=True)
        ]
        return sum(spent) / max(1, sum(sizes))

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "bits_per_weight": self.bits_per_weight}

    def lines(self) -> list[str]:
        """For people."""
        formats: dict[str, int] = {}
        for entry in self.matrices:
            formats[entry.format] = formats.get(entry.format, 0) + 1
        mix = ", ".join(f"{count} as {name}" for name, count in sorted(formats.items()))
        lines = [
            f"{len(self.matrices)} matrices by {self.method}: {mix}; "
            f"{self.bits_per_weight:.3f} bits a weight, scales included"
        ]
        if self.calibration_tokens:
            lines.append(f"calibrated on {self.calibration_tokens:,} tokens")
        if self.kl is not None:
            lines.append(
                f"KL divergence from the original on that text: {self.kl:.5f} nats a token"
            )
        lines += [f"{name} left as it is: {why}" for name, why in self.kept.items()]
        return [*lines, *self.notes]
