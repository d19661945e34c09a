"""Text to calibrate the built-in model's quantization on: JSON lines {"text"} or {"messages"}.

    python calibration.py --builtin ../../src/trimtab/builtin

Drawn from what the model was trained on, in the shares of its training (`data.MIX`): nothing of
the held-out text, and nothing that the task file asks.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from chat_samples import GREETINGS, Knowledge, Turns, arithmetic, arithmetic_session, lookup
from corpus import recall_facts, short_functions, training_documents
from data import MIX
from tokenizers import Tokenizer

CHUNK_CHARS = 1600
NUM_TOKENS = 96_000


def code_chunks(rng: random.Random, documents: list[str]) -> Iterator[str]:
    """Pieces of the sources, cut at lines, in random order without end."""
    while True:
        text = rng.choices(documents, weights=list(map(len, documents)))[0]
        start = rng.randrange(max(1, len(text) - CHUNK_CHARS))
        start = text.rfind("\n", 0, start) + 1
        stop = text.find("\n", start + CHUNK_CHARS)
        yield text[start : stop + 1 if stop >= 0 else len(text)]


def messages(turns: Turns) -> dict[str, Any]:
    return {
        "messages": [
            {"role": role, "content": content}
            for turn in turns
            for role, content in zip(("user", "assistant"), turn, strict=True)
        ]
    }


def samples(seed: int, asked: set[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(kind, line) without end, each kind in turn as its share of the tokens asks: send the number
    of tokens of the line."""
    rng = random.Random(seed)
    documents = training_documents()
    code = code_chunks(rng, documents)
    facts = tuple((name, text) for name, text in recall_facts().items() if name not in asked)
    knowledge = Knowledge(facts, tuple(short_functions(documents)))
    makers = {
        "code": lambda: {"text": next(code)},
        "lookup": lambda: messages(lookup(rng)),
        "arithmetic": lambda: messages(arithmetic(rng)),
        "session": lambda: {"text": "".join(a + b for a, b in arithmetic_session(rng))},
        "recall": lambda: messages(knowledge.recall(rng)),
        "write": lambda: messages(knowledge.code(rng)),
        "greeting": lambda: messages([rng.choice(GREETINGS)]),
    }
    given = dict.fromkeys(MIX, 0)
    while True:
        total = sum(given.values()) + 1
        kind = max(MIX, key=lambda kind: MIX[kind] * total - given[kind])
        given[kind] += yield kind, makers[kind]()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--builtin", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    tokenizer = Tokenizer.from_file(str(arguments.builtin / "target" / "tokenizer.json"))
    tasks = (arguments.builtin / "tasks.jsonl").read_text(encoding="utf-8").splitlines()
    questions = " ".join(task["prompt"] for task in map(json.loads, tasks))
    asked = {name for name in recall_facts() if name in questions}
    lines, total = [], 0
    stream = samples(arguments.seed, asked)
    _, line = next(stream)
    while total < NUM_TOKENS:
        lines.append(json.dumps(line, ensure_ascii=False))
        text = line.get("text") or "".join(part["content"] for part in line["messages"])
        count = len(tokenizer.encode(text, add_special_tokens=False).ids)
        total += count
        _, line = stream.send(count)
    path = arguments.builtin / "calibration.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{path}: {len(lines)} lines, {total} tokens")


if __name__ == "__main__":
    main()
