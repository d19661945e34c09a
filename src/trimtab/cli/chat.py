"""`trimtab chat`: a conversation in the terminal, or through a pipe."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from trimtab.cli.options import with_config_options
from trimtab.cli.sampling import SamplingOptions
from trimtab.config import ExecutorConfig
from trimtab.errors import ConfigError, RequestError

if TYPE_CHECKING:
    from trimtab.cli.answer import Answer
    from trimtab.engine.llm import LLM
    from trimtab.engine.sampling_params import SamplingParams


@with_config_options
def command(
    executor: ExecutorConfig,
    sampling: SamplingOptions,
    model: str = typer.Argument(help="builtin, a directory, a GGUF file or a Hugging Face id"),
    system: str = typer.Option("", help="the system message that the conversation starts with"),
    as_json: bool = typer.Option(False, "--json", help="one JSON object a turn, no prompts"),
) -> None:
    """Talk to MODEL: one line a turn. Ctrl-C stops an answer, Ctrl-D ends the conversation."""
    from trimtab.engine.llm import LLM

    params = sampling.params()
    with LLM(model, **asdict(executor)) as llm:
        if llm.tokenizer.chat_template is None:
            raise ConfigError(f"{model}: has no chat template; try `trimtab generate`")
        conversation = Conversation(llm, params, system, as_json)
        people = sys.stdin.isatty() and not as_json
        if people:
            import readline  # noqa: F401  (line editing and history for `input`)

            print(f"{model}: Ctrl-C stops an answer, Ctrl-D ends the conversation.")
        for line in _typed_lines() if people else _piped_lines():
            if line.strip():
                conversation.turn(line)


class Conversation:
    """The messages so far; `turn` adds a question and its answer."""

    def __init__(self, llm: LLM, params: SamplingParams, system: str, as_json: bool) -> None:
        self._llm = llm
        self._params = params
        self._as_json = as_json
        self._messages = [{"role": "system", "content": system}] if system else []

    def turn(self, question: str) -> None:
        """Answer and print. A question that cannot be served is said so, and forgotten."""
        from trimtab.cli.answer import stream_answer

        self._messages.append({"role": "user", "content": question})
        try:
            prompt_ids = self._llm.tokenizer.encode_chat(self._messages)
            answer = stream_answer(self._llm, prompt_ids, self._params, self._show)
        except RequestError as error:
            self._messages.pop()
            if self._as_json:
                print(json.dumps({"error": str(error)}), flush=True)
            else:
                print(f"trimtab: error: {error}", file=sys.stderr)
            return
        self._messages.append({"role": "assistant", "content": answer.text})
        self._end_turn(answer, len(prompt_ids))

    def _show(self, text: str) -> None:
        if not self._as_json:
            sys.stdout.write(text)
            sys.stdout.flush()

    def _end_turn(self, answer: Answer, num_prompt_tokens: int) -> None:
        if not self._as_json:
            print(" [stopped]" if answer.finish_reason == "interrupted" else "", flush=True)
            return
        document = {
            "role": "assistant",
            "content": answer.text,
            "finish_reason": answer.finish_reason,
            "usage": {
                "prompt_tokens": num_prompt_tokens,
                "completion_tokens": answer.num_tokens,
                "total_tokens": num_prompt_tokens + answer.num_tokens,
            },
        }
        print(json.dumps(document), flush=True)


def _typed_lines() -> Iterator[str]:
    """Until Ctrl-D. Ctrl-C while typing clears the line."""
    while True:
        try:
            yield input("> ")
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print()


def _piped_lines() -> Iterator[str]:
    for raw in sys.stdin.buffer:
        try:
            yield raw.decode().rstrip("\r\n")
        except UnicodeDecodeError:
            raise RequestError("standard input is not valid UTF-8") from None
