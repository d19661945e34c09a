"""Text that a model writes itself, for when nobody gave any: sampled at temperature 1, which is the
model's own distribution. What is measured on it says how far a variant is from the model where the
model itself goes; not how it does on the user's texts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from trimtab.evaluation.windows import Window
from trimtab.optimizer.reference import keep_written, read_written
from trimtab.optimizer.trial import Progress

if TYPE_CHECKING:
    from trimtab.executors.cpu import CpuExecutor
    from trimtab.tokenization import Tokenizer

AT_ONCE = 16
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


def written_windows(
    open_executor: Callable[[int], CpuExecutor],
    tokenizer: Tokenizer,
    directory: Path,
    length: int,
    count: int,
    progress: Progress,
) -> list[Window]:
    """`count` windows of `length` tokens: from `directory`, or written now and kept there. Seeds
    are fixed, so the same model writes the same. `open_executor` takes KV blocks. OSError."""
    texts = read_written(directory, count)
    if texts is None:
        progress(f"the model writes {count} texts of {length} tokens, to be tested on")
        texts = _write(open_executor, tokenizer, length, count)
        keep_written(directory, texts)
    windows = []
    for ids in texts:
        size = sum(len(tokenizer.token_bytes(token)) for token in ids[1:])
        windows.append(Window(ids, size))
    return windows


def _write(
    open_executor: Callable[[int], CpuExecutor], tokenizer: Tokenizer, length: int, count: int
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
