"""The quality of a variant against the unmodified model, and what is asked of it.

Quality depends on the weights, their format and the KV cache's, on nothing else: it is measured
once for each. Windows of text are scored in batches until every term of the need is decided, pass
or fail, by an interval that holds at every look (confidence.py).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trimtab import builtin
from trimtab.checkpoints import open_checkpoint, resolve_model
from trimtab.errors import UserError
from trimtab.executors.devices import THE_CPU, DeviceFacts
from trimtab.optimizer.artifacts import Artifact
from trimtab.optimizer.cache import cache_directory, read_json, write_atomically, writing
from trimtab.optimizer.content import content_hash, path_digest
from trimtab.optimizer.evidence import TermResult
from trimtab.optimizer.quality_need import QualityNeed, QualityTerm, parse_quality
from trimtab.optimizer.reference import reference_key
from trimtab.optimizer.trial import run_trial
from trimtab.optimizer.variants import Variant

__all__ = [
    "QualityNeed",
    "QualityResult",
    "QualityTerm",
    "QualityTexts",
    "TermResult",
    "measure_quality",
    "parse_quality",
    "quality_texts",
]

Progress = Callable[[str], None]
WINDOW = 256  # tokens
FLOOR = 16  # windows before the first look
CEILING = 96
REVISION = 1


@dataclass(frozen=True)
class QualityTexts:
    """What quality is measured on: files of text, each a document, and a file of tasks. Without
    texts the model writes some itself."""

    texts: tuple[Path, ...] = ()
    tasks: Path | None = None
    source: str = "user"  # or held-out


@dataclass(frozen=True)
class QualityResult:
    """`failed` says why nothing was measured; then there are no terms."""

    terms: tuple[TermResult, ...] = ()
    source: str = ""  # of the text: user, held-out, or written by the model
    summary: dict[str, Any] = field(default_factory=dict)
    failed: str | None = None
    seconds: float = 0.0
    peak_bytes: int = 0

    @property
    def meets(self) -> bool:
        """Everything that was asked for is there, with 95 % confidence."""
        return self.failed is None and all(term.status == "pass" for term in self.terms)

    @property
    def fails(self) -> bool:
        """Something that was asked for is not."""
        return self.failed is not None or any(term.status == "fail" for term in self.terms)

    def as_json(self) -> dict[str, Any]:
        return {
            "terms": [term.as_json() for term in self.terms],
            "meets": self.meets,
            "fails": self.fails,
            "source": self.source,
            "summary": self.summary,
            "failed": self.failed,
            "seconds": self.seconds,
            "peak_bytes": self.peak_bytes,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> QualityResult:
        """What `as_json` gave. Raises KeyError and TypeError for anything else."""
        return cls(
            tuple(TermResult(**term) for term in value["terms"]),
            value["source"],
            value["summary"],
            value["failed"],
            value["seconds"],
            value["peak_bytes"],
        )


def quality_texts(
    model: str, texts: Sequence[Path] = (), tasks: Path | None = None
) -> QualityTexts:
    """The user's own; else those of the built-in model, for it; else none. Raises UserError for a
    file that is not there."""
    for path in [*texts, *([tasks] if tasks is not None else [])]:
        if not path.is_file():
            raise UserError(f"{path}: no such file")
    if resolve_model(model) == builtin.target_path():
        return QualityTexts(
            tuple(texts) or (builtin.heldout_path(),),
            tasks or builtin.tasks_path(),
            "user" if texts else "held-out",
        )
    return QualityTexts(tuple(texts), tasks)


def measure_quality(
    model: str,
    variant: Variant,
    artifact: Artifact,
    need: QualityNeed,
    texts: QualityTexts | None = None,
    *,
    window: int = WINDOW,
    floor: int = FLOOR,
    ceiling: int = CEILING,
    seed: int = 0,
    threads: int = 0,
    device: DeviceFacts = THE_CPU,
    stop_at_failure: bool = True,
    memory_bytes: int | None = None,
    seconds: float | None = None,
    progress: Progress = lambda line: None,
) -> QualityResult:
    """`artifact`: of the variant (`find_or_build`). Between `floor` and `ceiling` windows of
    `window` tokens; without any term, `floor`. With `stop_at_failure` the first term that fails
    ends it.

    A result is kept, and found again for the same question. Raises UserError for a model or texts
    that cannot be read; whatever else goes wrong in the variant's process is in the result.
    """
    texts = texts or quality_texts(model)
    path = resolve_model(model)
    arguments: dict[str, Any] = {
        "model": str(path),
        "model_hash": content_hash(open_checkpoint(path)),
        "variant": variant.as_json(),
        "artifact": str(artifact.path),
        "need": need.as_text(),
        "texts": [str(one) for one in texts.texts],
        "source": texts.source,
        "tasks": None if texts.tasks is None else str(texts.tasks),
        "window": window,
        "floor": floor,
        "ceiling": ceiling,
        "seed": seed,
        "stop_at_failure": stop_at_failure,
        "threads": threads,
        "device": device.device,
        "numerics": device.numerics,
    }
    kept = cache_directory("quality") / f"{_key(arguments, artifact, texts)}.json"
    known = _known(kept)
    if known is not None:
        return known
    outcome = run_trial(
        "trimtab.optimizer.quality_trial:evaluate",
        arguments,
        memory_bytes=memory_bytes,
        seconds=seconds,
        progress=progress,
    )
    if outcome.failed is not None:
        return QualityResult(
            failed=outcome.failed, seconds=outcome.seconds, peak_bytes=outcome.peak_bytes
        )
    result = QualityResult(
        terms=tuple(TermResult(**term) for term in outcome.result["terms"]),
        source=outcome.result["source"],
        summary=outcome.result["summary"],
        seconds=outcome.seconds,
        peak_bytes=outcome.peak_bytes,
    )
    with writing(kept):
        write_atomically(kept, json.dumps(result.as_json()).encode())
    return result


def _key(arguments: dict[str, Any], artifact: Artifact, texts: QualityTexts) -> str:
    """Of everything that the result follows from: contents, not names."""
    files = [*texts.texts, *([texts.tasks] if texts.tasks is not None else [])]
    left_out = ("model", "artifact", "texts", "tasks", "threads")
    question = {name: value for name, value in arguments.items() if name not in left_out}
    question["files"] = [path_digest(path) for path in files]
    question["revision"] = REVISION
    what = json.dumps(question, sort_keys=True)
    digest = hashlib.sha256(what.encode()).hexdigest()
    return reference_key(artifact.hash, "quality", digest, arguments["numerics"])


def _known(path: Path) -> QualityResult | None:
    value = read_json(path)
    try:
        return None if value is None else QualityResult.from_json(value)
    except (KeyError, TypeError):
        return None
