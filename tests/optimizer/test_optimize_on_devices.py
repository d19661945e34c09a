"""The optimizer on the devices of torch: what follows from the device, and a whole run on one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from plans import plan_of
from step_models import known as made_known

from trimtab.bench.device import DeviceLimits
from trimtab.checkpoints import open_checkpoint
from trimtab.config import DEVICE_KV, DEVICE_WEIGHTS, ExecutorConfig, SchedulerConfig
from trimtab.errors import UserError
from trimtab.executors.devices import DeviceFacts
from trimtab.optimizer.cache import cache_directory
from trimtab.optimizer.devices import ask_device, default_scheduler, facts_of, probe_limits
from trimtab.optimizer.fingerprint import Fingerprint, changed_versions, versions
from trimtab.optimizer.memory import predict_memory
from trimtab.optimizer.need import make_need
from trimtab.optimizer.order import Order
from trimtab.optimizer.plan import read_plan
from trimtab.optimizer.reference import reference_key
from trimtab.optimizer.run import Optimization
from trimtab.optimizer.serving import prepare_plan
from trimtab.optimizer.usage import use_of
from trimtab.optimizer.variants import Variant

torch = pytest.importorskip("torch")
H200 = DeviceFacts("cuda", "NVIDIA H200", "570.86.15", 141 << 30, "2.11.0", 1)


def limits(facts: DeviceFacts, **macs: float) -> DeviceLimits:
    return DeviceLimits("a CPU", "", 8, 4e12, 4e12, 3e12, macs, facts)  # type: ignore[arg-type]


def test_products_that_a_gpu_lacks_are_those_of_bf16() -> None:
    full = limits(H200, f32=3e13, bf16=4e14, fp8=8e14, int8=7e14)
    assert [full.linear_macs_per_s(n) for n in ("f32", "bf16", "fp8", "int8")] == [
        3e13, 4e14, 8e14, 7e14,
    ]  # fmt: skip
    assert limits(H200, f32=3e13, bf16=4e14).linear_macs_per_s("fp8") == 4e14
    on_cpu = limits(replace(H200, device="torch-cpu"), f32=2e10, bf16=1e10)
    assert on_cpu.linear_macs_per_s("bf16") == 2e10
    assert full.title == "NVIDIA H200 (cuda)"
    assert DeviceLimits.from_json(json.loads(json.dumps(full.as_json()))) == full


def test_a_device_is_asked_in_a_process_of_its_own() -> None:
    found = probe_limits("torch-cpu")
    facts = facts_of(found)
    assert facts == ask_device("torch-cpu")
    assert (facts.device, facts.torch) == ("torch-cpu", torch.__version__)
    assert found.read_bytes_per_s > 1e8
    assert ask_device("cpu") == DeviceFacts()
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="torch finds no GPU here"):
            ask_device("cuda")


@pytest.mark.parametrize("weights", ["bf16", "int8", "fp8"])
@pytest.mark.parametrize("kv_cache", ["bf16", "fp8"])
def test_memory_is_what_the_executor_holds(model: Path, weights: Any, kv_cache: Any) -> None:
    from trimtab.executors.gpu.executor import TorchExecutor

    checkpoint = open_checkpoint(model)
    config = ExecutorConfig(device="torch-cpu", weights=weights, kv_cache=kv_cache, num_blocks=40)
    executor = TorchExecutor(checkpoint, config)
    parts = predict_memory(checkpoint.spec, config, SchedulerConfig(), 40)
    assert parts.weights == pytest.approx(executor.weight_bytes, rel=0.05)
    assert parts.kv_cache == 40 * executor.capacity.bytes_per_block
    assert parts.draft == 0
    on_gpu = predict_memory(checkpoint.spec, replace(config, device="cuda"), SchedulerConfig(), 40)
    assert on_gpu.python == 0 < parts.python
    wide = SchedulerConfig(max_batch_tokens=256)
    more = predict_memory(checkpoint.spec, replace(config, device="cuda"), wide, 40)
    assert more.activations < on_gpu.activations


def test_another_share_of_the_memory_is_another_cache() -> None:
    known = made_known(1.0)
    per_block = known.calibration.capacity.bytes_per_block
    machine = {"memory_bytes": 1000 * per_block}
    known = replace(known, calibration=replace(known.calibration, machine=machine))
    own = known.server(SchedulerConfig(), known.memory_share).num_blocks
    assert own == known.calibration.capacity.num_blocks
    assert known.server(SchedulerConfig(), known.memory_share - 0.1).num_blocks == own - 100
    assert known.server(SchedulerConfig(), known.memory_share + 0.05).num_blocks == own + 50


def test_another_gpu_driver_or_torch_is_another_machine() -> None:
    there = Fingerprint("a CPU", 8, "avx2", 128.0, "cuda", H200.gpu, H200.driver, 141.0)
    assert there.differences(there) == []
    other = replace(there, gpu="NVIDIA L4", driver="580.1", gpu_memory_gib=24.0)
    assert there.differences(other) == [
        "GPU NVIDIA L4 instead of NVIDIA H200",
        "driver 580.1 instead of 570.86.15",
        "24 GiB on the GPU instead of 141",
    ]
    assert "device cpu instead of cuda" in there.differences(replace(there, device="cpu"))
    then = versions(H200)
    assert changed_versions(then, H200) == []
    newer = replace(H200, torch="2.12.0", revision=2)
    assert changed_versions(then, newer) == [
        "numerics torch 2 instead of torch 1",
        "torch 2.12.0 instead of 2.11.0",
    ]
    keys = {reference_key("m", "s", "w", one.numerics) for one in (DeviceFacts(), H200, newer)}
    assert len(keys) == 3


def test_what_a_driver_is_called(tmp_path: Path) -> None:
    from trimtab.executors.gpu.facts import driver_version

    path = tmp_path / "version"
    kind = "NVIDIA UNIX Open Kernel Module for x86_64"
    path.write_text(f"NVRM version: {kind}  570.86.15  Release Build  (a@b)\nGCC version: 12.3.0\n")
    assert driver_version(path) == "570.86.15"
    path.write_text("something else\n")
    assert driver_version(path) == ""
    assert driver_version(tmp_path / "none") == ""


def test_a_plan_served_on_another_device_says_so(tmp_path: Path) -> None:
    plan_of().write(tmp_path / "plan.yaml")
    prepared = prepare_plan(tmp_path / "plan.yaml", {"device": "torch-cpu"})
    assert prepared.executor.device == "torch-cpu"
    notes = prepared.document["notes"]
    assert "device torch-cpu instead of cpu" in notes[0]
    assert "do not carry over" in notes[0]
    assert not any("numerics" in note for note in notes)


# ---- a run, stage by stage: all of one takes minutes, for every trial is a process with torch


@pytest.fixture(scope="module")
def run(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Optimization]:
    patch = pytest.MonkeyPatch()
    patch.setenv("TRIMTAB_OPTIMIZER_CACHE", str(tmp_path_factory.mktemp("cache")))
    directory = tmp_path_factory.mktemp("optimize")
    (directory / "workload.jsonl").write_text('{"prompt": "abcdefgh", "max_tokens": 4}\n' * 4)
    (directory / "text").write_text("Small models are quickly read. " * 80)
    order = Order(
        model=str(model),
        need=make_need(
            workload=str(directory / "workload.jsonl"),
            slo="ttft:p50<30s; itl:mean<10s",
            quality="top1>=0.1",
        ),
        directory=directory,
        budget_seconds=5.0,
        texts=(directory / "text",),
        max_context=64,
        device="torch-cpu",
    )
    made = Optimization(order, lambda line: None)
    made.bound()
    yield made
    made.journal.close()
    patch.undo()


def test_what_is_tried_follows_from_the_device(run: Optimization) -> None:
    tried = [entry.candidate for entry in run.found.entries.all]
    assert {one.variant.weights for one in tried} == {*DEVICE_WEIGHTS["torch-cpu"]} - {"f32"}
    assert {one.variant.kv_cache for one in tried} == {*DEVICE_KV["torch-cpu"]} - {"f32"}
    assert {one.executor(run.found.trials.base).device for one in tried} == {"torch-cpu"}
    assert {knob.name for knob in run.knobs} == {
        "max_batch_tokens",
        "max_num_requests",
        "prefix_cache",
    }
    assert all(entry.memory and entry.memory.total > 0 for entry in run.found.entries.all)


def test_quality_is_that_of_the_device(run: Optimization) -> None:
    found = run.found.trials.quality(Variant("fp8", kv_cache="fp8"), run.texts, 120.0, 16)
    assert found.failed is None
    assert found.meets
    assert 0 < found.summary["kl:mean"]["value"] < 1  # not the unmodified model
    references = [path.parent.name for path in cache_directory("references").glob("*/*.f32")]
    assert references


def test_steps_and_loads_are_measured_on_it(run: Optimization, tmp_path: Path) -> None:
    candidate, trials = run.default, run.found.trials
    known, failed = trials.calibration(candidate, 0.2, 64, 16)
    assert failed is None
    assert known is not None
    assert known.calibration.device == "torch-cpu"
    assert known.guesses is None
    run.found.predictor.learn(candidate, known)
    assert run.found.predictor.score(candidate, 0.0) > 0
    with trials.server(candidate, tmp_path) as server:
        point = trials.load(candidate, lambda rate: 1.0, server, 2.0, 7)
        assert server.get().description.startswith("torch cpu bf16")
        usage = server.get().lap()
    assert point.met
    assert usage.num_output_tokens > 0
    entry = run.found.entries.of(candidate)
    use = use_of(run.found, entry, usage, [point])
    assert 0 < use["bandwidth_use"] < 1
    assert 0 < use["arithmetic_use"] < 1


def test_a_plan_is_of_the_device(run: Optimization, tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    run.found.trials.plan(run.default).write(path)
    plan = read_plan(path)
    assert plan.executor.device == plan.machine.device == "torch-cpu"
    assert plan.versions["torch"] == torch.__version__
    assert prepare_plan(path, {}).document["notes"] == []
    notes = prepare_plan(path, {"device": "cpu"}).document["notes"]
    assert "device cpu instead of torch-cpu" in notes[0]
    assert "do not carry over" in notes[0]


def test_energy_of_a_gpu_is_not_to_be_had(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "trimtab.optimizer.run.probe_limits", lambda device: limits(H200, bf16=4e14)
    )
    order = Order(str(model), make_need(minimize="energy"), tmp_path, device="cuda")
    with pytest.raises(UserError, match="nothing here tells what a GPU takes"):
        Optimization(order, lambda line: None)
    asked = replace(order, need=make_need(memory="14.1GiB"))
    made = Optimization(asked, lambda line: None)
    made.journal.close()
    assert made.found.trials.base.memory_share == pytest.approx(0.1)
    assert made.default.executor(made.found.trials.base).memory_share == pytest.approx(0.1)
    assert made.found.memory_limit == pytest.approx(14.1 * (1 << 30), rel=1e-6)
    assert made.default.scheduler == default_scheduler("cuda")
    assert made.default.run_changes == {}
