"""`trimtab generate`: one completion, to the terminal."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

import typer

from trimtab.cli.options import with_config_options
from trimtab.cli.sampling import SamplingOptions
from trimtab.config import ExecutorConfig
from trimtab.errors import RequestError


@with_config_options
def command(
    executor: ExecutorConfig,
    sampling: SamplingOptions,
    model: str = typer.Argument(help="builtin, a directory, a GGUF file or a Hugging Face id"),
    prompt: str = typer.Argument(help="the text to continue; - reads it from standard input"),
    as_json: bool = typer.Option(False, "--json", help="print one JSON object at the end"),
) -> None:
    """Complete PROMPT with MODEL and print the text as it comes."""
    from trimtab.cli.answer import stream_answer
    from trimtab.engine.llm import LLM

    params = sampling.params()
    if prompt == "-":
        prompt = read_standard_input()
    with LLM(model, **asdict(executor)) as llm:
        prompt_ids = llm.tokenizer.encode(prompt)
        answer = stream_answer(llm, prompt_ids, params, (lambda text: None) if as_json else _show)
    if as_json:
        document = {
            "model": model,
            "prompt": prompt,
            "text": answer.text,
            "finish_reason": answer.finish_reason,
            "usage": {
                "prompt_tokens": len(prompt_ids),
                "completion_tokens": answer.num_tokens,
                "total_tokens": len(prompt_ids) + answer.num_tokens,
            },
        }
        print(json.dumps(document))
    elif not answer.text.endswith("\n"):
        print()
    if answer.finish_reason == "interrupted":
        raise typer.Exit(130)


def read_standard_input() -> str:
    """All of it. Raises RequestError unless it is UTF-8."""
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError:
        raise RequestError("standard input is not valid UTF-8") from None


def _show(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
