"""How many drafted tokens the target accepts: by position in the chain, for one model and a draft.

    python benchmarks/speculation_acceptance.py --target builtin --draft src/trimtab/builtin/draft
    python benchmarks/speculation_acceptance.py --temperatures 0 0.8 1 --json

The target answers prompts (speculation_prompts.py); its answers are what they would be under
speculation. A chain that is drafted at some place of an answer is accepted up to its first token
that differs from the answer, and until there the draft has seen nothing but the answer. So one pass
of the draft over prompt and answer tells, for every place, how long the chain from there would
have been accepted. Target and draft choose with the same noise, a function of seed, position and
token id (`SamplingBatch`).

    position i       share of chains of which token i was accepted, of those where i - 1 were
    tokens a step    accepted tokens and the target's own one, on the way that speculation takes

"lookup" is the draft that looks for the longest suffix, of at most --longest tokens, that occurred
before, and proposes what followed its latest occurrence.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from speculation_prompts import code_prompts, edit_prompts
from trimtab import LLM, SamplingParams
from trimtab.builtin import draft_path
from trimtab.checkpoints import open_checkpoint, resolve_model
from trimtab.config import ExecutorConfig
from trimtab.engine.speculation.steps import greedy_sampling
from trimtab.errors import UserError
from trimtab.executors.base import SamplingBatch, StepBatch
from trimtab.executors.cpu import CpuExecutor

Hits = npt.NDArray[np.bool_]  # for each token of an answer: whether the draft chose it
WORKLOADS = {"code": code_prompts, "edit": edit_prompts}
BLOCK = 16
MAX_CHAIN = 8
SEED = 1000  # of the first prompt; the others follow


def answers(
    llm: LLM, prompts: Sequence[str], tokens: int, temperature: float
) -> list[tuple[list[int], list[int]]]:
    """Ids of each prompt and of the target's answer to it."""
    found = []
    for number, prompt in enumerate(prompts):
        params = SamplingParams(max_tokens=tokens, temperature=temperature, seed=SEED + number)
        (result,) = llm.generate([prompt], params)
        found.append((result.prompt_ids, result.outputs[0].token_ids))
    return found


def sampling(rows: int, temperature: float, seed: int, first_position: int) -> SamplingBatch:
    """Of rows that choose the tokens at consecutive positions."""
    positions = np.arange(first_position, first_position + rows, dtype=np.int32)
    batch = greedy_sampling(positions)
    batch.temperature = np.full(rows, temperature, np.float32)
    batch.seeds = np.full(rows, seed, np.uint64)
    return batch


def draft_hits(
    draft: CpuExecutor, prompt: list[int], answer: list[int], temperature: float, seed: int
) -> Hits:
    """What the draft would choose, with the target's noise, after all that comes before."""
    ids = np.array([*prompt, *answer[:-1]], np.int32)
    rows = np.arange(len(prompt) - 1, len(ids), dtype=np.int32)
    blocks = -(-len(ids) // BLOCK)
    batch = StepBatch(
        token_ids=ids,
        positions=np.arange(len(ids), dtype=np.int32),
        seq_starts=np.array([0, len(ids)], np.int32),
        block_starts=np.array([0, blocks], np.int32),
        block_ids=np.arange(blocks, dtype=np.int32),
        logit_rows=rows,
        sampling=sampling(len(rows), temperature, seed, len(prompt)),
    )
    hits: Hits = draft.execute(batch).tokens == np.array(answer)
    return hits


def lookup_hits(prompt: list[int], answer: list[int], shortest: int, longest: int) -> Hits:
    """The same for the longest suffix that occurred before."""
    ids = list(prompt)
    latest: dict[tuple[int, ...], int] = {}  # n-gram -> where its latest occurrence ends

    def note(end: int) -> None:
        for size in range(shortest, min(longest, end) + 1):
            latest[tuple(ids[end - size : end])] = end

    for end in range(1, len(ids)):
        note(end)
    hits = []
    for token in answer:
        sizes = range(min(longest, len(ids)), shortest - 1, -1)
        places = (latest.get(tuple(ids[len(ids) - size :])) for size in sizes)
        place = next((place for place in places if place is not None), None)
        hits.append(place is not None and ids[place] == token)
        note(len(ids))
        ids.append(token)
    return np.array(hits, bool)


def runs(hits: Hits) -> npt.NDArray[np.int64]:
    """From each place on, how many hits there are in a row."""
    lengths, length = np.zeros(len(hits), np.int64), 0
    for place in range(len(hits) - 1, -1, -1):
        length = length + 1 if hits[place] else 0
        lengths[place] = length
    return lengths


def by_position(all_hits: Sequence[Hits]) -> list[float | None]:
    """Acceptance of token 1 .. MAX_CHAIN given those before, over every place of every answer that
    leaves room for the chain."""
    shares: list[float | None] = []
    for position in range(1, MAX_CHAIN + 1):
        lengths = np.concatenate([runs(hits)[: len(hits) - position + 1] for hits in all_hits])
        reached = int((lengths >= position - 1).sum())
        shares.append(float((lengths >= position).sum() / reached) if reached else None)
    return shares


def tokens_a_step(all_hits: Sequence[Hits], chain: int) -> float:
    """Along each answer: a step drafts `chain` tokens and gains the accepted ones and one more."""
    tokens = steps = 0
    for hits in all_hits:
        lengths, place = np.minimum(runs(hits), chain), 0
        while place < len(hits):
            place += int(lengths[place]) + 1
            steps += 1
        tokens += len(hits)
    return tokens / steps


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    config = ExecutorConfig(weights=options.draft_weights, num_blocks=256)
    draft = CpuExecutor(open_checkpoint(resolve_model(options.draft)), config)
    rows = []
    with LLM(options.target, weights=options.weights) as llm:
        for workload in options.workloads:
            prompts = WORKLOADS[workload](options.prompts)
            for temperature in options.temperatures:
                found = answers(llm, prompts, options.tokens, temperature)
                hits = {
                    "draft": [
                        draft_hits(draft, prompt, answer, temperature, SEED + number)
                        for number, (prompt, answer) in enumerate(found)
                    ],
                    "lookup": [
                        lookup_hits(prompt, answer, options.shortest, options.longest)
                        for prompt, answer in found
                    ],
                }
                for proposer, each in hits.items():
                    rows.append(
                        {
                            "workload": workload,
                            "temperature": temperature,
                            "proposer": proposer,
                            "tokens": sum(map(len, each)),
                            "agreement": float(np.concatenate(each).mean()),
                            "by_position": by_position(each),
                            "tokens_a_step": {
                                chain: tokens_a_step(each, chain)
                                for chain in range(1, MAX_CHAIN + 1)
                            },
                        }
                    )
    return rows


def show(rows: Sequence[dict[str, Any]]) -> None:
    numbers = " ".join(f"{chain:5}" for chain in range(1, MAX_CHAIN + 1))
    print(f"{'':25}{'':18}{numbers}")
    for row in rows:
        label = f"{row['workload']}, T {row['temperature']:g}, {row['proposer']}"
        shares = " ".join("    -" if s is None else f"{s:5.2f}" for s in row["by_position"])
        print(f"{label:25}{'accepted, token':18}{shares}")
        steps = " ".join(f"{value:5.2f}" for value in row["tokens_a_step"].values())
        print(f"{'':25}{'tokens a step of':18}{steps}")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--target", default="builtin")
    parser.add_argument("--draft", default=str(draft_path()))
    parser.add_argument("--weights", default="int8", help="of the target")
    parser.add_argument("--draft-weights", default="int8")
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.0, 0.8, 1.0])
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--tokens", type=int, default=128, help="of an answer, at most")
    parser.add_argument("--shortest", type=int, default=2, help="suffix that lookup goes by")
    parser.add_argument("--longest", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    try:
        rows = measure(options)
    except UserError as error:
        print(f"speculation_acceptance: {error}", file=sys.stderr)
        return 2
    show(rows)
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
