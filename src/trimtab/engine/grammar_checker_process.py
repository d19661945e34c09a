"""What `grammar_checker` runs: grammars in on standard input, verdicts out, one line of JSON each.

Whatever a grammar does to this process is a verdict, too: it is killed by SIGPROF after its share
of processor time, by SIGSEGV when the stack of a compilation is used up, by SIGABRT when memory is.
"""

from __future__ import annotations

import json
import re
import resource
import signal
import sys
import threading
import time
from typing import Any

STACK_BYTES = 1 << 20  # of a compilation; threads of the engine have 2 MiB at least, 8 as a rule
MEMORY_BYTES = 2 << 30  # of address space
NUM_STEPS = 16  # of a walk through the grammar: a mask each
STEP_SECONDS = 0.1  # of processor time: the engine would have to wait as long

# One blank, or a new line and its indentation: what pretty-printed JSON has, and no more, since a
# model that may write blanks for ever will.
WHITESPACE = r"( |\n[ \t]{0,20})"
JSON_OPTIONS = {"whitespace_pattern": WHITESPACE}

_GBNF_RULE = re.compile(r"^\s*[\w-]+\s*::=", re.MULTILINE)
_EMBEDDED_JSON = re.compile(
    r'"(?:\\.|[^"\\\n])*"|//[^\n]*|/(?:\\.|[^/\\\n])+/|(?P<head>%json\s*\{)\s*(?P<end>\}?)'
)


class RefusedError(Exception):
    """`str` is the reason, for people."""


def to_llguidance(kind: str, source: str) -> str:
    """The grammar in llguidance's JSON or Lark. RefusedError for what is not even well-formed."""
    from llguidance import LLMatcher

    if kind == "regex":
        return str(LLMatcher.grammar_from_regex(source))
    if kind == "choice":
        texts = [_lark_string(text) for text in json.loads(source)]
        return "start: CHOICE\nCHOICE: " + " | ".join(texts)
    if kind == "lark":
        return _bounded_whitespace(_from_gbnf(source) if _GBNF_RULE.search(source) else source)
    schema = {"type": "object"} if kind == "json_object" else json.loads(source)
    if isinstance(schema, bool):
        schema = {} if schema else {"not": {}}
    options = schema.get("x-guidance")
    if isinstance(options, dict) and options.get("whitespace_flexible") is False:
        return str(LLMatcher.grammar_from_json_schema(schema))
    return str(LLMatcher.grammar_from_json_schema(schema, overrides=JSON_OPTIONS))


def _lark_string(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _from_gbnf(source: str) -> str:
    from llguidance.gbnf_to_lark import gbnf_to_lark

    try:
        return str(gbnf_to_lark(source))
    except RecursionError:
        raise RefusedError("the GBNF grammar nests too deeply") from None
    except Exception as error:  # the converter raises bare Exception for whatever is wrong
        raise RefusedError(f"the GBNF grammar is not valid: {error}") from None


def _bounded_whitespace(lark: str) -> str:
    """The same with bounded blanks in embedded JSON that has no options of its own."""
    options = '"x-guidance": ' + json.dumps(JSON_OPTIONS)

    def insert(match: re.Match[str]) -> str:
        if match["head"] is None:
            return match[0]
        return match["head"] + options + (match["end"] or ", ")

    return _EMBEDDED_JSON.sub(insert, lark)


def make_tokenizer(vocab_size: int, special_tokens: dict[int, str]) -> Any:
    """Single bytes, which stand behind the vocabulary, and the special tokens at their own ids."""
    from llguidance import LLTokenizer

    tokens = [b""] * vocab_size + [bytes([byte]) for byte in range(256)]
    for token_id, text in special_tokens.items():
        tokens[token_id] = text.encode()

    class Bytes:
        is_tokenizer_wrapper = True
        eos_token_id = bos_token_id = None
        special_token_ids = sorted(special_tokens)

        def __call__(self, text: str) -> list[int]:
            return [vocab_size + byte for byte in text.encode()]

    wrapper = Bytes()
    wrapper.tokens = tokens  # type: ignore[attr-defined]
    return LLTokenizer(wrapper)


def examine(tokenizer: Any, kind: str, source: str) -> dict[str, str]:
    """Compile it and walk through it for some steps."""
    from llguidance import LLMatcher, LLParserLimits

    try:
        grammar = to_llguidance(kind, source)
    except (RefusedError, ValueError) as error:
        return {"error": str(error)}
    limits = LLParserLimits(verbose_errors=False)
    matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=limits)
    if matcher.is_error():
        return {"error": _reason(matcher.get_error())}
    for step in range(NUM_STEPS):
        started = time.process_time()
        matcher.consume_tokens(matcher.compute_ff_tokens())
        if matcher.is_stopped():
            break
        if time.process_time() - started > STEP_SECONDS:
            return {"error": "it is too costly to follow: too much text is forced at once"}
        bits = int.from_bytes(matcher.compute_bitmask(), "little")
        if matcher.is_error():
            break
        allowed = [i for i in range(tokenizer.vocab_size - 1) if bits >> i & 1]
        if not allowed:
            break
        matcher.consume_token(allowed[(step * 7919) % len(allowed)])
    if matcher.is_error():
        reason = _reason(matcher.get_error())
        if reason.startswith("NoExtension"):
            return {"error": "no text matches it"}
        return {"error": f"it is too costly to follow: {reason}"}
    return {"grammar": grammar}


def _reason(text: str) -> str:
    """The one line of llguidance's message that says what is wrong."""
    lines = text.strip().split("\n")
    marked = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    if marked:
        return f"invalid regex: {marked[-1]}"
    return lines[0] or "it is not valid"


def main() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    threading.stack_size(STACK_BYTES)
    hello = json.loads(sys.stdin.buffer.readline() or b"{}")
    if not hello:
        return
    special_tokens = {int(key): text for key, text in hello["special_tokens"].items()}
    tokenizer = make_tokenizer(hello["vocab_size"], special_tokens)
    _say({"ready": "yes"})
    for line in sys.stdin.buffer:
        question = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, hello["compute_seconds"])
        answer = _examine_on_small_stack(tokenizer, question)
        signal.setitimer(signal.ITIMER_PROF, 0)
        _say(answer)


def _examine_on_small_stack(tokenizer: Any, question: dict[str, str]) -> dict[str, str]:
    answer = {"error": "it cannot be compiled"}

    def work() -> None:
        answer_of = examine(tokenizer, question["kind"], question["source"])
        answer.clear()
        answer.update(answer_of)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return answer


def _say(answer: dict[str, str]) -> None:
    sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n")
    sys.stdout.buffer.flush()
