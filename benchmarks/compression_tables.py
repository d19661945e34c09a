"""The JSON of compression.py as Markdown. Reads nothing but that document."""

from __future__ import annotations

import math
import statistics
from typing import Any

HEADS = (
    "",
    "bits a weight",
    "MB",
    "KL, mean",
    "KL, 99 %",
    "of the weights alone",
    "same top token",
    "perplexity",
    "tasks",
    "decode",
    "8 streams",
)


def render(document: dict[str, Any]) -> list[str]:
    """A section for each number of bits, best first; then what failed, and why."""
    results = list(document["results"].values())
    good = [entry for entry in results if not entry["error"]]
    lines = preamble(document["settings"], good)
    for bits in sorted({entry["bits"] for entry in good}, reverse=True):
        members = [entry for entry in good if entry["bits"] == bits]
        members.sort(key=lambda entry: mean_kl(entry["text"]))
        lines += ["", f"### {bits} bits", "", f"| {' | '.join(HEADS)} |", "|---" * len(HEADS) + "|"]
        lines += [f"| {' | '.join(cells(entry))} |" for entry in members]
    failed = [f"- {entry['label']}: {entry['error']}" for entry in results if entry["error"]]
    return [*lines, "", *failed] if failed else lines


def preamble(settings: dict[str, Any], good: list[dict[str, Any]]) -> list[str]:
    text = (
        f"Built-in model, {settings['windows']} windows of {settings['length']} tokens of its "
        f"held-out text. {settings['cpu']}, path {settings['isa']}. KL divergence in nats from the "
        "model in float32 throughout; perplexity as its change from there; brackets are 95 % "
        "confidence intervals. Bits a weight: of all that is stored, scales and the embedding "
        "included."
    )
    calibrated = next((entry["options"] for entry in good if entry["options"]), None)
    if calibrated:
        tokens = calibrated["num_samples"] * calibrated["sequence_length"]
        text += f" Methods are calibrated on {tokens:,} tokens."
    if any("speed" in entry for entry in good):
        text += " Decode and 8 streams: tokens/s, median [lowest, highest] of the rounds."
    return [text]


def cells(entry: dict[str, Any]) -> tuple[str, ...]:
    distance = entry["text"]["distance"]
    stored = entry["num_bytes"] or entry["packed_bytes"]
    alone = entry.get("weights_alone")
    return (
        entry["label"],
        f"{8 * stored / entry['num_weights']:.2f}",
        f"{stored / 1e6:.2f}",
        f"**{_shown(distance['kl_nats'])}**",
        f"{distance['kl_p99_nats']:.3g}",
        f"{mean_kl(alone):.3g}" if alone else "–",
        f"{_percent(distance['top1_agreement'], 2)}",
        _perplexity(distance["nll_change_nats"]),
        _percent(entry["tasks"]["accuracy"], 1),
        _median(entry, "decode"),
        _median(entry, "8 streams"),
    )


def mean_kl(text: dict[str, Any]) -> float:
    return float(text["distance"]["kl_nats"]["value"])


def _shown(estimate: dict[str, float]) -> str:
    """Value [low, high], as many digits as the value has three of."""
    value = estimate["value"]
    digits = max(0, 2 - math.floor(math.log10(value))) if value > 0 else 6
    ends = ", ".join(f"{estimate[end]:.{digits}f}" for end in ("low", "high"))
    return f"{value:.{digits}f} [{ends}]"


def _percent(estimate: dict[str, float], digits: int) -> str:
    value, low, high = (100 * estimate[name] for name in ("value", "low", "high"))
    return f"{value:.{digits}f} % [{low:.{digits}f}, {high:.{digits}f}]"


def _perplexity(change: dict[str, float]) -> str:
    value, low, high = (100 * math.expm1(change[name]) for name in ("value", "low", "high"))
    return f"{value:+.2f} % [{low:+.2f}, {high:+.2f}]"


def _median(entry: dict[str, Any], row: str) -> str:
    samples = entry.get("speed", {}).get(row)
    if not samples:
        return "–"
    return f"{statistics.median(samples):.0f} [{min(samples):.0f}, {max(samples):.0f}]"
