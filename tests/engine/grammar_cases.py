"""What the grammar tests share: a toy model with the built-in tokenizer, grammars, a reference."""

from __future__ import annotations

import functools
import json
from array import array
from random import Random
from typing import Any

import numpy as np
from engine_schedules import Answer, choose, score, toy_class

from trimtab.builtin import target_path
from trimtab.engine.batch import BatchBuilder, Chooser
from trimtab.engine.client import EngineRequest, Grammar
from trimtab.engine.engine import Engine
from trimtab.engine.llguidance_grammars import LlguidanceGrammars
from trimtab.engine.request import Request
from trimtab.engine.sampling_params import SamplingParams
from trimtab.tokenization import Tokenizer, load_tokenizer

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "kind": {"enum": ["person of interest", "person of no interest"]},
    },
    "required": ["name", "age", "kind"],
    "additionalProperties": False,
}
COMPACT = PERSON | {"x-guidance": {"whitespace_flexible": False}}


def json_schema(schema: Any, **fields: Any) -> Grammar:
    return Grammar("json_schema", json.dumps(schema), **fields)


GRAMMARS = [
    json_schema(PERSON),
    json_schema(COMPACT),
    json_schema({"const": "nothing here is left to choose"}),
    json_schema({"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 4}),
    Grammar("json_object"),
    Grammar("regex", r"[0-9]{3}-[0-9]{4}"),
    Grammar("regex", r"(ab|cd)*"),
    Grammar("regex", ""),
    Grammar("choice", '["apple pie", "apple juice", "water"]'),
    Grammar("choice", '["the only one"]'),
    Grammar("lark", 'start: "def " NAME "(self): return " ONES\nNAME: /[a-z]+/\nONES: /1+/'),
    Grammar("lark", 'root ::= "yes, " "it is" | "no, " "it is " "not " [a-z]+'),
]  # fmt: skip


@functools.cache
def tokenizer() -> Tokenizer:
    return load_tokenizer(target_path())


@functools.cache
def compiler() -> LlguidanceGrammars:
    return LlguidanceGrammars(tokenizer, tokenizer().vocab_size)


def toy(num_blocks: int = 64, block_size: int = 4, **options: Any) -> Any:
    options = {"eos_token_ids": tokenizer().eos_token_ids, "max_context": 256} | options
    return toy_class()(num_blocks, block_size, tokenizer().vocab_size, **options)


def text_of(answer: Answer) -> str:
    return tokenizer().decode(answer.token_ids)


def reference(executor: Any, request: EngineRequest) -> Answer:
    """The answer by the definition: forced tokens wherever there are any, a token chosen under the
    mask elsewhere. No blocks, no batch, no schedule."""
    engine = Engine(executor, grammars=compiler())
    state = engine.read_grammar(request)
    assert state is not None
    params, answer = request.params, Answer(num_finishes=1)
    stops = set(params.stop_token_ids)
    stops |= set() if params.ignore_eos else set(executor.spec.eos_token_ids)
    tokens = list(request.prompt_ids)
    most = len(tokens) + params.max_tokens if params.max_tokens else executor.spec.max_context

    def append(token: int) -> None:
        if params.logprobs is not None:
            answer.logprobs.append(score(executor, tokens, token, params.logprobs))
        tokens.append(token)
        answer.token_ids.append(token)
        if len(tokens) == most:
            answer.finish_reason = "length"

    while answer.finish_reason is None:
        while answer.finish_reason is None and (forced := state.forced()):
            for token in forced:
                if token in stops:
                    answer.finish_reason = "stop"
                if answer.finish_reason is None:
                    append(token)
            state.consume(forced)
        if answer.finish_reason is not None:
            break
        bare = Request(
            request_id="",
            params=params,
            token_ids=array("i", tokens),
            num_prompt_tokens=len(request.prompt_ids),
            max_total_tokens=most,
            stop_ids=frozenset(stops),
            seed=params.seed or 0,
            order=(0, 0),
            cache_root=b"",
            grammar=state,
        )
        if state.is_over or not state.prepare(bare.unwanted_ids):
            answer.finish_reason = "stop"
            break
        sampling = BatchBuilder().build_sampling([Chooser(bare)], np.array([len(tokens)], np.int32))
        token = choose(executor, tokens, sampling)
        if token in stops:
            answer.finish_reason, answer.stop_token_id = "stop", token
            break
        append(token)
        state.consume([token])
    return answer


def random_request(random: Random, request_id: str, prompt: list[int], room: int) -> EngineRequest:
    """With a grammar, mostly. `room` bounds max_tokens."""
    most = random.randint(1, room)
    params = SamplingParams(
        max_tokens=most,
        min_tokens=random.choice([0, 0, random.randint(0, most)]),
        temperature=random.choice([0.0, 0.7, 1.0]),
        top_k=random.choice([0, 0, 20]),
        top_p=random.choice([1.0, 1.0, 0.5]),
        repetition_penalty=random.choice([1.0, 1.0, 1.3]),
        seed=random.randint(0, 5),
        stop_token_ids=random.choice([(), (), tuple(tokenizer().encode("e", False))]),
        ignore_eos=random.random() < 0.3,
        logprobs=random.choice([None, None, 0, 2]),
    )
    grammar = random.choice(GRAMMARS)
    if random.random() < 0.2:
        after = tuple(random.randrange(tokenizer().vocab_size) for _ in range(1500))
        grammar = Grammar(grammar.kind, grammar.source, after)
    return EngineRequest(
        request_id=request_id,
        prompt_ids=prompt,
        params=params,
        priority=random.choice([-1, 0, 0, 1]),
        prompt_logprobs=random.choice([None, None, None, 1]),
        grammar=grammar,
    )
