"""The windows of text that variants are tested on: of files, or of what the model writes itself.

The latter is for when nobody gave any text: sampled at temperature 1, which is the model's own
distribution. What is measured on it says how far a variant is from the model where the model itself
goes; not how it does on the user's texts.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trimtab.evaluation.run import read_text
from trimtab.evaluation.windows import Window, text_windows
from trimtab.optimizer.cache import read_json, write_atomically
from trimtab.optimizer.trial import Progress

if TYPE_CHECKING:
    from trimtab.executors.base import Executor
    from trimtab.tokenization import Tokenizer

AT_ONCE = 16
MOST_CHARACTERS = 8 << 20  # of a text that are tokenized; a longer one is read in excerpts
EXCERPT = 32 << 10
# Beginnings that say little: the model decides what follows.
OPENINGS = (
    "The", "In", "I", "How", "Once", "To", "def ", "#", "A", "When", "Question:", "1.", "We",
    "import ", "Dear", "It",
)  # fmt: skip
QUESTIONS = (
    "Tell me something interesting.",
    "Explain something that you know well.",
    "Write a short story.",
    "Write a program and explain it.",
    "Give me some advice.",
    "What happened in history?",
    "How does something in nature work?",
    "Make a list of steps for a task of your choice.",
)


def chosen_windows(
    tokenizer: Tokenizer,
    directory: Path,
    paths: Sequence[Path],
    length: int,
    count: int,
    seed: int,
) -> list[Window]:
    """`count` windows of the files in random order, so that the first ones stand for all; from
    `directory`, or chosen now and kept there. Raises UserError for the files, and OSError."""
    windows = _kept(directory)
    if windows is None:
        texts = [part for path in paths for part in excerpts(read_text(path), len(paths))]
        windows = text_windows(tokenizer, texts, length)
        random.Random(seed).shuffle(windows)
        windows = windows[:count]
        _keep(directory, windows)
    return windows


def excerpts(text: str, num_texts: int) -> list[str]:
    """The text; of one that is too long, lines evenly spread over it."""
    most = MOST_CHARACTERS // num_texts
    if len(text) <= most:
        return [text]
    number = max(1, most // EXCERPT)
    starts = [index * (len(text) - EXCERPT) // number for index in range(number)]
    found = []
    for start in starts:
        line = text.find("\n", start, start + EXCERPT // 2) + 1 or start
        found.append(text[line : start + EXCERPT])
    return found


def written_windows(
    open_executor: Callable[[int], Executor],
    tokenizer: Tokenizer,
    directory: Path,
    length: int,
    count: int,
    progress: Progress,
) -> list[Window]:
    """`count` windows of `length` tokens: from `directory`, or written now and kept there. Seeds
    are fixed, so the same model writes the same. `open_executor` takes KV blocks. OSError."""
    windows = _kept(directory)
    if windows is None or len(windows) < count:
        progress(f"the model writes {count} texts of {length} tokens, to be tested on")
        windows = []
        for ids in _write(open_executor, tokenizer, length, count):
            size = sum(len(tokenizer.token_bytes(token)) for token in ids[1:])
            windows.append(Window(ids, size))
        _keep(directory, windows)
    return windows[:count]


def _kept(directory: Path) -> list[Window] | None:
    found = read_json(directory / "text.json")
    try:
        return None if found is None else [Window(list(ids), size) for ids, size in found]
    except (TypeError, ValueError):
        return None


def _keep(directory: Path, windows: Sequence[Window]) -> None:
    directory.mkdir(mode=0o700, exist_ok=True)
    document = [[window.token_ids, window.num_bytes] for window in windows]
    write_atomically(directory / "text.json", json.dumps(document).encode())


def _write(
    open_executor: Callable[[int], Executor], tokenizer: Tokenizer, length: int, count: int
) -> list[list[int]]:
    from trimtab import _native
    from trimtab.engine.engine import Engine
    from trimtab.engine.llm import LLM
    from trimtab.engine.sampling_params import SamplingParams

    prompts = [_prompt(tokenizer, number)[: length // 2] for number in range(count)]
    params = [
        SamplingParams(
            temperature=1.0, seed=number, max_tokens=length - len(prompt), ignore_eos=True
        )
        for number, prompt in enumerate(prompts)
    ]
    blocks = AT_ONCE * (-(-length // _native.KV_BLOCK_TOKENS) + 1)
    with LLM.from_engine(Engine(open_executor(blocks)), tokenizer) as llm:
        results = llm.generate(list(prompts), params)
    return [
        prompt + list(result.outputs[0].token_ids)
        for prompt, result in zip(prompts, results, strict=True)
    ]


def _prompt(tokenizer: Tokenizer, number: int) -> list[int]:
    """Of chat models every other text is an answer."""
    if tokenizer.chat_template is not None and number % 2:
        question = QUESTIONS[number // 2 % len(QUESTIONS)]
        return tokenizer.encode_chat([{"role": "user", "content": question}])
    return tokenizer.encode(OPENINGS[number // 2 % len(OPENINGS)])
