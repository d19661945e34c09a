"""On the real executor: with drafts, the same tokens and the same logprobs, bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
from engine_schedules import Answer
from proposers import FREE, QUICK

from trimtab import builtin
from trimtab.checkpoints import open_checkpoint
from trimtab.checkpoints.draft_head import open_draft_head
from trimtab.config import ExecutorConfig, SchedulerConfig
from trimtab.engine.client import EngineRequest, Grammar
from trimtab.engine.engine import Engine
from trimtab.engine.llguidance_grammars import LlguidanceGrammars
from trimtab.engine.sampling_params import SamplingParams
from trimtab.engine.speculation.draft_model import DraftModel
from trimtab.engine.speculation.heads import HeadsProposer
from trimtab.engine.speculation.lookup import LookupProposer
from trimtab.engine.speculation.proposer import Proposer
from trimtab.engine.speculation.speculator import Speculator
from trimtab.tokenization import load_tokenizer

pytest.importorskip("trimtab._native")

from trimtab.executors.cpu import CpuExecutor
from trimtab.executors.cpu_draft_head import CpuDraftHead

NUM_BLOCKS = 256
SETTINGS: dict[str, dict[str, object]] = {
    "greedy": {},
    "seeded": {"temperature": 0.8, "seed": 11},
    "filters": {"temperature": 1.0, "seed": 12, "top_k": 20, "top_p": 0.9, "min_p": 0.02},
    "penalties": {
        "repetition_penalty": 1.1,
        "presence_penalty": 0.3,
        "frequency_penalty": 0.2,
        "temperature": 0.8,
        "seed": 13,
    },
    "bias": {"logit_bias": {200: 4.0, 31: -3.0, 500: 1.5}},
    "logprobs": {"logprobs": 4, "temperature": 0.8, "seed": 14},
    "bans": {"min_tokens": 20, "stop_token_ids": (31, 200), "banned_sequences": ((12, 13), (40,))},
    "grammar": {"temperature": 0.8, "seed": 15, "logprobs": 1},
}


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    tokenizer = load_tokenizer(builtin.target_path())
    text = builtin.heldout_path().read_text(encoding="utf-8")
    return [tokenizer.encode(text[at : at + 500]) for at in range(0, 40_000, 2_500)]


def requests(prompts: list[list[int]], count: int) -> list[EngineRequest]:
    """`count` of them, going through the settings."""
    made = []
    names = list(SETTINGS)
    for index in range(count):
        name = names[index % len(names)]
        params: dict[str, object] = {"temperature": 0.0, "max_tokens": 24} | SETTINGS[name]
        if index >= len(names) and "seed" in params:
            params["seed"] = 100 + index  # the choices of n > 1 have seeds of their own
        grammar = None
        if name == "grammar":
            grammar = Grammar("regex", r"(x|def) [a-z_]+\(([a-z]+, )*[a-z]+\): [a-z0-9 \n]{10,80}")
        made.append(
            EngineRequest(
                f"{name} {index}",
                prompts[index % len(prompts)],
                SamplingParams(**params),  # type: ignore[arg-type]
                grammar=grammar,
            )
        )
    return made


def executor(path: object, num_blocks: int, pool: object = None) -> CpuExecutor:
    config = ExecutorConfig(weights="int8", threads=2, num_blocks=num_blocks)
    return CpuExecutor(open_checkpoint(path, 0), config, pool)  # type: ignore[arg-type]


def answers(
    engine: Engine, wanted: list[EngineRequest], reckless: bool = False
) -> dict[str, Answer]:
    """`reckless`: admission expects completions to end at once, so that many are preempted."""
    found = {request.request_id: Answer() for request in wanted}
    for request in wanted:
        engine.add_request(request)
    while engine.num_live_requests:
        if reckless:
            engine.scheduler.estimate.tokens = 0
        for output in engine.step():
            found[output.request_id].add(output)
    engine.check()
    for answer in found.values():
        answer.num_cached_tokens = 0  # a matter of the schedule
    return found


def engine(names: str, num_blocks: int, budget: int) -> Engine:
    """With these proposers; "" for no drafts."""
    tokenizer = load_tokenizer(builtin.target_path())
    grammars = LlguidanceGrammars(lambda: tokenizer, tokenizer.vocab_size)
    target = executor(builtin.target_path(), num_blocks)
    guessing = proposers(names, target, num_blocks)
    speculator = Speculator(guessing, FREE, max_draft_tokens=5) if guessing else None
    return Engine(
        target,
        SchedulerConfig(max_batch_tokens=budget),
        debug=True,
        grammars=grammars,
        speculator=speculator,
    )


@pytest.fixture(scope="module")
def plain(prompts: list[list[int]]) -> dict[str, Answer]:
    """The answers to all requests, one by one and without drafts."""
    one_by_one = engine("", NUM_BLOCKS, 512)
    found = {}
    for request in requests(prompts, 16):
        found |= answers(one_by_one, [request])
    one_by_one.close()
    return found


def drafting_for(path: Path, num_blocks: int) -> DraftModel:
    target_vocab = load_tokenizer(builtin.target_path()).vocab_size
    return DraftModel(executor(path, num_blocks), target_vocab, QUICK)


def proposers(names: str, target: CpuExecutor, num_blocks: int) -> list[Proposer]:
    made: list[Proposer] = []
    if "lookup" in names:
        made.append(LookupProposer())
    if "heads" in names:
        head = CpuDraftHead(open_draft_head(builtin.heads_path(), target.spec), target)
        target.set_feature_layers(head.spec.layer_ids)
        made.append(HeadsProposer(head, target.capacity.block_size, QUICK))
    if "draft" in names:
        made.append(drafting_for(builtin.draft_path(), num_blocks))
    if "itself" in names:
        made.append(drafting_for(builtin.target_path(), num_blocks))
    return made


@pytest.mark.parametrize(
    "names", ["lookup", "draft", "heads", "lookup+draft", "lookup+heads+draft"]
)
@pytest.mark.parametrize(
    ("batch", "budget", "num_blocks"),
    [(1, 512, NUM_BLOCKS), (4, 7, NUM_BLOCKS), (16, 64, NUM_BLOCKS), (16, 37, 36)],
    ids=["one by one", "four, small chunks", "sixteen", "preempted"],
)
def test_drafts_change_no_bit(
    names: str,
    batch: int,
    budget: int,
    num_blocks: int,
    prompts: list[list[int]],
    plain: dict[str, Answer],
) -> None:
    drafting = engine(names, num_blocks, budget)
    wanted = requests(prompts, 16)

    found = {}
    for start in range(0, len(wanted), batch):
        found |= answers(drafting, wanted[start : start + batch], num_blocks < NUM_BLOCKS)

    assert found == plain
    stats = drafting.stats()
    assert stats.speculation is not None
    assert stats.speculation.num_accepted > 0
    assert stats.speculation.num_accepted < stats.speculation.num_drafted
    assert (stats.num_preemptions > 0) == (num_blocks < NUM_BLOCKS)
    drafting.close()


@pytest.mark.parametrize("batch", [1, 16])
def test_a_model_that_drafts_for_itself_is_always_right(
    batch: int, prompts: list[list[int]], plain: dict[str, Answer]
) -> None:
    """Whatever the sampling parameters, and whoever else is drafted for."""
    drafting = engine("itself", NUM_BLOCKS, 512)
    wanted = requests(prompts, 16)
    found = {}
    for start in range(0, len(wanted), batch):
        found |= answers(drafting, wanted[start : start + batch])
    assert found == plain
    speculation = drafting.stats().speculation
    assert speculation is not None
    assert speculation.num_accepted == speculation.num_drafted > 100
    drafting.close()
