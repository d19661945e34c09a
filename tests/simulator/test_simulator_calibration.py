"""A calibration is kept in a file, and serves every setting that needs no other measurement."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from simulated import LINEAR, open_loop

from trimtab.config import ExecutorConfig, SchedulerConfig
from trimtab.errors import ConfigError, UserError
from trimtab.executors.base import KVCapacity
from trimtab.simulator.calibrate import CalibrationPlan
from trimtab.simulator.calibration import Calibration, calibrate_model
from trimtab.simulator.overheads import Overheads
from trimtab.simulator.report import SimulationReport
from trimtab.simulator.simulate import simulate
from trimtab.workloads.slo import parse_slo

KNOWN = Calibration(
    LINEAR, Overheads(step=0.001), "builtin", "bf16", "bf16", 2, KVCapacity(16, 64, 1024), 512
)


def test_a_file_brings_it_back(tmp_path: Path) -> None:
    path = tmp_path / "times.json"
    KNOWN.save(path)
    assert Calibration.load(path) == KNOWN


def test_what_is_no_calibration_is_one_clear_line(tmp_path: Path) -> None:
    path = tmp_path / "times.json"
    for text in ("", "{}", "[]", '{"format": 7}', json.dumps({**KNOWN.as_json(), "capacity": 3})):
        path.write_text(text)
        with pytest.raises(UserError, match=r"times\.json: ") as error:
            Calibration.load(path)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="cannot be read"):
        Calibration.load(tmp_path / "none.json")
    with pytest.raises(UserError, match="cannot be written"):
        KNOWN.save(tmp_path / "none" / "times.json")


def test_sizes_follow_the_settings() -> None:
    scheduler = SchedulerConfig()
    assert KNOWN.server(scheduler).num_blocks == 64
    assert KNOWN.server(scheduler, ExecutorConfig(num_blocks=9)).num_blocks == 9
    assert KNOWN.server(scheduler, ExecutorConfig(kv_cache_gib=32 / (1 << 20))).num_blocks == 32
    assert KNOWN.server(scheduler, ExecutorConfig(max_context=99)).max_context == 99
    assert KNOWN.server(scheduler, ExecutorConfig(threads=2)).overheads == KNOWN.overheads


@pytest.mark.parametrize(
    "config",
    [ExecutorConfig(weights="int8"), ExecutorConfig(kv_cache="int8"), ExecutorConfig(threads=1)],
)
def test_another_executor_needs_another_calibration(config: ExecutorConfig) -> None:
    with pytest.raises(ConfigError, match="measure them again"):
        KNOWN.server(SchedulerConfig(), config)


def test_the_built_in_model_is_measured(tmp_path: Path) -> None:
    found = calibrate_model(
        "builtin",
        ExecutorConfig(max_context=128, num_blocks=64),
        SchedulerConfig(max_batch_tokens=32, max_num_requests=4),
        CalibrationPlan(seconds=0.1),
    )
    assert found.max_context == 128
    assert found.step_times.subject["rounds"] >= 2
    assert 20 <= len(found.step_times.samples) <= 120
    assert found.overheads.step + found.overheads.sequence > 0
    for sample in found.step_times.samples:
        assert found.step_times.seconds(sample.shape) > 0
    found.save(tmp_path / "times.json")
    assert Calibration.load(tmp_path / "times.json") == found


def test_the_report_says_that_it_predicts_and_how_well() -> None:
    errors = dataclasses.replace(LINEAR.errors, held_out=0.034)
    known = dataclasses.replace(KNOWN, step_times=dataclasses.replace(LINEAR, errors=errors))
    workload = open_loop(1.0, 50)
    done = simulate(known.server(SchedulerConfig()), workload)
    report = SimulationReport.of(known, workload, done, parse_slo("ttft:p50<1s"))
    text = "\n".join(report.lines())
    assert "predicted, not measured" in text
    assert "3.4%" in text
    data = json.loads(json.dumps(report.as_json()))
    assert data["predicted"] is True
    assert data["step_times"]["held_out_error"] == 0.034
    assert data["occupancy"]["num_steps"] == done.occupancy.num_steps
    assert data["summary"]["goodput"]["value"] > 0
