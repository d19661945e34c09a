"""What one run of the optimizer is asked to do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from trimtab.config import Device
from trimtab.optimizer.need import Need


@dataclass(frozen=True)
class Order:
    model: str
    need: Need
    directory: Path  # of everything that is written
    budget_seconds: float = 600.0
    texts: tuple[Path, ...] = ()  # to judge quality by; none: the model's own
    tasks: Path | None = None
    max_context: int = 0
    seed: int = 0
    resume: bool = False
    command: str = ""  # that reproduces it
    device: Device = "cpu"

    @property
    def plan_path(self) -> Path:
        return self.directory / "plan.yaml"

    @property
    def results_path(self) -> Path:
        return self.directory / "results.json"

    @property
    def report_path(self) -> Path:
        return self.directory / "report.html"

    @property
    def journal_path(self) -> Path:
        return self.directory / "journal.jsonl"


def need_texts(need: Need) -> dict[str, str]:
    """As a plan has it."""
    texts = {
        "slo": need.slo.as_text(),
        "quality": need.quality.as_text(),
        "workload": need.workload,
        "objective": need.objective_text,
    }
    if need.rate is not None:
        texts["rate"] = f"{need.rate:g}rps"
    else:
        texts["headroom"] = f"{100 * need.headroom:g}%"
    if need.price_per_hour is not None:
        texts["price_per_hour"] = f"{need.price_per_hour:g}"
    if need.memory_bytes is not None:
        texts["memory"] = f"{need.memory_bytes / (1 << 20):g}MiB"
    return texts


def plan_of_before(order: Order) -> Path | None:
    """The directory's plan, if it was made for this model and need, here, with these versions."""
    from trimtab.checkpoints import open_checkpoint, resolve_model
    from trimtab.errors import UserError
    from trimtab.optimizer.content import content_hash
    from trimtab.optimizer.devices import ask_device
    from trimtab.optimizer.fingerprint import this_machine, versions
    from trimtab.optimizer.plan import read_plan

    if not order.plan_path.is_file():
        return None
    try:
        plan = read_plan(order.plan_path)
    except UserError:
        return None  # it is made anew
    facts = ask_device(order.device)
    checkpoint = open_checkpoint(resolve_model(order.model), order.max_context)
    same = (
        plan.model == order.model
        and plan.model_hash == content_hash(checkpoint)
        and dict(plan.need) == need_texts(order.need)
        and dict(plan.versions) == versions(facts)
        and plan.executor.max_context == order.max_context
        and plan.executor.device == order.device
        and not plan.machine.differences(this_machine(device=facts))
    )
    return order.plan_path if same else None
