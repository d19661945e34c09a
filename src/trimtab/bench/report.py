"""Measured speed beside the machine's limits: rows for machines, a table for people."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from trimtab.bench.footprint import Footprint, ceilings
from trimtab.bench.long_context import STEPS
from trimtab.bench.machine import MachineLimits
from trimtab.bench.speed import OUTPUT_TOKENS, PROMPT_TOKENS, Rate


@dataclass(frozen=True)
class Row:
    measure: str  # "decode", "decode 8192", "prefill 512", "8 streams"
    rate: Rate
    ceiling: float  # tokens a second

    @property
    def percent(self) -> float:
        return 100 * self.rate.median / self.ceiling

    def as_json(self) -> dict[str, Any]:
        return {
            "measure": self.measure,
            "tokens_per_s": asdict(self.rate),
            "ceiling_tokens_per_s": self.ceiling,
            "percent_of_ceiling": self.percent,
        }


def ceiling_of(measure: str, model: Footprint, machine: MachineLimits) -> float:
    """The limit of one measure of `trimtab.bench.speed`, in tokens a second."""
    kind, _, number = measure.partition(" ")
    mean_context = PROMPT_TOKENS + OUTPUT_TOKENS // 2
    if kind == "decode" and number:
        mean_context = int(number) + STEPS // 2
    lengths = (int(number),) if kind == "prefill" else (PROMPT_TOKENS,)
    macs_per_s = machine.linear_macs_per_s(model.layer_weights)
    limits = ceilings(
        model,
        machine.read_bytes_per_s,
        macs_per_s,
        machine.attention_macs_per_s,
        contexts=(mean_context,),
        prompts=lengths,
    )
    if kind == "decode":
        return limits.decode[mean_context]
    if kind == "prefill":
        return limits.prefill[lengths[0]]
    streams = int(kind)
    kv_bytes = model.positions_read(mean_context) * model.kv_bytes_per_token / len(model.windows)
    macs = streams * (model.layer_macs_per_token + model.head_macs_per_token)
    step = max(
        (model.read_bytes_per_step + streams * kv_bytes) / machine.read_bytes_per_s,
        macs / macs_per_s,
    )
    prefill = streams * PROMPT_TOKENS / limits.prefill[PROMPT_TOKENS]
    return streams * OUTPUT_TOKENS / (prefill + (OUTPUT_TOKENS - 1) * step)


def rows(rates: dict[str, Rate], model: Footprint, machine: MachineLimits) -> list[Row]:
    return [
        Row(measure, rate, ceiling_of(measure, model, machine)) for measure, rate in rates.items()
    ]


def table(results: dict[str, list[Row]]) -> list[str]:
    """A Markdown table: a line a measure, a column a configuration.

    Cells: median [low, high], percent of the ceiling.
    """
    labels = list(results)
    lines = ["| tokens/s | " + " | ".join(labels) + " |", "|---" * (len(labels) + 1) + "|"]
    for index, first in enumerate(results[labels[0]]):
        cells = []
        for label in labels:
            row = results[label][index]
            rate = row.rate
            cells.append(
                f"**{rate.median:,.1f}** [{rate.low:,.1f}, {rate.high:,.1f}] "
                f"of {row.ceiling:,.1f}: {row.percent:.0f} %"
            )
        lines.append(f"| {first.measure} | " + " | ".join(cells) + " |")
    return lines
