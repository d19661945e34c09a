"""What a request may ask for: unsupported features refused, ranges held, parameters made."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from trimtab.engine.client import EngineInfo
from trimtab.engine.sampling_params import (
    MAX_CHOICES,
    MAX_LOGIT_BIAS,
    MAX_TOP_LOGPROBS,
    SamplingParams,
)
from trimtab.server.api_errors import bad_request
from trimtab.server.api_types import ChatRequest, CompletionRequest, GenerationFields

MAX_SEQUENCES = 256  # n times the number of prompts
MAX_STOP_TOKEN_IDS = 1024
MAX_TEMPERATURE = 2.0
DEFAULT_COMPLETION_TOKENS = 16

# Fields that would change the answer if they were obeyed, and the values that ask for nothing.
# Whatever is neither here nor in api_types is ignored, as other servers do (user, metadata ...).
_INERT: dict[str, tuple[Any, ...]] = {
    "guided_whitespace_pattern": (None,),
    "structural_tag": (None,),
    "use_beam_search": (None, False),
    "length_penalty": (None, 1, 1.0),
    "logits_processors": (None, []),
    "prompt_embeds": (None,),
    "mm_processor_kwargs": (None, {}),
    "spaces_between_special_tokens": (None, True),
    # Other servers' samplers.
    "thinking_token_budget": (None,),
    "repetition_detection": (None,),
    "repeat_penalty": (None, 1, 1.0),
    "typical_p": (None, 1, 1.0),
    "top_a": (None, 0, 0.0),
    "tfs": (None, 1, 1.0),
    "mirostat": (None, 0),
    "mirostat_mode": (None, 0),
    "dry_multiplier": (None, 0, 0.0),
    "xtc_probability": (None, 0, 0.0),
    "no_repeat_ngram_size": (None, 0),
    "kv_transfer_params": (None,),
}
INERT_CHAT: dict[str, tuple[Any, ...]] = _INERT | {
    "functions": (None, []),
    "function_call": (None, "none"),
    "audio": (None,),
    "modalities": (None, ["text"]),
    "web_search_options": (None,),
    "verbosity": (None, "medium"),
    "chat_template": (None, ""),
    "documents": (None, []),
    "add_special_tokens": (None, False),
    "best_of": (None, 1),
    "include_reasoning": (None, True),
}
INERT_COMPLETION: dict[str, tuple[Any, ...]] = _INERT | {
    "suffix": (None, ""),
}


def refuse_unsupported_chat(document: dict[str, Any]) -> None:
    """Raises ApiError 400 for a field that we would have to ignore although it matters."""
    refuse_all_but(document, INERT_CHAT)


def refuse_unsupported_completion(document: dict[str, Any]) -> None:
    """The same for /v1/completions."""
    refuse_all_but(document, INERT_COMPLETION)


def refuse_all_but(document: dict[str, Any], inert: dict[str, tuple[Any, ...]]) -> None:
    """Raises ApiError 400 for a field of `inert` with another value than those listed there."""
    for name in document.keys() & inert.keys():
        if not any(same_json(document[name], value) for value in inert[name]):
            raise bad_request(f"{name} is not supported by this server.", name)


def same_json(value: Any, other: Any) -> bool:
    """As JSON has it: 0 is not false."""
    return type(value) is type(other) and bool(value == other)


def check_stream_options(request: GenerationFields) -> None:
    if request.stream_options is not None and not request.stream:
        raise bad_request("stream_options is only allowed when stream is true.", "stream_options")


def check_prompt_fields(request: GenerationFields) -> None:
    """What is asked of the prompt. Raises ApiError 400."""
    num_logprobs = request.prompt_logprobs
    if num_logprobs is not None:
        if not 0 <= num_logprobs <= MAX_TOP_LOGPROBS:
            raise bad_request(
                f"prompt_logprobs={num_logprobs}: must be in [0, {MAX_TOP_LOGPROBS}]",
                "prompt_logprobs",
            )
        if request.stream:
            raise bad_request("prompt_logprobs are not given in a stream.", "prompt_logprobs")
    keep = request.truncate_prompt_tokens
    if keep is not None and keep != -1 and keep < 1:
        raise bad_request(
            f"truncate_prompt_tokens={keep}: must be at least 1, or -1 for as many as fit",
            "truncate_prompt_tokens",
        )


def includes_usage(request: GenerationFields) -> bool:
    return bool(request.stream_options and request.stream_options.include_usage)


def timeout_seconds(asked: float | None, longest: float) -> float | None:
    """The time that a request has: what it asks for, at most `longest` (0: any). None: any."""
    if asked is not None and not 0 < asked < 1 << 31:
        raise bad_request(f"timeout={asked!r}: must be a positive number of seconds", "timeout")
    limits = [limit for limit in (asked, longest) if limit]
    return min(limits, default=None)


def completion_params(request: CompletionRequest, info: EngineInfo) -> SamplingParams:
    """max_tokens is 1 where nothing is to be completed."""
    max_tokens = DEFAULT_COMPLETION_TOKENS if request.max_tokens is None else request.max_tokens
    if not completes(request):
        max_tokens = 1
    num_choices = num_completions(request)
    logprobs = request.logprobs
    if num_choices != (request.n or 1) and logprobs is None:
        logprobs = 0  # the best are found by it
    params = _sampling_params(request, max_tokens, logprobs, info)
    return params if num_choices == params.n else replace(params, n=num_choices)


def num_completions(request: CompletionRequest) -> int:
    """Of each prompt: best_of, or n. Raises ApiError 400 for bounds that do not hold."""
    check_num_choices(request.n, 1)
    n = 1 if request.n is None else request.n
    if request.best_of is None:
        return n
    check_num_choices(request.best_of, 1, "best_of")
    if request.best_of < n:
        raise bad_request(f"best_of={request.best_of}: must be at least n={n}", "best_of")
    if request.best_of > n and request.stream:
        raise bad_request("best_of: the best are only known at the end of a stream", "best_of")
    return request.best_of


def completes(request: CompletionRequest) -> bool:
    """Whether anything is wanted behind the prompt: an echo alone is not."""
    return not (request.echo and request.max_tokens == 0)


def chat_params(request: ChatRequest, info: EngineInfo) -> SamplingParams:
    """max_tokens stays None when the client names none: up to the context limit."""
    if request.top_logprobs is not None and not request.logprobs:
        raise bad_request("top_logprobs needs logprobs to be true.", "top_logprobs")
    max_tokens = request.max_completion_tokens
    if max_tokens is None:
        max_tokens = request.max_tokens
    logprobs = (request.top_logprobs or 0) if request.logprobs else None
    return _sampling_params(request, max_tokens, logprobs, info)


def _sampling_params(
    request: GenerationFields, max_tokens: int | None, logprobs: int | None, info: EngineInfo
) -> SamplingParams:
    temperature = 1.0 if request.temperature is None else request.temperature
    if not 0 <= temperature <= MAX_TEMPERATURE:
        raise bad_request(
            f"temperature={temperature!r}: must be in [0, {MAX_TEMPERATURE:g}]", "temperature"
        )
    check_num_choices(request.n, 1)
    return SamplingParams(
        max_tokens=max_tokens,
        min_tokens=request.min_tokens or 0,
        temperature=temperature,
        top_k=max(request.top_k or 0, -2),
        top_p=1.0 if request.top_p is None else request.top_p,
        min_p=request.min_p or 0.0,
        repetition_penalty=(
            1.0 if request.repetition_penalty is None else request.repetition_penalty
        ),
        presence_penalty=request.presence_penalty or 0.0,
        frequency_penalty=request.frequency_penalty or 0.0,
        logit_bias=_logit_bias(request.logit_bias, info),
        seed=request.seed,
        stop=_stop(request.stop),
        include_stop_in_output=bool(request.include_stop_str_in_output),
        stop_token_ids=_stop_token_ids(request.stop_token_ids, info),
        ignore_eos=bool(request.ignore_eos),
        allowed_token_ids=_allowed_token_ids(request.allowed_token_ids, info),
        skip_special_tokens=request.skip_special_tokens is not False,
        logprobs=logprobs,
        n=1 if request.n is None else request.n,
    )


def check_num_choices(n: int | None, num_prompts: int, name: str = "n") -> None:
    """The bounds on n (or best_of), before anything is copied n times."""
    n = 1 if n is None else n
    if not 1 <= n <= MAX_CHOICES:
        raise bad_request(f"{name}={n}: must be in [1, {MAX_CHOICES}]", name)
    if n * num_prompts > MAX_SEQUENCES:
        raise bad_request(
            f"{name} * prompts = {n * num_prompts}: must be at most {MAX_SEQUENCES}", name
        )


def check_token_ids(token_ids: list[int], info: EngineInfo, param: str) -> None:
    for token_id in (min(token_ids, default=0), max(token_ids, default=0)):
        if not 0 <= token_id < info.vocab_size:
            raise bad_request(
                f"{param}: token id {token_id} is outside of the vocabulary"
                f" (0 to {info.vocab_size - 1})",
                param,
            )


def _allowed_token_ids(token_ids: list[int] | None, info: EngineInfo) -> tuple[int, ...]:
    if token_ids is None:
        return ()
    if not 1 <= len(token_ids) <= info.vocab_size:
        raise bad_request(
            f"allowed_token_ids: must be 1 to {info.vocab_size} ids", "allowed_token_ids"
        )
    check_token_ids(token_ids, info, "allowed_token_ids")
    return tuple(dict.fromkeys(token_ids))


def context_limit(info: EngineInfo) -> int:
    """Prompt and completion together; the last token needs no place in the KV cache."""
    return min(info.max_context, info.kv_capacity_tokens + 1)


def check_size(size: int, unit: str, limit: int, info: EngineInfo, param: str) -> None:
    """Refuse what is hopelessly long before any work is spent on it."""
    if size > limit:
        raise bad_request(
            f"{param}: {size} {unit} cannot fit this model's maximum context length of"
            f" {context_limit(info)} tokens.",
            param,
            "context_length_exceeded",
        )


def fit_context(
    params: SamplingParams,
    num_prompt_tokens: int,
    info: EngineInfo,
    *,
    named: bool,
    completes: bool = True,
) -> SamplingParams:
    """The parameters for a prompt of this length.

    `named` says that the client asked for this max_tokens. One that it did not name shrinks to the
    room that the prompt leaves; no room, or a named one that does not fit, raises ApiError 400
    context_length_exceeded.
    """
    room = context_limit(info) - num_prompt_tokens
    wanted = params.max_tokens if named and params.max_tokens is not None else 1
    wanted = wanted if completes else 0
    if wanted > room:
        detail = f"{num_prompt_tokens} in the prompt" + (
            f", {wanted} in the completion" if named else ""
        )
        raise bad_request(
            f"This model's maximum context length is {context_limit(info)} tokens, but this request"
            f" needs {num_prompt_tokens + wanted} ({detail}).",
            "max_tokens" if named and room > 0 else None,
            "context_length_exceeded",
        )
    if not completes or params.max_tokens is None or params.max_tokens <= room:
        return params
    return replace(params, max_tokens=room)


def _logit_bias(bias: dict[str, float] | None, info: EngineInfo) -> dict[int, float]:
    result: dict[int, float] = {}
    if bias and len(bias) > MAX_LOGIT_BIAS:
        raise bad_request(f"logit_bias: at most {MAX_LOGIT_BIAS} entries", "logit_bias")
    for key, value in (bias or {}).items():
        if not (key.isascii() and key.isdigit() and len(key) <= 10):
            raise bad_request(f"logit_bias: {key[:32]!r} is not a token id", "logit_bias")
        result[int(key)] = value
    check_token_ids(list(result), info, "logit_bias")
    return result


def _stop(stop: str | list[str] | None) -> tuple[str, ...]:
    if isinstance(stop, str):
        return (stop,)
    return tuple(stop or ())


def _stop_token_ids(token_ids: list[int] | None, info: EngineInfo) -> tuple[int, ...]:
    if not token_ids:
        return ()
    if len(token_ids) > MAX_STOP_TOKEN_IDS:
        raise bad_request(f"stop_token_ids: at most {MAX_STOP_TOKEN_IDS} ids", "stop_token_ids")
    check_token_ids(token_ids, info, "stop_token_ids")
    return tuple(token_ids)
