"""What speculation gains on a model whose guesses are honest: the inflated built-in model.

    python benchmarks/make_model.py --inflate builtin --parameters 600M --out /tmp/inflated-600m
    python benchmarks/speculation.py /tmp/inflated-600m --heads /tmp/inflated-600m/heads

The same prompts with each proposer, with all of them and with none, interleaved, medians of the
rounds: held-out code, one by one and sixteen at a time; and what a step costs with so many rows of
one sequence.

With --editor, edits by lookup as well: functions of the held-out code to write down again with one
name replaced, so that the prompt contains nearly all of the answer. The built-in model copies next
to nothing; the editor is the same model after a lesson in copying (tools/builtin_model/
train_edits.py), inflated likewise:

    python benchmarks/make_model.py --inflate DIR/editor --parameters 600M --out /tmp/editor-600m
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from speculation_prompts import code_prompts, rename_prompts
from trimtab import LLM
from trimtab.bench.machine import cpu_name
from trimtab.bench.speculation import SpeculationPlan, measure_speculation
from trimtab.builtin import draft_path
from trimtab.engine.speculation.steps import greedy_sampling
from trimtab.executors.base import StepBatch

ROWS = (1, 2, 3, 4, 5, 8, 16)
CONTEXT = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--draft", type=Path, default=draft_path())
    parser.add_argument("--heads", type=Path)
    parser.add_argument("--editor", type=Path, help="a model that edits, for that workload")
    parser.add_argument("--weights", default="int8")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--output-tokens", type=int, default=96)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 16], help="of code")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument(
        "--together", action="store_true", help="all proposers together and off, no single ones"
    )
    parser.add_argument("--json", type=Path, help="write the result there, too")
    args = parser.parse_args()
    settings: dict[str, Any] = {"speculative": "lookup+draft", "draft_model": str(args.draft)}
    if args.heads is not None:
        settings |= {"speculative": "lookup+heads+draft", "draft_heads": str(args.heads)}
    load = os.getloadavg()[0]  # what else the machine did, before and after
    with LLM(str(args.model), weights=args.weights, prefix_cache=False, **settings) as llm:
        found: dict[str, Any] = {
            "cpu": cpu_name(),
            "plan": llm.engine.info.executor,
            "rows": row_costs(llm, 4 * args.rounds),
        }
        code = [{"prompt": prompt} for prompt in code_prompts(args.prompts)]
        found["code"] = measure(llm, args, args.model, "held-out code", code, tuple(args.streams))
        write(args.json, found, load)
    if args.editor is not None:
        settings = {"speculative": "lookup", "prefix_cache": False}
        with LLM(str(args.editor), weights=args.weights, **settings) as llm:
            edits = [
                {"messages": [{"role": "user", "content": prompt}]}
                for prompt in rename_prompts(args.prompts)
            ]
            found["edit"] = measure(llm, args, args.editor, "edits", edits, (1,))
            write(args.json, found, load)


def write(path: Path | None, found: dict[str, Any], load: float) -> None:
    """`load`: the machine's when it began."""
    if path is not None:
        path.write_text(json.dumps(found | {"load": [load, os.getloadavg()[0]]}, indent=1) + "\n")


def measure(
    llm: LLM,
    args: argparse.Namespace,
    model: Path,
    workload: str,
    prompts: Sequence[dict[str, Any]],
    streams: tuple[int, ...],
) -> dict[str, Any]:
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
        file.writelines(json.dumps(prompt) + "\n" for prompt in prompts)
        file.flush()
        plan = SpeculationPlan(
            streams,
            args.rounds,
            args.output_tokens,
            args.temperature,
            Path(file.name),
            each=not args.together,
        )
        report = measure_speculation(llm, str(model), plan, progress)
    print(f"\n{model.name}, {workload}:", *report.lines()[1:], sep="\n", flush=True)
    return report.as_json() | {"workload": workload, "model": model.name}


def progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def row_costs(llm: LLM, rounds: int) -> dict[str, float]:
    """By rows of one sequence behind CONTEXT tokens: milliseconds of a step, median."""
    executor = llm.engine.executor
    samples: dict[int, list[float]] = {rows: [] for rows in ROWS}
    executor.execute(_step(0, CONTEXT))
    for round_number in range(rounds + 1):
        for rows in ROWS:
            batch = _step(CONTEXT, rows)
            start = time.perf_counter()
            executor.execute(batch)
            if round_number:  # the first one warms up
                samples[rows].append((time.perf_counter() - start) * 1e3)
    medians = {rows: statistics.median(values) for rows, values in samples.items()}
    for rows, value in medians.items():
        print(f"{rows:>3} rows {value:8.2f} ms  {value / medians[1]:5.2f} x", flush=True)
    return {str(rows): value for rows, value in medians.items()}


def _step(start: int, rows: int) -> StepBatch:
    """`rows` rows from position `start` on of one sequence in the first blocks; logits of all."""
    positions = np.arange(start, start + rows, dtype=np.int32)
    num_blocks = -(-(start + rows) // 16)
    return StepBatch(
        token_ids=np.full(rows, 7, np.int32),
        positions=positions,
        seq_starts=np.array([0, rows], np.int32),
        block_starts=np.array([0, num_blocks], np.int32),
        block_ids=np.arange(num_blocks, dtype=np.int32),
        logit_rows=np.arange(rows, dtype=np.int32),
        sampling=greedy_sampling(positions + np.int32(1)),
    )


if __name__ == "__main__":
    main()
