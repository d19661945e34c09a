"""What quantization costs in quality: trimtab beside its peers, on the built-in model.

    python benchmarks/quality.py --work DIR --json benchmarks/results/quality.json
    python benchmarks/quality.py --table benchmarks/results/quality.json

Every engine scores the same held-out text in its quantized formats and, as the reference, in
float32 throughout: so an engine is compared with itself, and differences between engines count for
nothing. Of each position, with p of the reference and q of the quantized model:

    KL          sum of p log(p / q) over the vocabulary, in nats: mean and 99th percentile
    top-1       share of positions where both rate the same token highest
    perplexity  of the quantized model on the text itself
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from contenders import ConversionError, convert
from measuring import PeerError, Process
from peers.environments import InstallError, install
from tables import versions
from trimtab import builtin
from trimtab.bench.machine import cpu_name
from trimtab.evaluation.divergence import divergence, log_softmax
from trimtab.executors.cpu import select_isa
from trimtab.tokenization.loading import load_tokenizer


@dataclass(frozen=True)
class Subject:
    environment: str
    format: str
    bits: int  # of the weights, nominally: the group it is listed in; 32 for the reference
    head: str
    kv: str
    converter: str = ""

    @property
    def label(self) -> str:
        return f"{self.environment} {self.format}"

    @property
    def is_reference(self) -> bool:
        return self.bits == 32


def _trimtab(name: str, bits: int, head: str) -> list[Subject]:
    return [Subject("trimtab", f"{name} kv={kv}", bits, head, kv) for kv in ("bf16", "int8")]


# The reference of an engine stands before its other formats.
SUBJECTS = (
    Subject("trimtab", "f32 kv=f32", 32, "f32", "f32"),
    *_trimtab("bf16", 16, "bf16"),
    *_trimtab("int8", 8, "int8"),
    *_trimtab("int8-g32", 8, "int8-g32"),
    *_trimtab("int4-g32", 4, "int8"),
    *_trimtab("int4-g64", 4, "int8"),
    *_trimtab("int4-g128", 4, "int8"),
    Subject("llama_cpp", "F32", 32, "f32", "f32", "gguf"),
    Subject("llama_cpp", "BF16", 16, "bf16", "f16", "gguf"),
    Subject("llama_cpp", "Q8_0", 8, "Q8_0", "f16", "gguf"),
    # Q6_K and Q4_K need rows of a multiple of 256; in others llama.cpp takes these instead.
    Subject("llama_cpp", "Q4_0", 4, "Q8_0", "f16", "gguf"),
    Subject("llama_cpp", "Q4_K_M", 4, "Q8_0", "f16", "gguf"),
    Subject("openvino", "fp32", 32, "f32", "f32", "optimum"),
    Subject("openvino", "fp16", 16, "fp16", "u8", "optimum"),
    Subject("openvino", "int8", 8, "int8", "u8", "optimum"),
    Subject("openvino", "int4", 4, "int8", "u8", "optimum"),
    Subject("onnxruntime", "fp32", 32, "f32", "f32", "builder"),
    Subject("onnxruntime", "int4", 4, "int4", "f32", "builder"),
)


def windows_of(path: Path, count: int, length: int) -> list[list[int]]:
    """Windows that begin with the first token of a document, evenly spread over the text."""
    tokenizer = load_tokenizer(builtin.target_path())
    ids = tokenizer.encode(path.read_text(encoding="utf-8"))
    starts = np.linspace(0, len(ids) - length, count).astype(int)
    return [[ids[0], *ids[start + 1 : start + length]] for start in starts]


def compare(reference: np.ndarray, logits: np.ndarray, windows: list[list[int]]) -> dict[str, Any]:
    """Logits [windows, length, vocabulary]. Standard errors are over the windows."""
    divergences, agreements, losses = [], [], []
    for ours, theirs, ids in zip(logits, reference, windows, strict=True):
        found = divergence(theirs, ours, np.array(ids))
        divergences.append(found.kl)
        agreements.append(found.agrees)
        losses.append(-log_softmax(ours[:-1])[np.arange(len(ids) - 1), ids[1:]])
    means = [values.mean() for values in divergences]
    return {
        "kl_mean": float(np.mean(divergences)),
        "kl_standard_error": float(np.std(means, ddof=1) / len(means) ** 0.5),
        "kl_p99": float(np.quantile(divergences, 0.99)),
        "top1": float(np.mean(agreements)),
        "perplexity": float(np.exp(np.mean(losses))),
    }


def score(
    subject: Subject, copy: Path, windows: list[list[int]], threads: int, root: Path, out: Path
) -> tuple[np.ndarray, str]:
    """The subject's logits, and its version and settings. Raises PeerError."""
    options = {
        "threads": threads,
        "max_context": len(windows[0]),
        "max_streams": 1,
        "max_tokens": len(windows[0]),
        "format": subject.format,
    }
    adapter = f"{subject.environment}_logits"
    process = Process(subject.environment, adapter, copy, options, root)
    try:
        process.ask({"windows": windows, "logits": str(out)})
        return np.load(out), process.about()
    finally:
        process.close()
        out.unlink(missing_ok=True)


def run(subjects: list[Subject], windows: list[list[int]], threads: int, root: Path) -> list[Any]:
    """One entry for each subject; an engine without a reference has errors only."""
    models = root / "builtin"
    models.mkdir(parents=True, exist_ok=True)
    references: dict[str, np.ndarray] = {}
    results = []
    for subject in subjects:
        entry: dict[str, Any] = {**asdict(subject), "label": subject.label, "error": ""}
        results.append(entry)
        say(subject.label)
        try:
            python = install(root, subject.environment)
            copy = convert(subject, python, builtin.target_path(), models)
            with tempfile.TemporaryDirectory(dir=root) as scratch:
                out = Path(scratch) / "logits.npy"
                logits, entry["about"] = score(subject, copy, windows, threads, root, out)
            if subject.is_reference:
                references[subject.environment] = logits
            if subject.environment not in references:
                raise PeerError("its reference failed")
            own = references[subject.environment]
            entry.update(compare(own, logits, windows))
            if subject.is_reference:
                first = next(iter(references.values()))
                entry["kl_to_first_reference"] = compare(first, logits, windows)["kl_mean"]
        except (InstallError, ConversionError, PeerError) as error:
            entry["error"] = str(error)
            say(f"    {entry['error']}")
    return results


def render(document: dict[str, Any]) -> list[str]:
    """Markdown: by bits, best first."""
    settings = document["settings"]
    results = [entry for entry in document["results"] if not entry["error"]]
    lines = [
        f"Built-in model, {settings['windows']} windows of {settings['length']} tokens of its "
        f"held-out text. {settings['cpu']}, path {settings['isa']}. KL in nats, against the same "
        "engine in float32 throughout; ± is the standard error over the windows.",
        "",
        "| bits | | output head | KV cache | mean KL | 99th percentile | top-1 | perplexity |",
        "|---" * 8 + "|",
    ]
    for entry in sorted(results, key=lambda entry: (-entry["bits"], entry["kl_mean"])):
        if entry["bits"] == 32:
            continue
        name = entry["format"].partition(" ")[0]
        cells = (
            str(entry["bits"]),
            f"{entry['environment']} {name}",
            entry["head"],
            entry["kv"],
            f"**{entry['kl_mean']:.3g}** ± {entry['kl_standard_error']:.1g}",
            f"{entry['kl_p99']:.3g}",
            f"{100 * entry['top1']:.2f} %",
            f"{entry['perplexity']:.4f}",
        )
        lines.append("| " + " | ".join(cells) + " |")
    references = [entry for entry in results if entry["bits"] == 32]
    if len(references) > 1:
        first, *others = references
        distances = ", ".join(
            f"{entry['environment']} {entry['kl_to_first_reference']:.1g}" for entry in others
        )
        lines += ["", f"Mean KL of the references from {first['environment']}'s: {distances}."]
    lines += ["", *versions(results)]
    lines += [f"- {e['label']}: {e['error']}" for e in document["results"] if e["error"]]
    return lines


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, help="environments and converted models")
    parser.add_argument("--only", default="", help="formats whose label contains one of a,b,c")
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--length", type=int, default=512, help="tokens of a window")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--table", type=Path, help="show this JSON and measure nothing")
    args = parser.parse_args()
    if not args.work and not args.table:
        parser.error("--work DIR or --table FILE is needed")
    if args.windows < 2 or args.length < 2:
        parser.error("at least 2 windows of 2 tokens are needed")
    return args


def main() -> None:
    args = parse_args()
    if args.table:
        print("\n".join(render(json.loads(args.table.read_text()))))
        return
    wanted = [part for part in args.only.split(",") if part] or [""]
    chosen = [s for s in SUBJECTS if any(part in s.label for part in wanted)]
    engines = {subject.environment for subject in chosen}
    subjects = [s for s in SUBJECTS if s in chosen or (s.is_reference and s.environment in engines)]
    if not subjects:
        raise SystemExit(f"no format matches {args.only!r}")
    windows = windows_of(builtin.heldout_path(), args.windows, args.length)
    threads = len(os.sched_getaffinity(0))
    document = {
        "settings": {
            "model": "builtin",
            "windows": args.windows,
            "length": args.length,
            "cpu": cpu_name(),
            "isa": select_isa(),
        },
        "results": run(subjects, windows, threads, args.work.resolve()),
    }
    shutil.rmtree(args.work / "caches", ignore_errors=True)
    if args.json:
        args.json.write_text(json.dumps(document, indent=1) + "\n")
    print("\n".join(render(document)))


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
