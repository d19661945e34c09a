"""From what `trimtab serve` was given to settings that can be served: of a plan, or fitted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from trimtab import builtin
from trimtab.checkpoints import open_checkpoint, resolve_model
from trimtab.config import ExecutorConfig, SchedulerConfig
from trimtab.errors import UserError
from trimtab.executors.devices import DeviceFacts
from trimtab.models.spec import ModelSpec
from trimtab.optimizer.artifacts import find_or_build, scheduler_for
from trimtab.optimizer.content import content_hash
from trimtab.optimizer.devices import CUDA_STEPS, ask_device
from trimtab.optimizer.fingerprint import changed_versions, this_machine
from trimtab.optimizer.fit import fit_to_machine
from trimtab.optimizer.plan import Plan, read_plan
from trimtab.server.loading import model_name

Progress = Callable[[str], None]
QUALITY_KNOBS = ("weights", "group_size", "kv_cache")


@dataclass(frozen=True)
class Prepared:
    """What is to be served, and what is to be said of it."""

    model: str  # a path, or as given
    name: str  # what the API calls it: a model as a user would name it
    executor: ExecutorConfig
    scheduler: SchedulerConfig
    lines: list[tuple[str, str]]  # for people: a word, and a line
    document: dict[str, Any]  # the same for programs


def prepare_plan(
    path: Path,
    overrides: Mapping[str, Any],
    progress: Progress = lambda line: None,
) -> Prepared:
    """Builds or finds what the plan serves. `overrides`: knobs that the user set beside it.

    Raises UserError, one line, for a plan that is damaged, a model that is not the one that it was
    made for, and for what cannot be built.
    """
    plan = read_plan(path)
    model = resolve_model(plan.model)
    found = content_hash(open_checkpoint(model))
    if found != plan.model_hash:
        raise UserError(
            f"{path}: {plan.model} is not the model that this plan was made for: its content is "
            f"{found[:12]}, not {plan.model_hash[:12]}; run trimtab optimize again"
        )
    facts = ask_device(overrides.get("device", plan.executor.device))
    artifact = find_or_build(plan.model, plan.variant, progress)
    executor, scheduler = plan.executor, plan.scheduler
    mine = {**asdict(executor), **asdict(scheduler)}
    changed = {name: value for name, value in overrides.items() if mine[name] != value}
    if "kv_cache_gib" in changed and "num_blocks" not in changed:
        executor = replace(executor, num_blocks=0)  # which would win
    executor = replace(executor, **_of(executor, changed))
    scheduler = replace(scheduler, **_of(scheduler, changed))
    notes = _notes(plan, artifact.hash if artifact.is_built else None, facts)
    if changed:
        listed = ", ".join(
            f"{name}={_show(v)} ({_show(mine[name])})" for name, v in changed.items()
        )
        notes.append(f"set beside the plan, in brackets its own: {listed}")
        if set(changed) & set(QUALITY_KNOBS):
            notes.append("the plan's quality was not measured with these formats")
    return Prepared(
        model=str(artifact.path),
        name=model_name(plan.model, model),
        executor=executor,
        scheduler=scheduler_for(plan.model, artifact, scheduler),
        lines=[("serves", f"{path}: {plan.describe()}"), *(("note", note) for note in notes)],
        document={"file": str(path), "variant": plan.variant.as_json(), "notes": notes},
    )


def prepare_model(
    model: str,
    executor: ExecutorConfig,
    scheduler: SchedulerConfig,
    given: Mapping[str, Any],
) -> Prepared:
    """Fits what was not given to this machine. Raises UserError for what fits nowhere here."""
    from trimtab.bench.machine import measure_arithmetic
    from trimtab.executors.cpu import choose_threads, select_isa
    from trimtab.executors.resources import available_memory

    path = resolve_model(model)
    checkpoint = open_checkpoint(path, executor.max_context)
    if executor.device != "cpu":
        return _prepare_on_device(model, path, executor, scheduler, given)
    cores = choose_threads(executor.threads)
    speed = None
    if "max_batch_tokens" not in given:
        speed = measure_arithmetic(select_isa(), cores, executor.weights, 3)
    fitted = fit_to_machine(
        checkpoint,
        executor,
        scheduler,
        given,
        free_bytes=available_memory(),
        cores=cores,
        macs_per_s=speed,
        draft=draft_spec(path, scheduler),
    )
    return Prepared(
        model=model,
        name=model_name(model, path),
        executor=fitted.executor,
        scheduler=fitted.scheduler,
        lines=fitted.lines(),
        document=fitted.as_json(),
    )


def _prepare_on_device(
    model: str,
    path: Path,
    executor: ExecutorConfig,
    scheduler: SchedulerConfig,
    given: Mapping[str, Any],
) -> Prepared:
    """The executor itself fits its KV cache to the device's memory."""
    chosen: dict[str, Any] = {}
    if executor.device == "cuda":
        chosen = {name: value for name, value in CUDA_STEPS.items() if name not in given}
    listed = ", ".join(f"{name}={value}" for name, value in chosen.items())
    return Prepared(
        model=model,
        name=model_name(model, path),
        executor=executor,
        scheduler=replace(scheduler, **chosen),
        lines=[("fitted", f"to device={executor.device}: {listed}")] if chosen else [],
        document={"chosen": chosen, "reasons": []},
    )


def draft_spec(model: Path, scheduler: SchedulerConfig) -> ModelSpec | None:
    """Of the model that will guess, if one does. Raises CheckpointError."""
    wants = scheduler.proposers
    if wants != ("auto",) and "draft" not in wants:
        return None
    if scheduler.draft_model is not None:
        return open_checkpoint(resolve_model(scheduler.draft_model)).spec
    if model == builtin.target_path() and scheduler.draft_heads is None:
        return open_checkpoint(builtin.draft_path()).spec
    return None


def _notes(plan: Plan, artifact_hash: str | None, device: DeviceFacts) -> list[str]:
    """What the user should know before they believe the plan's numbers, one line each."""
    notes = []
    differences = plan.machine.differences(this_machine(device=device))
    if differences:
        notes.append(
            f"another machine than the plan's ({'; '.join(differences)}): its numbers do not carry "
            "over, run trimtab optimize here"
        )
    is_there = plan.executor.device == device.device  # else others are another thing
    others = changed_versions(plan.versions, device) if is_there else []
    if others:
        notes.append(f"other versions than the plan's ({'; '.join(others)}): measure again")
    if plan.artifact_hash is not None and plan.artifact_hash != artifact_hash:
        notes.append(
            "the quantized checkpoint had to be built again and came out otherwise than the one "
            "that was measured: its quality was not measured"
        )
    return notes


def _of(config: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name in asdict(config)}


def _show(value: Any) -> str:
    return "none" if value is None else str(value)
