"""What is refused at the door: whatever the engine could never complete."""

from __future__ import annotations

from collections.abc import Iterable

from trimtab.engine.client import EngineInfo, EngineRequest
from trimtab.engine.sampling_params import MAX_TOP_LOGPROBS, SamplingParams
from trimtab.errors import RequestError

MAX_PROMPT_LOGPROBS = 1 << 20  # of one request, alternatives included


def validate_request(request: EngineRequest, info: EngineInfo) -> None:
    """RequestError, naming the field and the numbers, for a request that can never be served.

    Depends on nothing that changes: a request that passes once can be served at any time.
    """
    params = request.params
    if params.n != 1:
        raise RequestError("n: the engine completes one choice a request", param="n")
    if not request.prompt_ids:
        raise RequestError("the prompt is empty: at least one token is needed", param="prompt")
    _check_ids(request.prompt_ids, "prompt", info.vocab_size)
    _check_ids(request.completion_ids, "completion_ids", info.vocab_size)
    _check_ids(params.logit_bias, "logit_bias", info.vocab_size)
    _check_ids(params.stop_token_ids, "stop_token_ids", info.vocab_size)
    _check_ids(params.allowed_token_ids, "allowed_token_ids", info.vocab_size)
    for sequence in params.banned_sequences:
        _check_ids(sequence, "banned_sequences", info.vocab_size)
    check_choosable(params, info)
    _check_grammar(request, info)
    _check_scoring(request)
    _check_length(request, info)
    num_known = len(request.prompt_ids) + len(request.completion_ids)
    if request.completes and num_known >= max_total_tokens(request, info):
        raise RequestError("completion_ids: it is complete already", param="completion_ids")


def max_total_tokens(request: EngineRequest, info: EngineInfo) -> int:
    """The length in tokens, prompt included, at which the request is cut."""
    # The last token of a completion is never fed back, so it needs no place in the KV cache.
    limit = min(info.max_context, info.kv_capacity_tokens + 1)
    if request.params.max_tokens is not None:
        limit = min(limit, len(request.prompt_ids) + request.params.max_tokens)
    return limit


def _check_ids(ids: Iterable[int], param: str, vocab_size: int) -> None:
    values = list(ids)
    if not values:
        return
    if not all(isinstance(value, int) for value in values):
        raise RequestError(f"{param}: token ids must be integers", param=param)
    low, high = min(values), max(values)
    if low < 0 or high >= vocab_size:
        bad = low if low < 0 else high
        raise RequestError(
            f"{param}: token id {bad} is outside the vocabulary [0, {vocab_size})", param=param
        )


def check_choosable(params: SamplingParams, info: EngineInfo) -> None:
    """Whatever was generated before, a token must be left to choose. Tokens that end the request
    count as banned here as long as min_tokens may ban them."""
    if not params.allowed_token_ids and not params.banned_sequences:
        return
    banned = {sequence[-1] for sequence in params.banned_sequences}
    if params.min_tokens:
        banned.update(params.stop_token_ids, () if params.ignore_eos else info.eos_token_ids)
    allowed = set(params.allowed_token_ids)
    num_left = len(allowed - banned) if allowed else info.vocab_size - len(banned)
    if num_left <= 0:
        param = "allowed_token_ids" if allowed else "banned_sequences"
        raise RequestError(f"{param}: it may come to it that no token is left to choose", param)


def _check_grammar(request: EngineRequest, info: EngineInfo) -> None:
    if request.grammar is None:
        return
    _check_ids(request.grammar.after, "grammar.after", info.vocab_size)
    if request.params.allowed_token_ids:
        raise RequestError(
            "allowed_token_ids cannot be combined with a grammar", param="allowed_token_ids"
        )
    if not request.completes:
        raise RequestError("a grammar is for a completion, and none is asked for", param="grammar")


def _check_scoring(request: EngineRequest) -> None:
    num_top = request.prompt_logprobs
    if request.embeds and (request.completes or num_top is not None):
        raise RequestError("an embedding goes with neither a completion nor prompt logprobs")
    if num_top is None:
        if not (request.completes or request.embeds):
            raise RequestError("neither a completion nor the prompt's logprobs are asked for")
        return
    if not 0 <= num_top <= MAX_TOP_LOGPROBS:
        raise RequestError(
            f"prompt_logprobs={num_top}: must be in [0, {MAX_TOP_LOGPROBS}]",
            param="prompt_logprobs",
        )
    if len(request.prompt_ids) * (1 + num_top) > MAX_PROMPT_LOGPROBS:
        raise RequestError(
            f"{len(request.prompt_ids)} prompt tokens with {num_top} logprobs each are more than"
            f" the {MAX_PROMPT_LOGPROBS} that one request may have: ask for fewer",
            param="prompt_logprobs",
        )


def _check_length(request: EngineRequest, info: EngineInfo) -> None:
    num_prompt = len(request.prompt_ids)
    if not request.completes:
        if num_prompt > min(info.max_context, info.kv_capacity_tokens):
            raise _too_long(num_prompt, 0, info)
        return
    # max_tokens=None and min_tokens still need that much room.
    num_new = request.params.max_tokens or max(1, request.params.min_tokens)
    if num_prompt + num_new > min(info.max_context, info.kv_capacity_tokens + 1):
        raise _too_long(num_prompt, num_new, info)


def _too_long(num_prompt: int, num_new: int, info: EngineInfo) -> RequestError:
    asked = f"{num_prompt + num_new} tokens ({num_prompt} in the prompt, {num_new} to complete)"
    if num_prompt + num_new > info.max_context:
        message = (
            f"the model's maximum context length is {info.max_context} tokens, but {asked} were"
            " requested: shorten the prompt or lower max_tokens"
        )
    else:
        message = (
            f"the KV cache holds {info.kv_capacity_tokens} tokens, but {asked} were requested:"
            " shorten the prompt, lower max_tokens or serve with a larger KV cache"
        )
    param = "max_tokens" if num_prompt < info.max_context and num_new > 1 else "prompt"
    return RequestError(message, param=param, code="context_length_exceeded")
