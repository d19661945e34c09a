"""A results file as Markdown, and its place in docs/performance.md."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from gpu.shapes import CASES, FORMATS, SHAPES, TINY_CASES

BEGIN = "<!-- gpu-check: from here to the end mark, `make gpu-check` writes this -->"
END = "<!-- gpu-check: end -->"
DASH = "–"

Results = dict[str, dict[str, Any]]


def put_table(docs: Path, document: dict[str, Any], results: Path) -> None:
    """Between the marks of a Markdown file. ValueError if it has none."""
    text = docs.read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{docs}: the marks of gpu-check are missing")
    draft = docs.with_name(docs.name + ".part")
    draft.write_text(f"{before}{BEGIN}\n{table(document, results)}\n{END}{after}")
    draft.replace(docs)


def table(document: dict[str, Any], results: Path) -> str:
    parts = [_machine(document, results), _limits(document), _checks(document)]
    for shape in SHAPES:
        parts.append(_model(document, shape))
    parts += [_starts(document), _compiled(document), _law_cost(document), _left_out(document)]
    return "\n\n".join(part for part in parts if part)


def _of(document: dict[str, Any], section: str) -> Results:
    found: Results = document["sections"].get(section, {}).get("results", {})
    return found


def _machine(document: dict[str, Any], results: Path) -> str:
    machine = document["machine"]
    gpu = machine.get("gpu", {})
    name = gpu.get("name", "no GPU: a CPU, Triton interpreted; nothing here says anything of speed")
    packages = ", ".join(
        f"{package} {machine['packages'][package]}"
        for package in ("torch", "triton", "transformers")
        if machine["packages"].get(package)
    )
    driver = f", driver {gpu['driver_version']}" if gpu.get("driver_version") else ""
    small = " Small shapes only." if document["tiny"] else ""
    return (
        f"{name}{driver}, Python {machine['python']}, {packages}; {document['started'][:10]}, "
        f"revision {machine['revision'] or 'unknown'}; all figures in `{results.name}`.{small}"
    )


def _limits(document: dict[str, Any]) -> str:
    roofline = _of(document, "roofline")
    words = []
    for name, unit, scale in (
        ("copy", "TB/s copied", 1e12),
        ("read", "TB/s read", 1e12),
        ("bf16", "TFLOP/s bf16", 1e12),
        ("fp8", "TFLOP/s fp8", 1e12),
    ):
        rate = roofline.get(name, {}).get("per_s")
        words.append(f"{_short(rate / scale)} {unit}" if rate else f"{unit.split()[-1]}: none")
    return "Measured limits: " + ", ".join(words) + "."


def _checks(document: dict[str, Any]) -> str:
    rows = [["check", "passed", "failed"]]
    for name, entry in document["sections"].items():
        if entry["kind"] != "check":
            continue
        checks = {case: one["passed"] for case, one in entry["results"].items() if "passed" in one}
        failed = [case for case, passed in checks.items() if not passed]
        passed = f"{sum(checks.values())} of {len(checks)}"
        if entry["status"] not in ("ok", "failed") or entry.get("error"):
            passed += f" ({entry['status']})"
        rows.append([name, passed, "; ".join(failed) or DASH])
    return _grid(rows) if len(rows) > 1 else ""


def _model(document: dict[str, Any], shape: str) -> str:
    ours = {weights: _of(document, f"{shape} {weights}") for weights in FORMATS}
    peer = _of(document, f"{shape} transformers")
    if not any(ours.values()):
        return ""
    head = [shape, *FORMATS, "transformers bf16", "trimtab bf16 / transformers"]
    rows = [head]
    for case in TINY_CASES if document["tiny"] else CASES:
        cells = [_decode_cell(ours[weights].get(case.name)) for weights in FORMATS]
        theirs, own = peer.get(case.name, {}), ours["bf16"].get(case.name, {})
        ratio = DASH
        if "tokens_per_s" in theirs and "tokens_per_s" in own:
            ratio = f"**{own['tokens_per_s'] / theirs['tokens_per_s']:.2f}**"
        words = f"{case.streams} streams" if case.streams > 1 else "1 stream"
        cells += [_rate_cell(theirs), ratio]
        rows.append([f"{words}, {case.prompt}+{case.output}", *cells])
    names = {name for results in ours.values() for name in results}
    for name in sorted((n for n in names if n.startswith("prefill")), key=_number):
        rows.append([name, *(_prefill_cell(ours[w].get(name)) for w in FORMATS), DASH, DASH])
    for name in sorted((n for n in names if n.startswith("busy")), key=_number):
        label = f"GPU busy, {_number(name)} decoding"
        rows.append([label, *(_busy_cell(ours[w].get(name)) for w in FORMATS), DASH, DASH])
    loads = [_load_cell(ours[weights].get("open loop")) for weights in FORMATS]
    rows.append(["requests as they come", *loads, DASH, DASH])
    about = peer.get("load", {}).get("about")
    note = (
        "Streams begin together: decode tokens/s while all decode, share of the roofline of that "
        "step (bytes over the copy rate, or arithmetic over the matmul rate, whichever is more); "
        "then all tokens over all time, which is what the last column compares."
    )
    return _grid(rows) + "\n\n" + note + (f" Peer: {about}." if about else "")


def _decode_cell(result: dict[str, Any] | None) -> str:
    if not result or "tokens_per_s" not in result:
        return _error_cell(result)
    text = ""
    if "decode_tokens_per_s" in result:
        text = f"**{_short(result['decode_tokens_per_s'])}**"
        text += f" {100 * result['of_limit']:.0f} %" if "of_limit" in result else ""
        text += "; "
    return f"{text}{_short(result['tokens_per_s'])} in all"


def _rate_cell(result: dict[str, Any]) -> str:
    if "tokens_per_s" not in result:
        return _error_cell(result)
    return f"{_short(result['tokens_per_s'])} in all"


def _prefill_cell(result: dict[str, Any] | None) -> str:
    if not result or "tokens_per_s" not in result:
        return _error_cell(result)
    share = f" {100 * result['of_limit']:.0f} %" if "of_limit" in result else ""
    return f"**{_short(result['tokens_per_s'])}**{share}"


def _busy_cell(result: dict[str, Any] | None) -> str:
    if not result or "share" not in result:
        return _error_cell(result)
    return f"{100 * result['share']:.1f} %"


def _load_cell(result: dict[str, Any] | None) -> str:
    if not result or "ttft_p50_s" not in result:
        return _error_cell(result)
    milliseconds = [
        f"{1000 * result[f'{kind}_p{percent}_s']:.0f}"
        for kind in ("ttft", "itl")
        for percent in (50, 99)
        if f"{kind}_p{percent}_s" in result
    ]
    names = ("TTFT p50", "p99", "ITL p50", "p99")
    spans = ", ".join(f"{name} {value}" for name, value in zip(names, milliseconds, strict=False))
    return f"{result['rate']:.3g}/s: {spans} ms"


def _error_cell(result: dict[str, Any] | None) -> str:
    return "failed" if result and "error" in result else DASH


def _starts(document: dict[str, Any]) -> str:
    keys = ("import_s", "executor_s", "capture_s", "first_token_s", "start_s")
    rows = [
        ["qwen3-0.6b bf16, seconds", "imports", "weights, room", "graphs", "first token", "all"]
    ]
    for name, one in _of(document, "starts").items():
        cells = (_short(one[key]) if key in one else _error_cell(one) for key in keys)
        rows.append([name, *cells])
    if len(rows) == 1:
        return ""
    return _grid(rows) + "\n\nThe second start finds kernels and what a step takes of the memory."


def _compiled(document: dict[str, Any]) -> str:
    head = ["torch.compile, which is not used", "eager, us", "compiled, us", "compilation, s"]
    rows = [[*head, "same bits", "keeps the law"]]
    for name, one in _of(document, "torch.compile").items():
        if "compile_s" not in one:
            continue
        largest = max(_number(key.replace("_", " ")[:-2]) for key in one if key.startswith("eager"))
        times = (f"{1e6 * one[f'{kind}_{largest}_s']:.1f}" for kind in ("eager", "compiled"))
        words = ("yes" if one[key] else "no" for key in ("same_bits", "rows_invariant"))
        rows.append([f"{name}, {largest} rows", *times, _short(one["compile_s"]), *words])
    return _grid(rows) if len(rows) > 1 else ""


def _law_cost(document: dict[str, Any]) -> str:
    results = _of(document, "law cost")
    names = ["vendor", "ours"]
    heads = ["the law's cost", "vendor, us", "ours, us", "ours / vendor", "vendor keeps the law"]
    if any("flashinfer_s" in one for one in results.values()):
        names.append("flashinfer")
        heads += ["FlashInfer, us", "it keeps the law"]
    rows = [heads]
    for name, one in results.items():
        if "ours_of_vendor" not in one:
            continue
        times = [f"{1e6 * one[f'{who}_s']:.1f}" if f"{who}_s" in one else DASH for who in names]
        keeps = [
            {True: "yes", False: "no", None: DASH}[one.get(f"{who}_rows_invariant")]
            for who in ("vendor", "flashinfer")
        ]
        row = [name, *times[:2], f"{one['ours_of_vendor']:.2f}", keeps[0]]
        rows.append([*row, *times[2:], *keeps[1 : len(names) - 1]])
    if len(rows) == 1:
        return ""
    note = (
        "Products: the four of a layer, bf16. Attention: one prompt, one layer; decode: one row "
        "each of so many sequences, of such a context."
    )
    return f"{_grid(rows)}\n\n{note}"


def _left_out(document: dict[str, Any]) -> str:
    lines = []
    for name, entry in document["sections"].items():
        if entry["status"] not in ("ok", "failed", "running") or (
            entry["status"] == "failed" and entry.get("error")
        ):
            lines.append(f"- {name}: {entry['status']}: {entry.get('error', '')}".rstrip(": "))
        reasons: dict[str, list[str]] = {}
        for one in entry["left_out"]:
            reasons.setdefault(one["why"].split(":")[0], []).append(one["case"])
        lines += [f"- {name}: {', '.join(cases)}: {why}" for why, cases in reasons.items()]
    return "\n".join(["Left out:", "", *lines]) if lines else "Nothing was left out."


def _grid(rows: Sequence[Sequence[str]]) -> str:
    lines = [_row(rows[0]), _row(["---"] * len(rows[0])), *(_row(row) for row in rows[1:])]
    return "\n".join(lines)


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |"


def _number(name: str) -> int:
    return int(name.rsplit(" ", 1)[1])


def _short(value: float) -> str:
    """Three digits, thousands set apart, without an exponent."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
