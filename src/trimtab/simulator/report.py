"""What a simulation predicts, for people and for programs, and how far it can be trusted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from trimtab.simulator.calibration import Calibration
from trimtab.simulator.simulate import Simulation
from trimtab.workloads.requests import Workload
from trimtab.workloads.slo import Slo
from trimtab.workloads.summary import LoadSummary, summarize


@dataclass(frozen=True)
class SimulationReport:
    calibration: Calibration
    workload: Workload
    simulation: Simulation
    summary: LoadSummary

    @classmethod
    def of(
        cls, calibration: Calibration, workload: Workload, simulation: Simulation, slo: Slo | None
    ) -> SimulationReport:
        return cls(calibration, workload, simulation, summarize(simulation.records, slo))

    def as_json(self) -> dict[str, Any]:
        calibration, errors = self.calibration, self.calibration.step_times.errors
        return {
            "predicted": True,
            "model": calibration.model,
            "executor": calibration.step_times.subject.get("executor"),
            "workload": {
                "name": self.workload.name,
                "rate": self.workload.rate,
                "concurrency": self.workload.concurrency,
                "seed": self.workload.seed,
                **self.workload.description,
            },
            "step_times": {
                "measured": len(calibration.step_times.samples),
                "held_out_error": errors.held_out,
                "leave_one_out_error": errors.leave_one_out,
                "interval": calibration.step_times.interval,
            },
            "overheads": calibration.overheads.as_json(),
            "summary": self.summary.as_json(),
            "occupancy": self.simulation.occupancy.as_json(),
            "speed_up": self.simulation.speed_up,
        }

    def lines(self) -> list[str]:
        times, occupancy = self.calibration.step_times, self.simulation.occupancy
        errors = times.errors
        error = errors.leave_one_out if errors.held_out is None else errors.held_out
        kind = "left out one by one" if errors.held_out is None else "held out of the fit"
        lines = [
            f"predicted, not measured, without speculation: {self.calibration.model}, "
            f"{times.subject.get('executor', 'an executor')}, workload {self.workload.name}",
            f"step times: {len(times.samples)} steps measured here, mean error {error:.1%} on "
            f"steps {kind}, 90 % of steps within {times.interval[0] - 1:+.0%} to "
            f"{times.interval[1] - 1:+.0%}",
            *self.summary.lines(),
            f"busy {occupancy.busy_share:.0%}, running {occupancy.mean_running:.3g} on average "
            f"(most {occupancy.peak_running}), waiting {occupancy.mean_waiting:.3g} "
            f"(most {occupancy.peak_waiting})",
            f"KV cache {occupancy.mean_blocks / occupancy.num_blocks:.0%} in use on average (most "
            f"{occupancy.peak_blocks / occupancy.num_blocks:.0%}), "
            f"{_share(occupancy.num_cached_prompt_tokens, occupancy.num_prompt_tokens):.0%} of "
            f"prompt tokens cached, {occupancy.num_preemptions} preemptions, "
            f"{occupancy.num_refused} refused",
            f"{occupancy.num_steps} steps, {occupancy.seconds:.0f} s in "
            f"{self.simulation.wall_seconds:.2f} s: {self.simulation.speed_up:,.0f} times real "
            "time",
        ]
        share = _share(occupancy.extrapolated_seconds, occupancy.busy_seconds)
        if share > 0.01:
            lines.append(
                f"{share:.0%} of the time is in steps larger than any that was measured: there the "
                "prediction is extrapolated"
            )
        return lines


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
