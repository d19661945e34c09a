"""The JSON of compare.py as Markdown. Reads nothing but that document."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

GROUPS = ("bf16", "int8", "int4")
LOWER_IS_BETTER = ("prefix", "start", "peak")
# What trimtab is meant to reach: against the best peer of the same run, or by itself.
TARGETS: dict[str, dict[str, str]] = {
    "decode 128": {"bf16": "1.0 ×, 85 % of limit", "int8": "1.3 ×", "int4": "1.5 ×"},
    "prefill 512": {"bf16": "1.0 ×", "int8": "1.25 ×", "int4": "2.0 ×"},
    "prefill 2048": {"bf16": "1.2 ×", "int8": "1.35 ×", "int4": "1.8 ×"},
    "8 streams": {"bf16": "1.3 ×", "int8": "1.8 ×", "int4": "2.0 ×"},
    "16 streams": {"bf16": "1.4 ×", "int8": "1.8 ×", "int4": "2.3 ×"},
    "neighbour": dict.fromkeys(("bf16", "int8", "int4"), "65 % of undisturbed"),
    "start": {"int4": "0.6 s"},
    "decode 32768": dict.fromkeys(("bf16", "int8", "int4"), "75 % of limit"),
}


def series(result: dict[str, Any]) -> dict[str, list[float]]:
    """Samples by measure, over the rounds."""
    samples: dict[str, list[float]] = {}
    for phases in result["rounds"]:
        for values in phases.values():
            for name, value in values.items():
                samples.setdefault(name, []).append(value)
    return samples


def render(document: dict[str, Any]) -> list[str]:
    """A section for each group: a line a measure, a column a contender; then who they are."""
    results, bandwidth = document["results"], document["machine"]["bandwidth"]
    lines = preamble(document)
    for group in GROUPS:
        members = [result for result in results if result["group"] == group]
        if members:
            typical = statistics.median(bandwidth) / max(bandwidth)
            lines += ["", f"### {group}", "", *group_table(group, members, typical)]
    lines += ["", "### Versions and settings", "", *versions(results)]
    for result in results:
        lines += [f"- {result['label']}, {k}: {error}" for k, error in result["errors"].items()]
    return lines


def versions(results: Sequence[dict[str, Any]]) -> list[str]:
    """A line for each environment: the version once, settings with the formats that have them."""
    lines = []
    for environment in dict.fromkeys(result["environment"] for result in results):
        formats: dict[str, list[str]] = {}
        for result in results:
            if result["environment"] == environment and result.get("about"):
                version, _, settings = result["about"].partition("; ")
                formats.setdefault(settings, []).append(result["format"])
        if len(formats) == 1:
            lines.append(f"- {version}; {next(iter(formats))}")
        elif formats:
            settings = "; ".join(f"{', '.join(names)}: {text}" for text, names in formats.items())
            lines.append(f"- {version}; {settings}")
    return lines


def preamble(document: dict[str, Any]) -> list[str]:
    settings, machine = document["settings"], document["machine"]
    readings = [reading / 1e9 for reading in machine["bandwidth"]]
    best, median, lowest = max(readings), statistics.median(readings), min(readings)
    rounds = max((len(result["rounds"]) for result in document["results"]), default=0)
    return [
        f"{settings['model']} shape, random weights. {machine['cpu']}, path {machine['isa']}, "
        f"{machine['threads']} threads on as many cores. Rounds: {rounds}, contenders in turn, "
        f"fresh processes for each. Read bandwidth in the run: {best:.1f} GB/s at best, "
        f"{median:.1f} median, {lowest:.1f} lowest.",
        "",
        "Cells: **median** [lowest, highest], tokens/s where no unit is named; percent of what "
        "the best bandwidth and arithmetic of the run permit in the contender's own formats, and "
        "of decode also what the median bandwidth permits. "
        "Last columns: the best of trimtab's over the best peer (inverted where less is "
        "better), so above 1 is ahead; and what is aimed at.",
    ]


def group_table(group: str, members: Sequence[dict[str, Any]], typical: float) -> list[str]:
    """`typical`: the median bandwidth of the run, as a share of the best."""
    samples = {result["label"]: series(result) for result in members}
    measures = sorted({name for values in samples.values() for name in values}, key=order)
    ours = [result for result in members if result["environment"] == "trimtab"]
    peers = [result for result in members if result["environment"] != "trimtab"]
    compared = bool(ours and peers)
    aims = any(group in TARGETS.get(name, {}) for name in measures) and bool(ours)
    head = ["", *(result["label"] for result in members)]
    head += ["ours / best peer"] * compared + ["aim"] * aims
    rows = [
        ["output head", *(result["head"] for result in members)],
        ["KV cache", *(result["kv"] for result in members)],
    ]
    for name in measures:
        cells = [title(name), *(cell(name, result, samples, typical) for result in members)]
        if compared:
            cells.append(ratio(name, ours, peers, samples))
        if aims:
            cells.append(TARGETS.get(name, {}).get(group, ""))
        rows.append(cells)
    width = len(head)
    padded = [row + [""] * (width - len(row)) for row in rows]
    return ["| " + " | ".join(row) + " |" for row in (head, ["---"] * width, *padded)]


def order(name: str) -> tuple[int, int, str]:
    """Rows from one stream to many, then what surrounds them; by length within a kind."""
    kinds = ("decode", "prefill", "streams", "neighbour", "prefix", "start", "peak")
    kind = next(i for i, word in enumerate(kinds) if word in name)
    numbers = [int(word) for word in name.split() if word.isdigit()]
    if kind == 4:
        return kind, 0 if "miss" in name else 1, name
    if "cold" in name:
        return kind, -1, name
    return kind, numbers[0] if numbers else 0, name


def title(name: str) -> str:
    words = name.split()
    if words[0] == "decode":
        return f"decode after {words[1]}"
    if words[0] == "peak":
        if words[-1].isdigit():
            return f"peak memory, context {words[-1]}, GB"
        return f"peak memory{', first start' if 'cold' in words else ''}, GB"
    return {
        "neighbour": "decode beside a busy neighbour",
        "prefix miss": "first token of 2048 + 32, s",
        "prefix hit": "the same with 32 others, s",
        "start cold": "process start to first token, first time, s",
        "start": "process start to first token, later, s",
    }.get(name, name)


def cell(
    name: str, result: dict[str, Any], samples: dict[str, dict[str, list[float]]], typical: float
) -> str:
    own = samples[result["label"]]
    values = own.get(name, [])
    if not values:
        return "–"
    text = f"**{short(statistics.median(values))}**"
    if len(values) > 1:
        text += f" [{short(min(values))}, {short(max(values))}]"
    ceiling = result["ceilings"].get(name)
    if ceiling:
        share = 100 * statistics.median(values) / ceiling
        text += f" {share:.0f} %"
        if name.startswith("decode"):
            text += f", {share / typical:.0f} %"
    if name == "neighbour":
        mains = [phases["main"] for phases in result["rounds"] if name in phases.get("main", {})]
        shares = [100 * main[name] / main["decode 128"] for main in mains]
        text += f" {statistics.median(shares):.0f} % of undisturbed"
    return text


def short(value: float) -> str:
    """Three digits, without an exponent."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def ratio(
    name: str,
    ours: Sequence[dict[str, Any]],
    peers: Sequence[dict[str, Any]],
    samples: dict[str, dict[str, list[float]]],
) -> str:
    inverted = name.startswith(LOWER_IS_BETTER)

    def best(results: Sequence[dict[str, Any]]) -> tuple[float, str] | None:
        medians = [
            (statistics.median(samples[result["label"]][name]), result["label"])
            for result in results
            if samples[result["label"]].get(name)
        ]
        return (min if inverted else max)(medians, default=None)

    own, peer = best(ours), best(peers)
    if own is None or peer is None:
        return "–"
    value = peer[0] / own[0] if inverted else own[0] / peer[0]
    return f"**{value:.2f}** × {peer[1]}"
