"""transformers' continuous batching on the same card, in the same environment.

Its manager is started once and given each case twice: the first time compiles, captures graphs and
fills caches, the second is measured. Wall time from the first prompt handed over to the last token
of the last one; greedy, end tokens none, every answer checked to be as long as it was to be.
"""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from gpu.context import Context, is_fatal, one_line
from gpu.shapes import CASES, TINY_CASES, Case

WANTED = ((64, 128), (1, 128), (64, 1024), (8, 128), (256, 128))  # streams, prompt
ANSWER_SECONDS = 60.0  # without any answer: it hangs
EXPECTED_SECONDS = 6.0  # of a case that was not seen yet, its warm-up included


def run(context: Context) -> None:
    settings = context.settings
    cases = list(TINY_CASES[:2])
    if not settings.tiny:
        cases = [one for want in WANTED for one in CASES if (one.streams, one.prompt) == want]
    context.plan(["load", *(case.name for case in cases)])
    context.leave_out("open loop", "only streams that begin together are compared")
    try:
        from gpu.transformers_models import attention_kinds
    except Exception as error:  # of what kind depends on the package that is missing
        context.skip(f"transformers cannot be imported: {one_line(error)}")
        return
    logging.disable(logging.WARNING)
    errors = []
    for attention in attention_kinds(settings.device):
        try:
            peer = Peer(context, attention, cases)
        except Exception as error:
            if is_fatal(error):
                raise
            errors.append(f"{attention}: {one_line(error)}")
            continue
        context.result("load", about=peer.about, seconds=peer.seconds, tried=errors)
        try:
            for case in cases:
                if context.has_time(case.name, peer.expected(case)):
                    context.attempt(case.name, lambda: peer.measure(case))  # noqa: B023
        finally:
            peer.close()
        return
    raise RuntimeError("its continuous batching did not start: " + "; ".join(errors))


class Peer:
    def __init__(self, context: Context, attention: str, cases: Sequence[Case]) -> None:
        """Starts it, and has one short answer from it."""
        import torch

        from gpu.transformers_models import about, make_model

        settings = context.settings
        start = time.perf_counter()
        self._model = make_model(
            context.arguments["shape"], settings.tiny, settings.device, torch.bfloat16, attention
        )
        self._vocabulary = self._model.config.vocab_size
        self._random = np.random.default_rng(settings.seed)
        self._seen: dict[str, float] = {}
        self._warm: set[Case] = set()
        self._per_token: float | None = None
        self._manager = start_manager(self._model, cases, settings.tiny)
        try:
            self._generate(Case(1, 8, 4))
        except BaseException:
            self.close()
            raise
        self.seconds = time.perf_counter() - start
        found = getattr(self._model.config, "_attn_implementation", attention)
        self.about = f"{about()}, continuous batching, attention {found}, bf16"

    def measure(self, case: Case) -> dict[str, Any]:
        if case not in self._warm:
            self._warm.add(case)
            self._generate(case)
        seconds = self._generate(case)
        tokens = case.streams * case.output
        self._per_token = seconds / (tokens + case.streams * case.prompt / 16)
        return {"seconds": seconds, "tokens_per_s": tokens / seconds}

    def expected(self, case: Case) -> float:
        if self._per_token is None:
            return EXPECTED_SECONDS
        return 2 * self._per_token * case.streams * (case.output + case.prompt / 16)

    def close(self) -> None:
        self._manager.stop(block=True)

    def _generate(self, case: Case) -> float:
        """Seconds. RuntimeError for an answer that failed or is too short."""
        prompts = self._random.integers(0, self._vocabulary, (case.streams, case.prompt)).tolist()
        start = time.perf_counter()
        for ids in prompts:
            self._manager.add_request(ids, max_new_tokens=case.output)
        ended, waited = 0, time.monotonic()
        while ended < case.streams:
            result = self._manager.get_result(timeout=1)
            if result is None:
                if not self._manager.is_running():
                    raise RuntimeError("its generation thread ended")
                if time.monotonic() - waited > ANSWER_SECONDS:
                    raise RuntimeError(f"no answer for {ANSWER_SECONDS:g} s")
                continue
            waited = time.monotonic()
            if not result.is_finished():
                continue
            ended += 1
            if result.error is not None or len(result.generated_tokens) != case.output:
                raise RuntimeError(
                    f"{len(result.generated_tokens)} of {case.output} tokens: {result.error}"
                )
        return time.perf_counter() - start


def start_manager(model: Any, cases: Sequence[Case], tiny: bool) -> Any:
    """A running manager. Its own defaults, but for end tokens, and that it fetches no attention
    kernels. On a CPU also sizes, which it would take from a GPU's memory."""
    from transformers import GenerationConfig

    sizes = {"num_blocks": 64, "max_batch_tokens": 64} if tiny else {}
    generation = GenerationConfig(
        max_new_tokens=max(case.output for case in cases),
        do_sample=False,
        eos_token_id=-1,
        pad_token_id=0,
    )
    parameters = inspect.signature(model.init_continuous_batching).parameters
    options: dict[str, Any] = {"generation_config": generation}
    if "continuous_batching_config" in parameters:
        from transformers.generation.configuration_utils import ContinuousBatchingConfig

        known = inspect.signature(ContinuousBatchingConfig).parameters
        wanted = {**sizes, "auto_switch_to_flash": False}
        options["continuous_batching_config"] = ContinuousBatchingConfig(
            **{name: value for name, value in wanted.items() if name in known}
        )
    else:  # until version 5, sizes are fields of the generation config
        for name, value in sizes.items():
            setattr(generation, name, value)
    manager = model.init_continuous_batching(**options)
    if model.device.type == "cuda" and hasattr(manager, "warmup"):  # as generate_batch does
        manager.warmup()
    manager.start()
    return manager
