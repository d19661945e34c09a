"""What each way to compress the built-in model costs in quality, and what it gives.

    python benchmarks/compression.py --work DIR --json benchmarks/results/compression.json
    python benchmarks/compression.py --work DIR --json benchmarks/results/compression.json --speed 3
    python benchmarks/compression.py --table benchmarks/results/compression.json

The first makes every checkpoint and measures its quality; it goes on where it was interrupted. The
second adds how fast those run that have been measured, in rounds that take them in turn (leave the
machine alone meanwhile). All distances are from the model in float32 throughout, on windows of its
held-out text.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from compression_subjects import Subject, make, subjects
from compression_tables import render
from trimtab.bench.machine import cpu_name
from trimtab.executors.cpu import select_isa

BASELINE = "baseline"  # the name of its files in the work directory
ENTRY_SECONDS = 3600


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Every entry that the document does not hold yet, and it is written after each; or the speed
    of those that it holds."""
    document = _started(args)
    wanted = _chosen(args.only)
    if args.speed:
        _add_speed(document, wanted, args)
        _save(document, args.json)
        return document
    for subject in wanted:
        known = document["results"].get(subject.label)
        if known is not None and not known["error"]:
            continue
        say(subject.label)
        document["results"][subject.label] = _in_child(subject, args)
        _save(document, args.json)
    return document


def _started(args: argparse.Namespace) -> dict[str, Any]:
    settings = {
        "windows": args.windows,
        "length": args.length,
        "tasks": args.tasks,
        "cpu": cpu_name(),
        "isa": select_isa(),
    }
    document: dict[str, Any] = {"settings": settings, "results": {}}
    if args.json and args.json.exists():
        document = json.loads(args.json.read_text())
        if document["settings"] != settings:
            raise SystemExit(f"{args.json} was measured with other settings: use another file")
    return document


def _chosen(only: str) -> list[Subject]:
    parts = [part for part in only.split(",") if part] or [""]
    chosen = [s for s in subjects() if any(part in s.label for part in parts)]
    if not chosen:
        raise SystemExit(f"no entry matches {only!r}")
    return chosen


def _in_child(subject: Subject, args: argparse.Namespace) -> dict[str, Any]:
    """An entry measured in a process of its own, which may die without taking others with it."""
    out = args.work / "entry.json"
    out.unlink(missing_ok=True)
    command = [sys.executable, str(Path(__file__)), "--work", str(args.work), "--json", str(out)]
    command += ["--windows", str(args.windows), "--length", str(args.length)]
    command += ["--tasks", str(args.tasks), "--entry", subject.label]
    entry = {**subject.as_json(), "error": ""}
    try:
        done = subprocess.run(
            command, stderr=subprocess.PIPE, text=True, timeout=ENTRY_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return entry | {"error": f"not done in {ENTRY_SECONDS} s"}
    if done.returncode == 0 and out.exists():
        measured: dict[str, Any] = json.loads(out.read_text())
        return entry | measured
    lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
    say(f"    {lines[-1]}")
    return entry | {"error": lines[-1]}


def measure_entry(args: argparse.Namespace) -> dict[str, Any]:
    """In the child: the checkpoint made, if it is not there yet, and its quality."""
    from compression_quality import Baseline, quality

    (subject,) = (s for s in subjects() if s.label == args.entry)
    made = make(subject, args.work / "models", say)
    baseline = Baseline(args.work / BASELINE, args.windows, args.length)
    return {**made.as_json(), **quality(made, baseline, args.tasks)}


def _add_speed(document: dict[str, Any], wanted: list[Subject], args: argparse.Namespace) -> None:
    """Tokens a second of every entry that has a quality."""
    from compression_quality import open_engine
    from trimtab.bench.speed import Plan, measure
    from trimtab.bench.speed import Subject as Measured

    found = document["results"]
    measured = {}
    for subject in wanted:
        if subject.label in found and not found[subject.label]["error"]:
            engine = open_engine(make(subject, args.work / "models", say))
            vocab_size = engine.info.vocab_size
            measured[subject.label] = Measured(subject.label, engine, vocab_size)
    say(f"speed of {len(measured)}: {args.speed} rounds")
    measure(list(measured.values()), Plan(prefill=(512,), streams=(8,), rounds=args.speed))
    for label, one in measured.items():
        found[label]["speed"] = one.samples
        one.engine.close()


def _save(document: dict[str, Any], path: Path | None) -> None:
    if path is not None:
        staged = path.with_suffix(".partial")
        staged.write_text(json.dumps(document, indent=1) + "\n")
        staged.replace(path)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, help="checkpoints, and what the baseline said")
    parser.add_argument("--only", default="", help="entries whose label contains one of a,b,c")
    parser.add_argument("--windows", type=int, default=64, help="of the held-out text")
    parser.add_argument("--length", type=int, default=512, help="tokens of a window")
    parser.add_argument("--tasks", type=int, default=399, help="so many of the model's tasks")
    parser.add_argument("--speed", type=int, default=0, help="measure speed only, in N rounds")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--table", type=Path, help="show this JSON and measure nothing")
    parser.add_argument("--entry", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not args.work and not args.table:
        parser.error("--work DIR or --table FILE is needed")
    if args.windows < 2 or args.length < 2 or args.tasks < 1:
        parser.error("at least 2 windows of 2 tokens, and 1 task, are needed")
    return args


def main() -> None:
    args = parse_args()
    if args.table:
        print("\n".join(render(json.loads(args.table.read_text()))))
        return
    args.work = args.work.resolve()
    args.work.mkdir(parents=True, exist_ok=True)
    if args.entry:
        os.environ.setdefault("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))
        args.json.write_text(json.dumps(measure_entry(args)))
        return
    print("\n".join(render(run(args))))


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
