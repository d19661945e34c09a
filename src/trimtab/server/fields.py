"""What each field of a request means and the values that it takes, for the OpenAPI document.

The bounds are enforced where the field is read (`validation`, `SamplingParams`, `prompts`); tests
hold the two against each other.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from trimtab.engine.sampling_params import (
    MAX_CHOICES,
    MAX_LOGIT_BIAS,
    MAX_STOP_BYTES,
    MAX_STOP_STRINGS,
    MAX_TOP_LOGPROBS,
    SMALLEST,
)
from trimtab.server.conversation import ROLES
from trimtab.server.prompts import MAX_BAD_CHARACTERS, MAX_BAD_WORDS
from trimtab.server.tools import NAME
from trimtab.server.validation import MAX_STOP_TOKEN_IDS, MAX_TEMPERATURE

Bounds = dict[str, Any]  # by JSON type, the keywords that narrow it

TOKEN_ID = "TOKEN_ID"  # stands for {"minimum": 0, "maximum": the last token}


class Field(NamedTuple):
    description: str
    bounds: Bounds = {}  # noqa: RUF012 (never changed)


def _integer(low: int | None = None, high: int | None = None) -> Bounds:
    bounds = {"minimum": low, "maximum": high}
    return {"integer": {name: value for name, value in bounds.items() if value is not None}}


def _number(low: float, high: float) -> Bounds:
    return {"number": {"minimum": low, "maximum": high}}


def _token_ids(at_least: int, at_most: int | None = None) -> Bounds:
    items: dict[str, Any] = {"minItems": at_least, "items": {"type": "integer", TOKEN_ID: True}}
    if at_most is not None:
        items["maxItems"] = at_most
    return {"array": items}


_POSITIVE: Bounds = {"number": {"exclusiveMinimum": 0, "exclusiveMaximum": 1 << 31}}
INT64 = _integer(-(1 << 63), (1 << 63) - 1)
_STOP_STRING = {"minLength": 1, "maxLength": MAX_STOP_BYTES}

FIELDS: dict[str, Field] = {
    "model": Field("The served model's name; may be left out."),
    "prompt": Field("A text, token ids, or a list of either."),
    "messages": Field("The conversation, rendered by the model's chat template."),
    "input": Field("A text or a list."),
    "stream": Field("Answer as server-sent events."),
    "stream_options": Field("Only with stream: include_usage adds a last chunk with the usage."),
    "n": Field("Choices of each prompt.", _integer(1, MAX_CHOICES)),
    "best_of": Field(
        "Choices that are generated of each prompt; the n with the highest mean logprob are"
        " answered. In a stream it must equal n.",
        _integer(1, MAX_CHOICES),
    ),
    "max_tokens": Field("The most tokens of a completion.", _integer(1)),
    "max_completion_tokens": Field("The same; it wins over max_tokens.", _integer(1)),
    "max_output_tokens": Field("The most tokens of the output.", _integer(1)),
    "min_tokens": Field("No end token, and no stop token, before so many.", _integer(0)),
    "temperature": Field("0 picks the likeliest token.", _number(0, MAX_TEMPERATURE)),
    "top_p": Field("The likeliest tokens up to this mass.", _number(SMALLEST, 1)),
    "top_k": Field("The k likeliest tokens; 0 or -1: all.", _integer(-1)),
    "min_p": Field("Tokens at least this likely, relative to the likeliest.", _number(0, 1)),
    "presence_penalty": Field("Taken off the logits of tokens that were put out.", _number(-2, 2)),
    "frequency_penalty": Field("The same, times how often they were.", _number(-2, 2)),
    "repetition_penalty": Field(
        "Divides the positive logits of tokens of prompt and output, multiplies negative ones.",
        _number(0.01, 100),
    ),
    "logit_bias": Field(
        "Added to logits, by token id.",
        {
            "object": {
                "maxProperties": MAX_LOGIT_BIAS,
                "propertyNames": {TOKEN_ID: True},
                "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
            }
        },
    ),
    "seed": Field(
        "The same seed gives the same answer, whatever else the server does.",
        _integer(-(1 << 63), (1 << 64) - 1),
    ),
    "stop": Field(
        "The output ends before the first of these.",
        {
            "string": _STOP_STRING,
            "array": {
                "maxItems": MAX_STOP_STRINGS,
                "items": {"type": "string", **_STOP_STRING},
            },
        },
    ),
    "stop_token_ids": Field("Tokens that end the output.", _token_ids(0, MAX_STOP_TOKEN_IDS)),
    "include_stop_str_in_output": Field("Keep the stop string that ended the output."),
    "ignore_eos": Field("Go on behind the model's own end token."),
    "allowed_token_ids": Field("No other token is chosen.", _token_ids(1)),
    "bad_words": Field(
        "Never put out as the tokenizer writes them.",
        {
            "array": {
                "maxItems": MAX_BAD_WORDS,
                "items": {"type": "string", "minLength": 1, "maxLength": MAX_BAD_CHARACTERS},
            }
        },
    ),
    "logprobs": Field(
        "Logprobs of the tokens: of a completion, how many alternatives; of a chat, whether.",
        _integer(0, MAX_TOP_LOGPROBS),
    ),
    "top_logprobs": Field("Alternatives beside each token.", _integer(0, MAX_TOP_LOGPROBS)),
    "prompt_logprobs": Field(
        "Logprobs of the prompt's tokens, with so many alternatives. Not in a stream.",
        _integer(0, MAX_TOP_LOGPROBS),
    ),
    "echo": Field("Begin with the prompt; of a chat, with a last message of the assistant."),
    "truncate_prompt_tokens": Field(
        "Keep the last so many tokens of the prompt; -1: as many as fit.", _integer(-1)
    ),
    "add_special_tokens": Field("Put what the tokenizer puts around a text."),
    "skip_special_tokens": Field("Leave special tokens out of the text."),
    "return_token_ids": Field("Also answer token ids, of prompt and output."),
    "return_tokens_as_token_ids": Field("Logprobs name tokens by `token_id:N`."),
    "response_format": Field("What the text must be: text, json_object or json_schema."),
    "structured_outputs": Field("What the text must be: one of its fields."),
    "guided_json": Field("A JSON schema that the text follows."),
    "guided_regex": Field("A pattern that the whole text matches."),
    "guided_choice": Field("The texts to choose from.", {"array": {"minItems": 1}}),
    "guided_grammar": Field("A grammar of the text: llguidance's Lark, or GBNF."),
    "json_schema": Field("The same as guided_json."),
    "grammar": Field("The same as guided_grammar."),
    "priority": Field("Of all waiting requests the smallest runs first.", INT64),
    "cache_salt": Field("Only requests with equal salts share the prefix cache."),
    "tokens": Field("Token ids.", _token_ids(0)),
    "return_token_strs": Field("Also answer the tokens as the tokenizer writes them."),
    "add_generation_prompt": Field("End with what opens the assistant's answer."),
    "instructions": Field("A system message before the input."),
    "include": Field("`message.output_text.logprobs` asks for logprobs; others ask for nothing."),
    "timeout": Field("Seconds after which the request ends with an error.", _POSITIVE),
    "timings": Field("Also answer where the time of this request went."),
    "dimensions": Field("Of the vectors: the model's own."),
    "encoding_format": Field("The vectors as numbers, or as base64 of little-endian float32."),
    "tools": Field("Functions that the model may call."),
    "tool_choice": Field("Whether, and which, functions it calls."),
    "parallel_tool_calls": Field("Whether it may call several at once."),
    "chat_template_kwargs": Field("Variables of the chat template, by an allow-list."),
    "reasoning_effort": Field("How much to think, where the model's template knows it."),
    "continue_final_message": Field("The answer goes on with the last message."),
    "system": Field("The system message."),
    "stop_sequences": Field(
        "The output ends before the first of these.",
        {"array": {"maxItems": MAX_STOP_STRINGS, "items": {"type": "string", **_STOP_STRING}}},
    ),
    "thinking": Field("Whether to think, and to show it; the budget is not enforced."),
    "reasoning": Field("effort, where the model's template knows it."),
    "text": Field("format: what the text must be."),
    "metadata": Field("Comes back in the answer."),
    "user": Field("Comes back in the answer."),
}
_TEXT = {"type": "string", "minLength": 1}
_IDS = {"type": "array", "minItems": 1, "items": {"type": "integer", TOKEN_ID: True}}
_TEXTS_OR_IDS = {
    "anyOf": [
        _TEXT,
        _IDS,
        {"type": "array", "minItems": 1, "items": _TEXT},
        {"type": "array", "minItems": 1, "items": _IDS},
    ]
}
# What a field takes, where its type says too little; it is required.
REQUIRED: dict[tuple[str, str], dict[str, Any]] = {
    ("CompletionRequest", "prompt"): _TEXTS_OR_IDS,
    ("EmbeddingRequest", "input"): _TEXTS_OR_IDS,
    ("ChatRequest", "messages"): {"minItems": 1},
    ("MessagesRequest", "messages"): {"minItems": 1},
    ("CountRequest", "messages"): {"minItems": 1},
}
# The same of what stands inside of requests.
NESTED: dict[tuple[str, str], dict[str, Any]] = {
    ("Message", "role"): {"enum": list(ROLES)},
    ("ContentPart", "type"): {"const": "text"},
    ("ContentPart", "text"): {"type": "string"},
    ("MessageParam", "role"): {"enum": ["user", "assistant"]},
    ("Tool", "type"): {"const": "function"},
    ("ToolCall", "type"): {"const": "function"},
    ("FunctionDefinition", "name"): {"type": "string", "pattern": f"^{NAME.pattern}$"},
    ("NamedToolChoice", "type"): {"const": "function"},
}
# Where a field takes other values than elsewhere, by the request's type and its own name.
EXCEPTIONS: dict[tuple[str, str], Bounds] = {
    ("MessagesRequest", "temperature"): _number(0, 1),
    ("CompletionRequest", "max_tokens"): _integer(0),  # 0: with echo, nothing but the prompt
}
