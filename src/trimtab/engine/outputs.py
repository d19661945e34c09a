"""What a step's numbers are to a request: its outputs, and logprobs read off a result."""

from __future__ import annotations

from trimtab.engine.client import FinishReason, TokenLogprobs, TokenOutput
from trimtab.engine.request import Request
from trimtab.executors.base import Float32Array, StepResult


def score(request: Request, result: StepResult, row: int, num_rows: int) -> None:
    """Keep the logprobs of the prompt tokens, and of the forced ones, that follow on these rows of
    the result."""
    owed = request.owed_rows
    num_scored = min(num_rows, len(owed))
    if not num_scored:
        return
    targets = result.target_logprobs
    assert targets is not None
    first_forced = request.num_tokens - request.num_unscored
    for place in range(num_scored):
        token = owed.start + place + 1
        if token < request.num_prompt_tokens:
            num_top = request.num_prompt_logprobs or 0
            request.prompt_logprobs.append(token_logprobs(result, row + place, num_top, targets))
        elif token >= first_forced:
            num_top = request.params.logprobs or 0
            own = token_logprobs(result, row + place, num_top, targets)
            request.unreported_logprobs.append(own)
            request.num_unscored -= 1


def request_output(
    request: Request,
    token_ids: list[int],
    logprobs: list[TokenLogprobs] | None,
    reason: FinishReason | None = None,
    error: str | None = None,
) -> TokenOutput:
    output = TokenOutput(
        request.request_id,
        token_ids,
        logprobs,
        reason,
        None,
        error,
        request.num_cached_tokens or 0,
    )
    wanted = request.num_prompt_logprobs is not None and not request.has_reported
    if wanted and len(request.prompt_logprobs) >= request.num_prompt_tokens - 1:
        request.has_reported = True
        output.prompt_logprobs = request.prompt_logprobs
    return output


def joined(first: TokenOutput, second: TokenOutput) -> TokenOutput:
    """One output that says what both say, in place of `second`."""
    second.token_ids = first.token_ids + second.token_ids
    if first.logprobs is not None:
        second.logprobs = first.logprobs + (second.logprobs or [])
    second.prompt_logprobs = first.prompt_logprobs
    return second


def token_logprobs(
    result: StepResult, row: int, num_top: int, logprobs: Float32Array
) -> TokenLogprobs:
    """`logprobs` [R]: of the tokens that stand there."""
    ids = result.top_ids[row, :num_top].tolist()
    values = result.top_logprobs[row, :num_top].tolist()
    top = [(i, value) for i, value in zip(ids, values, strict=True) if i >= 0]
    return TokenLogprobs(float(logprobs[row]), top)
