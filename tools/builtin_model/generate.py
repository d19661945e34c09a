"""Texts as the target itself continues them: what its draft heads are trained on.

    python generate.py --work DIR --builtin ../../src/trimtab/builtin --count 2048

Appends JSON lines {"token_ids", "num_prompt_tokens"} to DIR/generated.jsonl: beginnings of the
training text's documents, each continued by the target, two of three greedily and every third at
temperature 0.8. Line i depends on the seed and i alone.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

from tokenizer import BOS_ID
from tokenizers import Tokenizer

from trimtab import LLM, SamplingParams

PROMPT_TOKENS = (24, 320)
NUM_TOKENS = 128
BATCH = 64


def prompt_of(index: int, seed: int, documents: list[str], tokenizer: Tokenizer) -> list[int]:
    """The index-th beginning: some lines from anywhere in a document, long documents more often."""
    rng = random.Random(f"{seed}/{index}")
    text = rng.choices(documents, weights=list(map(len, documents)))[0]
    start = text.rfind("\n", 0, rng.randrange(max(1, len(text) - 1600))) + 1
    ids = tokenizer.encode(text[start : start + 1600], add_special_tokens=False).ids
    return [BOS_ID, *ids[: rng.randint(*PROMPT_TOKENS)]]


def params_of(index: int, seed: int) -> SamplingParams:
    temperature = 0.8 if index % 3 == 2 else 0.0
    return SamplingParams(
        max_tokens=NUM_TOKENS, temperature=temperature, seed=seed + index, ignore_eos=True
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("build/builtin_model"))
    parser.add_argument("--builtin", type=Path, default=Path("src/trimtab/builtin"))
    parser.add_argument("--count", type=int, default=2048)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    documents = json.loads((args.work / "corpus.json").read_text())
    tokenizer = Tokenizer.from_file(str(args.builtin / "target" / "tokenizer.json"))
    path = args.work / "generated.jsonl"
    done = len(path.read_text().splitlines()) if path.exists() else 0
    llm = LLM(str(args.builtin / "target"), threads=args.threads, prefix_cache=False)
    with path.open("a") as file:
        for first in range(done, args.count, BATCH):
            indices = range(first, min(first + BATCH, args.count))
            prompts = [prompt_of(i, args.seed, documents, tokenizer) for i in indices]
            results = llm.generate(prompts, [params_of(i, args.seed) for i in indices])
            for prompt, result in zip(prompts, results, strict=True):
                line = {
                    "token_ids": prompt + result.outputs[0].token_ids,
                    "num_prompt_tokens": len(prompt),
                }
                file.write(json.dumps(line) + "\n")
            file.flush()
            print(f"{indices.stop} of {args.count}", flush=True)


if __name__ == "__main__":
    main()
