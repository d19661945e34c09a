"""Drafts on the torch executor: the same tokens and the same logprobs, bit for bit.

The target is the built-in draft model; who drafts for it is the same model in float8, nearly always
right, and lookup. Heads run beside device=cpu only.
"""

from __future__ import annotations

import pytest
from engine_schedules import Answer
from proposers import FREE, QUICK
from test_speculation_on_cpu import SETTINGS, answers, requests

from trimtab import builtin
from trimtab.checkpoints import open_checkpoint
from trimtab.config import ExecutorConfig, SchedulerConfig, WeightFormat
from trimtab.engine.client import EngineRequest
from trimtab.engine.engine import Engine
from trimtab.engine.llguidance_grammars import LlguidanceGrammars
from trimtab.engine.speculation.draft_model import DraftModel
from trimtab.engine.speculation.lookup import LookupProposer
from trimtab.engine.speculation.proposer import Proposer
from trimtab.engine.speculation.speculator import Speculator
from trimtab.executors.gpu.executor import TorchExecutor
from trimtab.tokenization import load_tokenizer

NUM_BLOCKS = 64
SCARCE = 16


def executor(num_blocks: int, weights: WeightFormat = "bf16") -> TorchExecutor:
    config = ExecutorConfig(device="torch-cpu", weights=weights, num_blocks=num_blocks)
    return TorchExecutor(open_checkpoint(builtin.draft_path(), 512), config)


def engine(names: str, num_blocks: int, budget: int) -> Engine:
    """With these proposers; "" for no drafts."""
    tokenizer = load_tokenizer(builtin.draft_path())
    target = executor(num_blocks)
    vocab = target.spec.vocab_size
    guessing: list[Proposer] = []
    if "lookup" in names:
        guessing.append(LookupProposer())
    if "draft" in names:
        guessing.append(DraftModel(executor(num_blocks, "fp8"), vocab, QUICK))
    if "itself" in names:
        guessing.append(DraftModel(executor(num_blocks), vocab, QUICK))
    return Engine(
        target,
        SchedulerConfig(max_batch_tokens=budget),
        debug=True,
        grammars=LlguidanceGrammars(lambda: tokenizer, tokenizer.vocab_size),
        speculator=Speculator(guessing, FREE, max_draft_tokens=5) if guessing else None,
    )


@pytest.fixture(scope="module")
def wanted() -> list[EngineRequest]:
    tokenizer = load_tokenizer(builtin.draft_path())
    text = builtin.heldout_path().read_text(encoding="utf-8")
    prompts = [tokenizer.encode(text[at : at + 90]) for at in range(0, 40_000, 5_000)]
    return requests(prompts, len(SETTINGS))


@pytest.fixture(scope="module")
def plain(wanted: list[EngineRequest]) -> dict[str, Answer]:
    """The answers to all requests, one by one and without drafts."""
    one_by_one = engine("", NUM_BLOCKS, 512)
    found = {}
    for request in wanted:
        found |= answers(one_by_one, [request])
    one_by_one.close()
    return found


@pytest.mark.parametrize(
    ("names", "budget", "num_blocks"),
    [
        ("", 7, NUM_BLOCKS),
        ("", 64, SCARCE),
        ("lookup", 64, NUM_BLOCKS),
        ("draft", 37, SCARCE),
        ("lookup+draft", 64, NUM_BLOCKS),
        ("itself", 64, NUM_BLOCKS),
    ],
)
def test_drafts_change_no_bit(
    names: str,
    budget: int,
    num_blocks: int,
    wanted: list[EngineRequest],
    plain: dict[str, Answer],
) -> None:
    drafting = engine(names, num_blocks, budget)
    assert answers(drafting, wanted, reckless=num_blocks == SCARCE) == plain
    stats = drafting.stats()
    assert (stats.num_preemptions > 0) == (num_blocks == SCARCE)
    drafting.close()
    if not names:
        return
    assert stats.speculation is not None
    assert stats.speculation.num_accepted > 0
    is_right = stats.speculation.num_accepted == stats.speculation.num_drafted
    assert is_right == (names == "itself")
