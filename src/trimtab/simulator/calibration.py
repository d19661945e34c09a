"""All that must be measured of a model on a machine to simulate a server of it: kept in a file."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from trimtab.config import ExecutorConfig, SchedulerConfig
from trimtab.errors import ConfigError, UserError
from trimtab.executors.base import Executor, KVCapacity
from trimtab.executors.devices import DeviceFacts
from trimtab.executors.placement import placement_of
from trimtab.simulator.calibrate import CalibrationPlan, calibrate
from trimtab.simulator.overheads import Overheads, measure_overheads
from trimtab.simulator.simulate import SimulatedServer
from trimtab.simulator.step_times import StepTimes

FORMAT = 1
CAPTURED_AT_START = 1  # requests: other sizes are captured when they are measured
PATIENCE = 0.5  # of the seconds of a plan, with cores that lie apart


@dataclass(frozen=True)
class Calibration:
    """`weights`, `kv_cache` and `threads` are those of the executor that was measured."""

    step_times: StepTimes
    overheads: Overheads
    model: str
    weights: str  # a label, as `int4-g64`
    kv_cache: str
    threads: int
    capacity: KVCapacity
    max_context: int
    machine: dict[str, Any] = field(default_factory=dict)
    device: str = "cpu"

    def server(
        self, scheduler: SchedulerConfig, executor: ExecutorConfig | None = None
    ) -> SimulatedServer:
        """One with these settings. ConfigError for an executor that was not measured; sizes of the
        KV cache and shorter contexts need no other measurement."""
        capacity, max_context = self.capacity, self.max_context
        if executor is not None:
            self._check(executor)
            if executor.max_context:
                max_context = min(max_context, executor.max_context)
            if executor.num_blocks:
                capacity = _resized(capacity, executor.num_blocks)
            elif executor.kv_cache_gib:
                num_bytes = int(executor.kv_cache_gib * (1 << 30))
                capacity = _resized(capacity, num_bytes // capacity.bytes_per_block)
        return SimulatedServer(
            self.step_times,
            scheduler,
            capacity.num_blocks,
            capacity.block_size,
            max_context,
            self.overheads,
        )

    def _check(self, executor: ExecutorConfig) -> None:
        asked = {
            "weights": executor.weights_label,
            "kv_cache": executor.kv_cache,
            "device": executor.device,
        }
        if executor.threads and executor.device == "cpu":
            asked["threads"] = str(executor.threads)
        for name, value in asked.items():
            known = str(getattr(self, name))
            if value != known:
                raise ConfigError(
                    f"the steps were measured with {name}={known}, not {value}: measure them again"
                )

    def as_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "model": self.model,
            "weights": self.weights,
            "kv_cache": self.kv_cache,
            "threads": self.threads,
            "capacity": asdict(self.capacity),
            "max_context": self.max_context,
            "machine": self.machine,
            "device": self.device,
            "overheads": self.overheads.as_json(),
            "step_times": self.step_times.as_json(),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Calibration:
        """UserError for what is not one."""
        try:
            if data["format"] != FORMAT:
                raise UserError(f"a calibration of format {data['format']}: measure again")
            return cls(
                StepTimes.from_json(data["step_times"]),
                Overheads.from_json(data["overheads"]),
                str(data["model"]),
                str(data["weights"]),
                str(data["kv_cache"]),
                int(data["threads"]),
                KVCapacity(**data["capacity"]),
                int(data["max_context"]),
                dict(data["machine"]),
                str(data.get("device", "cpu")),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"not a calibration ({error!r})") from None

    def save(self, path: Path) -> None:
        try:
            path.write_text(json.dumps(self.as_json()) + "\n")
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror})") from None

    @classmethod
    def load(cls, path: Path) -> Calibration:
        try:
            return cls.from_json(json.loads(path.read_text()))
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from None
        except (ValueError, UserError) as error:
            raise UserError(f"{path}: {error}") from None


def calibrate_model(
    model: str,
    executor_config: ExecutorConfig | None = None,
    scheduler: SchedulerConfig | None = None,
    plan: CalibrationPlan | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> Calibration:
    """Load MODEL into an executor, measure its steps and what an engine does around them.

    Takes loading and about `plan.seconds`. Raises CheckpointError and ConfigError as loading does,
    UserError if the KV cache is too small to measure anything.
    """
    from trimtab.checkpoints import open_checkpoint, resolve_model
    from trimtab.executors.devices import check_device, device_facts
    from trimtab.executors.opening import open_executor

    config, steps = executor_config or ExecutorConfig(), scheduler or SchedulerConfig()
    check_device(config.device)
    path = resolve_model(model)
    checkpoint = open_checkpoint(path, config.max_context)
    executor = open_executor(
        checkpoint, config, steps.max_batch_tokens, min(CAPTURED_AT_START, steps.max_num_requests)
    )
    try:
        overheads = measure_overheads(executor)
        plan = plan or CalibrationPlan()
        threads = getattr(executor, "threads", 1)
        placement = placement_of(threads, PATIENCE * plan.seconds, progress, plan.shortest_handoff)
        step_times = calibrate(
            executor, scheduler, plan, {"model": str(path)}, progress, placement=placement
        )
        return Calibration(
            step_times,
            overheads,
            model,
            config.weights_label,
            config.kv_cache,
            getattr(executor, "threads", 0),
            executor.capacity,
            executor.spec.max_context,
            _about(executor, device_facts(config.device)),
            config.device,
        )
    finally:
        executor.close()


def _about(executor: Executor, facts: DeviceFacts) -> dict[str, Any]:
    return {"isa": executor.isa} if hasattr(executor, "isa") else facts.as_json()


def _resized(capacity: KVCapacity, num_blocks: int) -> KVCapacity:
    if num_blocks < 1:
        raise ConfigError("the KV cache is too small for one block")
    return KVCapacity(capacity.block_size, num_blocks, capacity.bytes_per_block)
