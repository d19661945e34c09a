"""Quantized checkpoints, built once for each (model, method, calibration text) and found again.

    artifacts/.building-KEY-PID/model   while it is built, under the lock KEY.lock
    artifacts/KEY/model                 renamed, with artifact.json beside it: complete and synced

Whoever is killed leaves nothing under KEY, and what they leave beside it the next builder removes.
Two that want the same at once build it once: the second waits for the lock and finds it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trimtab import builtin
from trimtab.checkpoints import open_checkpoint, resolve_model
from trimtab.checkpoints.base import Checkpoint
from trimtab.config import SchedulerConfig
from trimtab.environment import optimizer_cache_bytes
from trimtab.errors import CheckpointError, ConfigError, UserError
from trimtab.optimizer.cache import (
    cache_directory,
    check_space,
    locked,
    make_room,
    read_json,
    touch,
    write_atomically,
    writing,
)
from trimtab.optimizer.content import content_hash, path_digest
from trimtab.optimizer.trial import run_trial
from trimtab.optimizer.variants import REVISION, Variant

Progress = Callable[[str], None]
RECORD = "artifact.json"
MODEL = "model"


@dataclass(frozen=True)
class Artifact:
    """What is to be loaded for a variant."""

    path: Path  # of the model
    hash: str  # its content hash
    is_built: bool  # made of the model; else it is the model itself


def find_or_build(
    model: str,
    variant: Variant,
    progress: Progress = lambda line: None,
    *,
    memory_bytes: int | None = None,
    seconds: float | None = None,
) -> Artifact:
    """The checkpoint of `variant`: the model's own, or one out of the cache, built if need be in a
    process of its own that may take so much memory and time.

    Raises CheckpointError for the model, ConfigError for a variant that cannot be built here and a
    disk that is full, UserError, one line, if the build failed.
    """
    path = resolve_model(model)
    checkpoint = open_checkpoint(path)
    if not variant.needs_build:
        return Artifact(path, content_hash(checkpoint), is_built=False)
    settings = variant.quantize_settings()
    settings.check_model(checkpoint.spec)
    calibration = calibration_of(model, variant)
    key = artifact_key(content_hash(checkpoint), variant, path_digest(calibration))
    place = cache_directory("artifacts")
    final = place / key
    found = _find(final)
    if found is not None:
        return found
    with locked(place / f"{key}.lock"):
        found = _find(final)  # somebody has built it meanwhile
        if found is not None:
            return found
        _clear(place, key)
        needed = sum(file.signature.size for file in checkpoint.weight_files)
        make_room(place, needed, optimizer_cache_bytes() // 2)  # the other half: references
        check_space(place, needed, f"the model as {variant.label}")
        progress(f"building {variant.label} of {model}, once")
        staging = place / f".building-{key}-{os.getpid()}"
        try:
            with writing(staging):
                staging.mkdir()
            outcome = run_trial(
                "trimtab.optimizer.artifacts:build",
                {
                    "model": str(path),
                    "variant": variant.as_json(),
                    "calibration": str(calibration),
                    "out": str(staging / MODEL),
                },
                memory_bytes=memory_bytes,
                seconds=seconds,
                progress=progress,
            )
            if outcome.failed is not None:
                raise UserError(f"{variant.label} cannot be built: {outcome.failed}")
            with writing(final):
                _publish(staging, final, variant)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    found = _find(final)
    if found is None:
        raise CheckpointError(f"{final}: was damaged as soon as it was written (faulty disk?)")
    return found


def scheduler_for(model: str, artifact: Artifact, scheduler: SchedulerConfig) -> SchedulerConfig:
    """What guesses for the built-in model guesses for what is built of it, too."""
    if not artifact.is_built or resolve_model(model) != builtin.target_path():
        return scheduler
    wants = scheduler.proposers
    draft, heads = scheduler.draft_model, scheduler.draft_heads
    if draft is None and ("draft" in wants or (wants == ("auto",) and heads is None)):
        draft = str(builtin.draft_path())
    if heads is None and "heads" in wants:
        heads = str(builtin.heads_path())
    return replace(scheduler, draft_model=draft, draft_heads=heads)


def artifact_key(model_hash: str, variant: Variant, calibration_hash: str) -> str:
    """Hex digest of everything that the checkpoint follows from."""
    weights = replace(variant.stored, calibration="")  # whose content has a hash of its own
    parts = ["trimtab artifact", str(REVISION), model_hash, calibration_hash]
    parts.append(json.dumps(weights.as_json(), sort_keys=True))
    parts.append(repr(variant.quantize_settings()))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def calibration_of(model: str, variant: Variant) -> Path:
    """The text that a method looks at. Raises ConfigError where there is none."""
    if variant.calibration:
        path = Path(variant.calibration).expanduser()
        if not path.is_file():
            raise ConfigError(f"{path}: no such calibration text")
        return path
    if resolve_model(model) == builtin.target_path():
        return builtin.calibration_path()
    raise ConfigError(
        f"{variant.method} needs text like that which the model will see: name a file of it"
    )


def build(arguments: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """In a process of its own: writes the quantized checkpoint to `out`, a new directory."""
    from trimtab.compression.quantize import quantize_checkpoint

    variant = Variant.from_json(arguments["variant"])
    source = open_checkpoint(Path(arguments["model"]))
    settings = variant.quantize_settings()
    longest = min(settings.sequence_length, source.spec.max_context)
    report = quantize_checkpoint(
        source,
        Path(arguments["out"]),
        replace(settings, sequence_length=longest),
        progress,
        calibration=Path(arguments["calibration"]),
    )
    return {"total_bytes": report.total_bytes, "notes": report.notes}


def _publish(staging: Path, final: Path, variant: Variant) -> None:
    record = {
        "variant": variant.as_json(),
        "hash": content_hash(open_checkpoint(staging / MODEL)),
    }
    write_atomically(staging / RECORD, json.dumps(record, indent=2).encode() + b"\n")
    if final.exists():  # damaged: it was looked at before
        shutil.rmtree(final)
    staging.rename(final)
    descriptor = os.open(final.parent, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _find(final: Path) -> Artifact | None:
    """What is there, if it still has the content that was built."""
    record = read_json(final / RECORD)
    if not isinstance(record, dict):
        return None
    try:
        checkpoint: Checkpoint = open_checkpoint(final / MODEL)
        found = content_hash(checkpoint)
    except UserError:
        return None
    if found != record.get("hash"):
        return None
    touch(final)
    return Artifact(final / MODEL, found, is_built=True)


def _clear(place: Path, key: str) -> None:
    """What builders of this that were killed have left. Nobody builds it now: we hold the lock."""
    for left in place.glob(f".building-{key}-*"):
        shutil.rmtree(left, ignore_errors=True)
