"""The built-in model's draft head, as it is shipped, and that it is good for something."""

from __future__ import annotations

from safetensors import safe_open

from trimtab import builtin
from trimtab.checkpoints import open_checkpoint
from trimtab.checkpoints.draft_head import open_draft_head
from trimtab.config import ExecutorConfig, SchedulerConfig
from trimtab.engine.client import EngineRequest
from trimtab.engine.engine import Engine
from trimtab.engine.sampling_params import SamplingParams
from trimtab.engine.speculation.costs import StepCosts
from trimtab.engine.speculation.heads import HeadsProposer
from trimtab.engine.speculation.speculator import Speculator
from trimtab.executors.cpu import CpuExecutor
from trimtab.executors.cpu_draft_head import CpuDraftHead
from trimtab.tokenization import load_tokenizer

FREE = StepCosts({1: 1.0, 512: 1.0})  # rows cost nothing: every guess pays
QUICK = StepCosts({1: 1e-6, 512: 1e-6})


def prompts(count: int) -> list[list[int]]:
    tokenizer = load_tokenizer(builtin.target_path())
    text = builtin.heldout_path().read_text(encoding="utf-8")
    pieces = [text[index * 20_000 : index * 20_000 + 400] for index in range(count)]
    return [tokenizer.encode(piece) for piece in pieces]


def answers(engine: Engine, wanted: list[list[int]], temperature: float) -> list[list[int]]:
    for index, prompt in enumerate(wanted):
        params = SamplingParams(temperature=temperature, max_tokens=48, seed=index, ignore_eos=True)
        engine.add_request(EngineRequest(str(index), prompt, params))
    found: list[list[int]] = [[] for _ in wanted]
    while engine.num_live_requests:
        for output in engine.step():
            found[int(output.request_id)] += output.token_ids
    return found


def test_it_is_a_published_head_for_the_target() -> None:
    target = open_checkpoint(builtin.target_path()).spec
    checkpoint = open_draft_head(builtin.heads_path(), target)
    assert not checkpoint.has_embeddings
    assert checkpoint.target_ids is None
    with safe_open(builtin.heads_path() / "model.safetensors", framework="numpy") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"BF16"}  # noqa: SIM118


def test_most_of_what_it_drafts_first_is_right() -> None:
    """Greedy and, with the target's own noise, at a temperature; the answers do not change."""
    checkpoint = open_checkpoint(builtin.target_path())
    wanted = prompts(6)
    for temperature, least in ((0.0, 0.6), (0.8, 0.5)):
        config = ExecutorConfig(num_blocks=128, threads=2)
        expected = answers(Engine(CpuExecutor(checkpoint, config)), wanted, temperature)
        target = CpuExecutor(checkpoint, config)
        head = CpuDraftHead(open_draft_head(builtin.heads_path(), target.spec), target)
        target.set_feature_layers(head.spec.layer_ids)
        proposer = HeadsProposer(head, target.capacity.block_size, QUICK)
        speculator = Speculator([proposer], FREE, 6)
        engine = Engine(target, SchedulerConfig(), debug=True, speculator=speculator)
        assert answers(engine, wanted, temperature) == expected
        stats = speculator.stats()
        assert stats.drafted_by_position[0] > 50
        assert stats.accepted_by_position[0] / stats.drafted_by_position[0] > least
        engine.close()
