"""The speed measurement drives the real engine; the arithmetic of its table is checked by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from public_shapes import QWEN3_06B

from trimtab.bench.footprint import footprint
from trimtab.bench.inspection import describe, inspection
from trimtab.bench.long_context import STEPS, decode_rate
from trimtab.bench.machine import MachineLimits
from trimtab.bench.report import Row, ceiling_of, rows, table
from trimtab.bench.speed import Plan, Rate, Subject, measure
from trimtab.config import ExecutorConfig, SchedulerConfig
from trimtab.engine.engine import Engine
from trimtab.errors import ConfigError
from trimtab.executors.base import StepBatch, StepResult
from trimtab.executors.toy import ToyExecutor

MACHINE = MachineLimits(
    cpu="a CPU",
    isa="portable",
    threads=2,
    read_bytes_per_s=50e9,
    read_bytes_per_s_median=45e9,
    read_bytes_per_s_low=40e9,
    macs_per_s={"f32": 0.1e12, "bf16": 0.25e12, "int8": 0.5e12, "int4": 0.5e12},
)


def toy_subject(label: str) -> Subject:
    executor = ToyExecutor(num_blocks=256, block_size=16)
    engine = Engine(executor, SchedulerConfig(prefix_cache=False))
    return Subject(label, engine, executor.spec.vocab_size)


def test_every_row_gets_a_sample_each_round() -> None:
    subjects = [toy_subject("a"), toy_subject("b")]
    rounds = []
    measure(subjects, Plan((32, 64), (2,), contexts=(40,), rounds=2), lambda: rounds.append(1))
    assert len(rounds) == 2
    for subject in subjects:
        rates = subject.rates()
        assert list(rates) == ["decode", "prefill 32", "prefill 64", "2 streams", "decode 40"]
        assert all(rate.rounds == 2 and 0 < rate.low <= rate.high for rate in rates.values())
        assert subject.engine.stats().num_running == 0


def test_decode_after_a_long_context_reads_all_of_it() -> None:
    class Recorder(ToyExecutor):
        def execute(self, batch: StepBatch) -> StepResult:
            steps.append((batch.positions.tolist(), len(batch.logit_rows)))
            last = batch.positions[-1]
            found = self._blocks[batch.block_ids].reshape(-1, 2)[:last, 0]
            assert len(batch.positions) > 1 or (found >= 0).all()  # no block was left unwritten
            return super().execute(batch)

    steps: list[tuple[list[int], int]] = []
    assert decode_rate(Recorder(num_blocks=16, block_size=16), 150) > 0
    assert steps[0] == (list(range(16)), 0)
    assert steps[1:] == [([150 + i], 1) for i in range(2 + STEPS)]
    assert decode_rate(Recorder(num_blocks=16, block_size=16), 3) > 0  # shorter than a block


@pytest.mark.parametrize(
    ("context", "blocks", "message"),
    [(223, 64, "the 34 tokens after it are more than the 256"), (150, 8, "needs 12 blocks")],
)
def test_contexts_that_do_not_fit(context: int, blocks: int, message: str) -> None:
    executor = ToyExecutor(num_blocks=blocks, block_size=16)
    with pytest.raises(ConfigError, match=message):
        decode_rate(executor, context)
    assert executor.num_steps == 0


def test_rate_is_a_median() -> None:
    assert Rate.of([3.0, 1.0, 2.0]) == Rate(2.0, 1.0, 3.0, 3)


def test_ceilings_of_the_measures() -> None:
    config = ExecutorConfig(weights="int8")
    model = footprint(QWEN3_06B, config)
    step_bytes = model.read_bytes_per_step + 192 * model.kv_bytes_per_token
    assert ceiling_of("decode", model, MACHINE) == pytest.approx(50e9 / step_bytes)
    long = step_bytes + 8016 * model.kv_bytes_per_token
    assert ceiling_of("decode 8192", model, MACHINE) == pytest.approx(50e9 / long)
    one, eight = (ceiling_of(f"{n} streams", model, MACHINE) for n in (1, 8))
    assert one < 50e9 / step_bytes  # the prefill counts
    assert one < eight < 8 * one  # weights are read once for all, KV for each
    arithmetic = model.layer_macs_per_token / 0.5e12
    assert ceiling_of("prefill 512", model, MACHINE) < 1 / arithmetic


def test_weights_may_be_computed_in_a_wider_format() -> None:
    slow_bf16 = replace(MACHINE, macs_per_s=MACHINE.macs_per_s | {"bf16": 0.05e12})
    assert slow_bf16.linear_macs_per_s("bf16") == 0.1e12  # as f32
    assert slow_bf16.linear_macs_per_s("f32") == 0.1e12
    assert slow_bf16.linear_macs_per_s("int4") == 0.5e12


def test_table_names_every_figure() -> None:
    row = Row("decode", Rate(10.0, 9.0, 11.0, 3), 20.0)
    text = "\n".join(table({"int8": [row]}))
    assert "| decode | **10.0** [9.0, 11.0] of 20.0: 50 % |" in text
    config = ExecutorConfig(weights="int8")
    made = rows({"decode": row.rate}, footprint(QWEN3_06B, config), MACHINE)
    assert made[0].as_json()["percent_of_ceiling"] == pytest.approx(made[0].percent)


def test_inspection_speaks_of_this_model_and_machine() -> None:
    found = inspection(QWEN3_06B, ExecutorConfig(weights="int4"), MACHINE)
    text = "\n".join(describe(found))
    for part in ("596.0 M parameters", "int4-g64", "KV cache (bf16): 112.0 KiB", "50.0 GB/s"):
        assert part in text
    data = found.as_json()
    assert data["bytes"]["weights"] == sum(data["bytes"]["by_part"].values())
    assert set(data["ceilings"]["decode_tokens_per_s"]) == {"192", "2048", "8192", "32768"}
