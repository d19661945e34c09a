"""Does everything work on this machine's GPU, and how fast is it?

    make gpu-check
    python benchmarks/gpu_check.py --device cpu --tiny          all of it on a CPU, in small

Needs Python, numpy, torch and Triton, and neither a network nor a build: it runs from the source
tree. In under eight minutes: what the card can do (roofline); the kernels against their references;
models against an eager decoder and transformers; the law that a schedule never changes an answer;
then Llama-3.1-8B and Qwen3-0.6B shapes with random weights in bf16, fp8 and int4, streams at once
and requests as they come; transformers' continuous batching beside them; what the law costs.

One JSON holds everything, is current at any time, and says what was left out and why. Exit status:
0 if every check passed and every section ended, 1 if not, 2 for a mistake in the arguments.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

from gpu.sections import Section, all_sections  # noqa: E402
from trimtab.errors import UserError  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "gpu"
DOCUMENT = ROOT / "docs" / "performance.md"
MINUTES = 7.4  # the last section may take its grace beyond that
TINY_MINUTES = 9.0


def main() -> int:
    args = parse_arguments()
    if args.job is not None:
        from gpu.job import run_job

        run_job(json.loads(args.job))
        return 0
    if args.table is not None:
        print(table_of(args.table))
        return 0
    try:
        return check(args)
    except UserError as error:
        print(f"gpu-check: {error}", file=sys.stderr)
        return 2


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="gpu_check.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small shapes; the only ones on a CPU")
    parser.add_argument("--minutes", type=float, help=f"for everything; {MINUTES:g} by default")
    parser.add_argument(
        "--only", default="", help="sections, or a part of their names; commas between"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="results; benchmarks/results/gpu/NAME.json")
    parser.add_argument(
        "--docs", type=Path, help="put the table there; docs/performance.md after a whole run"
    )
    parser.add_argument("--table", type=Path, help="only print the table of a results file")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    return parser.parse_args()


def check(args: argparse.Namespace) -> int:
    from gpu.context import Settings
    from gpu.machine import describe_machine
    from gpu.running import Runner
    from gpu.tables import put_table

    sections = chosen_sections(args)
    require_device(args)
    machine = describe_machine(args.device)
    path = args.json or default_path(args, machine)
    whole = args.device == "cuda" and not args.tiny and not args.only
    docs = args.docs or (DOCUMENT if whole else None)
    minutes = args.minutes or (TINY_MINUTES if args.tiny else MINUTES)
    document: dict[str, Any] = {
        "schema": 1,
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "tiny": args.tiny,
        "seed": args.seed,
        "machine": machine,
    }
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as scratch:
        runner = Runner(
            Settings(args.device, args.tiny, args.seed),
            60 * minutes,
            path,
            Path(scratch),
            document,
            lambda text: print(f"[{time.monotonic() - started:5.0f} s] {text}", flush=True),
            lambda: put_table(docs, document, path) if docs else None,
        )
        runner.run(sections)
    print(f"results: {path}" + (f"; table: {docs}" if docs else ""))
    states = [entry["status"] for entry in document["sections"].values()]
    return 0 if all(state in ("ok", "skipped") for state in states) else 1


def chosen_sections(args: argparse.Namespace) -> list[Section]:
    words = [word.strip() for word in args.only.split(",") if word.strip()]
    sections = [one for one in all_sections() if one.tiny or not args.tiny]
    names = [one.name for one in sections]
    for word in words:
        if not any(word in name for name in names):
            raise UserError(f"--only {word}: no such section; there are {', '.join(names)}")
    if not words:
        return sections
    return [
        one
        for one in sections
        if any(word == one.name or (word not in names and word in one.name) for word in words)
    ]


def require_device(args: argparse.Namespace) -> None:
    if args.device == "cpu" and not args.tiny:
        raise UserError("--device cpu needs --tiny: the shapes of 8 B parameters are for a GPU")
    try:
        import torch
    except ImportError as error:
        raise UserError(f"torch cannot be imported: {error}") from None
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError("torch finds no CUDA device here; --device cpu --tiny runs without one")


def default_path(args: argparse.Namespace, machine: dict[str, Any]) -> Path:
    if args.tiny or args.only:
        return ROOT / "build" / f"gpu-check-{args.device}{'-tiny' if args.tiny else ''}.json"
    name = "-".join(machine["gpu"]["name"].lower().split())
    return RESULTS / f"{name}.json"


def table_of(path: Path) -> str:
    from gpu.tables import table

    return table(json.loads(path.read_text()), path)


if __name__ == "__main__":
    sys.exit(main())
