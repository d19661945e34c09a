"""Which parsers a model's output goes through: read off its chat template and its vocabulary."""

from __future__ import annotations

import secrets
import string
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from trimtab.engine.client import Grammar
from trimtab.errors import ConfigError
from trimtab.server.parsing.forcing import forced_grammar, literal
from trimtab.server.parsing.hermes import HermesSyntax
from trimtab.server.parsing.llama3 import Llama3Syntax
from trimtab.server.parsing.machine import OutputParser
from trimtab.server.parsing.mistral import MistralSyntax
from trimtab.server.parsing.plain_json import PlainJsonSyntax
from trimtab.server.parsing.reasoning import REASONING_MARKERS, ReasoningMarkers, ReasoningStage
from trimtab.server.parsing.tool_stage import CallSyntax, ToolStage
from trimtab.tokenization import Tokenizer

AUTO, NONE = "auto", "none"
# By the name that `tool_parser` takes, in the order in which they are tried.
TOOL_SYNTAXES: dict[str, CallSyntax] = {
    "mistral": MistralSyntax(),
    "hermes": HermesSyntax(),
    "llama3": Llama3Syntax(),
    "json": PlainJsonSyntax(),
}
# Calls in <tool_call> that are not JSON (Qwen 3 Coder): no parser of ours reads them.
FOREIGN_CALLS = "<function="
_ALPHANUMERIC = string.ascii_letters + string.digits


@dataclass(frozen=True)
class Parsing:
    """How the output of one request is read."""

    reasoning: ReasoningMarkers | None = None
    opened: bool = False  # the prompt ends inside of the reasoning
    syntax: CallSyntax | None = None
    names: Collection[str] = ()  # of the tools on offer
    parallel: bool = True
    named: bool = False  # the request names the tool: a call is what it stops with
    kept_ids: frozenset[int] = frozenset()  # special tokens that are markers
    short_ids: bool = False  # of calls

    def parser(self) -> OutputParser:
        """A new one, for one output."""
        reasoning = None if self.reasoning is None else ReasoningStage(self.reasoning, self.opened)
        tools = None
        if self.syntax is not None:
            tools = ToolStage(self.syntax, self.names, self.parallel)
        return OutputParser(reasoning, tools)

    def call_id(self) -> str:
        """A new one; Mistral's templates take no other than nine letters and digits."""
        if self.short_ids:
            return "".join(secrets.choice(_ALPHANUMERIC) for _ in range(9))
        return f"call_{secrets.token_hex(12)}"


class ModelParsers:
    """The parsers of one model. Raises ConfigError for a name that there is no parser of."""

    def __init__(
        self, tokenizer: Tokenizer, tool_parser: str = AUTO, reasoning_parser: str = AUTO
    ) -> None:
        self.reasoning = _choose_reasoning(tokenizer, reasoning_parser)
        self.syntax = _choose_syntax(tokenizer, tool_parser)
        self._tokenizer = tokenizer

    def parsing(
        self,
        *,
        opened: bool = False,
        names: Collection[str] = (),
        parallel: bool = True,
        named: bool = False,
    ) -> Parsing | None:
        """For a request with tools of these names; None if there is nothing to look for."""
        syntax = self.syntax if names else None
        if self.reasoning is None and syntax is None:
            return None
        texts = list(syntax.tokens) if syntax is not None else []
        if self.reasoning is not None:
            texts += [self.reasoning.start, self.reasoning.end]
        ids = {self._tokenizer.token_to_id(text) for text in texts}
        return Parsing(
            self.reasoning,
            opened,
            syntax,
            frozenset(names),
            parallel,
            named,
            frozenset(i for i in ids if i is not None and i in self._tokenizer.special_ids),
            isinstance(syntax, MistralSyntax),
        )

    def forced_calls(self, tools: Sequence[dict[str, Any]], several: bool, opened: bool) -> Grammar:
        """What makes the output a call of one of the tools, or several, in the model's own syntax.
        `opened`: they come behind reasoning, which may be followed by line breaks."""
        assert self.syntax is not None  # or there would be no tools
        functions = [tool["function"] for tool in tools]
        rules = self.syntax.rules([function["name"] for function in functions], several, self._term)
        schemas = [function["parameters"] for function in functions]
        return Grammar("lark", forced_grammar(rules, schemas, space_before=opened))

    def _term(self, text: str) -> str:
        token_id = self._tokenizer.token_to_id(text)
        is_special = token_id is not None and token_id in self._tokenizer.special_ids
        return f"<[{token_id}]>" if is_special else literal(text)

    def opens_reasoning(self, prompt: str, continued: str = "") -> bool:
        """Whether what follows this prompt is reasoning. `continued` is the part of its end that
        the assistant has written, where it is to go on with that."""
        if self.reasoning is None:
            return False
        start, end = self.reasoning.start, self.reasoning.end
        if continued:
            return continued.rfind(start) > continued.rfind(end)
        return prompt.rstrip().endswith(start)

    @property
    def reasoning_end_id(self) -> int | None:
        """The token that ends the reasoning; None if it is no single one."""
        if self.reasoning is None:
            return None
        return self._tokenizer.token_to_id(self.reasoning.end)


def _template_text(tokenizer: Tokenizer) -> str:
    template = tokenizer.chat_template
    return "" if template is None else f"{template.source}\n{template.tool_source or ''}"


def _choose_reasoning(tokenizer: Tokenizer, name: str) -> ReasoningMarkers | None:
    if name == NONE:
        return None
    if name != AUTO:
        _check(name, REASONING_MARKERS, "reasoning_parser")
        return REASONING_MARKERS[name]
    template = _template_text(tokenizer)
    for markers in REASONING_MARKERS.values():
        in_vocabulary = (
            tokenizer.token_to_id(markers.start) is not None
            and tokenizer.token_to_id(markers.end) is not None
        )
        if markers.end in template or (in_vocabulary and template):
            return markers
    return None


def _choose_syntax(tokenizer: Tokenizer, name: str) -> CallSyntax | None:
    if name == NONE:
        return None
    if name != AUTO:
        _check(name, TOOL_SYNTAXES, "tool_parser")
        return TOOL_SYNTAXES[name]
    template = tokenizer.chat_template
    if template is None or not template.takes_tools:
        return None
    text = _template_text(tokenizer)
    if FOREIGN_CALLS in text:
        return None
    for syntax in TOOL_SYNTAXES.values():
        if any(marker in text for marker in syntax.markers):
            return syntax
    for syntax in TOOL_SYNTAXES.values():
        if any(tokenizer.token_to_id(marker) is not None for marker in syntax.markers):
            return syntax
    return TOOL_SYNTAXES["json"]


def _check(name: str, known: Collection[str], knob: str) -> None:
    if name not in known:
        choices = ", ".join([AUTO, NONE, *known])
        raise ConfigError(f"{knob}={name!r}: must be one of {choices}")
