"""The sections of the check, in order, and what share of the time each may take."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from gpu.shapes import FORMATS, SHAPES

CHECK, MEASUREMENT = "check", "measurement"


@dataclass(frozen=True)
class Section:
    name: str
    module: str  # of this package, with a function run(context)
    weight: float  # seconds, if all sections take what they may
    kind: str = MEASUREMENT
    arguments: dict[str, Any] = field(default_factory=dict)
    tiny: bool = True  # also part of the run on a CPU
    in_tiny_seconds: float = 60.0


def all_sections() -> list[Section]:
    """Limits first, since everything is compared with them; then what must hold; then the rest."""
    return [
        Section("roofline", "roofline", 20),
        Section("kernels", "kernels", 80, CHECK),
        Section("kernel tests", "kernel_tests", 40, CHECK, tiny=False),
        Section("model", "model_checks", 35, CHECK),
        Section("law", "law", 40, CHECK),
        *(
            Section(
                f"{shape} {weights}",
                "serving",
                {("llama-3.1-8b", "bf16"): 55, ("llama-3.1-8b", "int4"): 40}.get(
                    (shape, weights), 30 if shape == "llama-3.1-8b" else 15
                ),
                arguments={"shape": shape, "weights": weights},
                tiny=shape == "qwen3-0.6b" or weights == "bf16",
            )
            for shape, weights in _in_order()
        ),
        *(
            Section(
                f"{shape} transformers",
                "transformers_peer",
                40 if shape == "llama-3.1-8b" else 25,
                arguments={"shape": shape},
                tiny=shape == "qwen3-0.6b",
            )
            for shape in SHAPES
        ),
        Section("starts", "starts", 40, arguments={"shape": "qwen3-0.6b", "weights": "bf16"}),
        Section("torch.compile", "inductor", 35),
        Section("law cost", "law_cost", 25, arguments={"shapes": list(SHAPES)}),
    ]


def _in_order() -> list[tuple[str, str]]:
    return [(shape, weights) for shape in SHAPES for weights in FORMATS]
