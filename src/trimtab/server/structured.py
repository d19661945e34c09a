"""What a client asks of the form of an answer, in any of the usual fields, as a Grammar.

OpenAI's `response_format`; vLLM's `structured_outputs` and, before it, `guided_*`; llama.cpp's
`json_schema` and `grammar`. At most one of them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import msgspec

from trimtab.engine.client import Grammar
from trimtab.engine.grammar_source import check_source
from trimtab.errors import RequestError
from trimtab.server.api_errors import ApiError, bad_request
from trimtab.server.sampling_fields import SamplingFields

Schema = dict[str, Any] | bool

FORMAT_TYPES = ("text", "json_object", "json_schema")


class JsonSchemaFormat(msgspec.Struct):
    """`strict` or not, the answer follows the schema."""

    name: str | None = None
    description: str | None = None
    schema: Schema | None = None
    strict: bool | None = None


class ResponseFormat(msgspec.Struct):
    type: str
    json_schema: JsonSchemaFormat | None = None


class StructuredOutputs(msgspec.Struct, forbid_unknown_fields=True):
    """vLLM's parameters of this name that we have. Those of its fields that are missing here would
    change the answer, so they are refused."""

    json: str | Schema | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    disable_any_whitespace: bool | None = None


class GrammarFields(SamplingFields, kw_only=True):
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: str | Schema | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    json_schema: str | Schema | None = None
    grammar: str | None = None


@dataclass(frozen=True)
class AskedGrammar:
    grammar: Grammar
    param: str  # the field that it came in

    def behind(self, token_id: int | None) -> AskedGrammar:
        """The same for what comes behind a token, the end of the reasoning."""
        if token_id is None:
            raise bad_request(
                f"{self.param}: this model reasons first, and does not end that with a single"
                " token: nothing can be asked of the text behind it",
                self.param,
            )
        return replace(self, grammar=replace(self.grammar, after=(token_id,)))

    def refusal(self, error: RequestError) -> ApiError:
        """What the client is told when the engine refuses the grammar."""
        return bad_request(f"{self.param}: {error}", self.param)


def asked_grammar(asked: GrammarFields) -> AskedGrammar | None:
    """Raises ApiError 400 for a form that is not known, too large, or asked for twice."""
    found = [
        ("response_format", _of_format(asked.response_format)),
        ("structured_outputs", _of_outputs(asked.structured_outputs)),
        ("guided_json", _of_schema(asked.guided_json)),
        ("guided_regex", _of_text("regex", asked.guided_regex)),
        ("guided_choice", _of_choices(asked.guided_choice)),
        ("guided_grammar", _of_text("lark", asked.guided_grammar)),
        ("json_schema", _of_schema(asked.json_schema)),
        ("grammar", _of_text("lark", asked.grammar or None)),
    ]
    wanted = [AskedGrammar(grammar, param) for param, grammar in found if grammar is not None]
    if not wanted:
        return None
    first = wanted[0]
    if len(wanted) > 1:
        params = " and ".join(one.param for one in wanted[:2])
        raise bad_request(f"{params}: at most one of them may be given", first.param)
    try:
        check_source(first.grammar)
    except RequestError as error:
        raise first.refusal(error) from None
    return first


def _of_format(asked: ResponseFormat | None) -> Grammar | None:
    if asked is None or asked.type == "text":
        return None
    if asked.type == "json_object":
        return Grammar("json_object")
    if asked.type != "json_schema":
        raise bad_request(
            f"response_format: type {asked.type[:32]!r} is not supported;"
            f" there are {', '.join(FORMAT_TYPES)}",
            "response_format",
        )
    if asked.json_schema is None or asked.json_schema.schema is None:
        raise bad_request(
            "response_format: type json_schema needs json_schema.schema", "response_format"
        )
    return _of_schema(asked.json_schema.schema)


def _of_outputs(asked: StructuredOutputs | None) -> Grammar | None:
    if asked is None:
        return None
    compact = bool(asked.disable_any_whitespace)
    given = [
        _of_schema(asked.json, compact),
        _of_text("regex", asked.regex),
        _of_choices(asked.choice),
        _of_text("lark", asked.grammar),
        _of_schema({"type": "object"} if asked.json_object else None, compact),
    ]
    grammars = [grammar for grammar in given if grammar is not None]
    if len(grammars) > 1:
        raise bad_request(
            "structured_outputs: only one of json, regex, choice, grammar and json_object may be"
            " given",
            "structured_outputs",
        )
    return grammars[0] if grammars else None


def _of_schema(schema: str | Schema | None, compact: bool = False) -> Grammar | None:
    """A schema, or its text."""
    if schema is None:
        return None
    if compact and isinstance(schema, str):
        try:
            schema = msgspec.json.decode(schema)
        except (msgspec.MsgspecError, RecursionError):
            return Grammar("json_schema", str(schema))  # refused for what it is
    if compact and isinstance(schema, dict):
        schema = {**schema, "x-guidance": {"whitespace_flexible": False}}
    if not isinstance(schema, str):
        schema = msgspec.json.encode(schema).decode()
    return Grammar("json_schema", schema)


def _of_choices(choices: list[str] | None) -> Grammar | None:
    if choices is None:
        return None
    return Grammar("choice", msgspec.json.encode(choices).decode())


def _of_text(kind: Any, source: str | None) -> Grammar | None:
    return None if source is None else Grammar(kind, source)
