"""The ways to compress that compression.py compares, and how each checkpoint is made."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from trimtab import builtin
from trimtab.checkpoints import open_checkpoint
from trimtab.checkpoints.base import Checkpoint

# 16,384 tokens of the text that the built-in model brings: what a model of its size needs, and in
# minutes. AutoRound takes a number of rows in each step, whatever their length.
CALIBRATION = {"num_samples": 32, "sequence_length": 512}
SHORT_ROWS = {"num_samples": 128, "sequence_length": 128}
GGUF_TYPES = {"Q8_0": 8, "Q6_K": 6, "Q5_K_M": 5, "Q4_K_M": 4, "Q4_0": 4}


@dataclass(frozen=True)
class Subject:
    """One entry. `how` says who compresses: the engine as it loads, a method, the GGUF writer."""

    label: str
    how: str  # load, quantize, gguf
    bits: int  # of a weight of the layers, nominally: the group it is listed in
    weights: str = "bf16"  # of what the checkpoint holds as floats, in the engine
    kv_cache: str = "bf16"
    options: dict[str, Any] = field(default_factory=dict)  # of the method: QuantizeSettings
    gguf_type: str = ""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Made:
    """A checkpoint that can be measured."""

    subject: Subject
    path: Path
    num_bytes: int  # of its tensors as they are stored; 0 where the engine compresses
    seconds: float  # that it took to make; 0 if it was there

    def as_json(self) -> dict[str, Any]:
        return {"num_bytes": self.num_bytes, "seconds_to_make": self.seconds}


def subjects() -> list[Subject]:
    return [*_loaded(), *_quantized(), *_ggufs()]


def _loaded() -> Iterator[Subject]:
    for name, bits in (("bf16", 16), ("int8", 8), ("int8-g32", 8)):
        yield Subject(f"at load {name}", "load", bits, name)
    yield Subject("at load bf16, KV int8", "load", 16, "bf16", "int8")
    for group in (32, 64, 128):
        yield Subject(f"at load int4-g{group}", "load", 4, f"int4-g{group}")


def _quantized() -> Iterator[Subject]:
    yield _method("rtn", 8, 0)
    yield _method("rtn", 8, 128)
    yield _method("gptq", 8, 0)
    yield _method("smoothquant", 8, 0)
    for bits, groups in ((4, (32, 64, 128)), (3, (32, 128))):
        for group in groups:
            for method in ("rtn", "gptq", "awq", "autoround"):
                yield _method(method, bits, group)
    for method in ("rtn", "gptq"):
        yield _method(method, 4, 0)
    yield _method("rtn", 4, 32, symmetric=False)
    yield _method("gptq", 4, 32, symmetric=False)
    yield _method("gptq", 4, 32, head=True, embedding=True)
    yield _method("gptq", 4, 64, bits_per_weight=5.0)


def _method(method: str, bits: int, group: int, **more: Any) -> Subject:
    label = f"{method} int{bits}" + (f"-g{group}" if group else "-channel")
    if more.get("symmetric") is False:
        label += " asymmetric"
    if more.get("head"):
        label += ", head and embedding"
    if "bits_per_weight" in more:
        label = f"{method} mixed-g{group}, {more['bits_per_weight']:g} bits"
    calibration = SHORT_ROWS if method == "autoround" else CALIBRATION
    options = {"method": method, "bits": bits, "group_size": group, **calibration, **more}
    return Subject(label, "quantize", bits, options=options)


def _ggufs() -> Iterator[Subject]:
    for name, bits in GGUF_TYPES.items():
        yield Subject(f"GGUF {name}", "gguf", bits, gguf_type=name)


def make(subject: Subject, models: Path, progress: Callable[[str], None]) -> Made:
    """The checkpoint, made unless it is there already. Raises TrimtabError."""
    if subject.how == "load":
        return Made(subject, builtin.target_path(), 0, 0.0)
    models.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"[^A-Za-z0-9.]+", "-", subject.label).lower()
    path = models / (f"{name}.gguf" if subject.how == "gguf" else name)
    start, existed = time.perf_counter(), path.exists()
    if not existed:
        source = open_checkpoint(builtin.target_path())
        if subject.how == "gguf":
            _write_gguf(source, path, subject.gguf_type)
        else:
            _quantize(source, path, subject.options, progress)
    seconds = 0.0 if existed else time.perf_counter() - start
    return Made(subject, path, tensor_bytes(path), seconds)


def _write_gguf(source: Checkpoint, path: Path, gguf_type: str) -> None:
    from trimtab.checkpoints.writing import write_gguf

    write_gguf(source, path, gguf_type)


def _quantize(
    source: Checkpoint, path: Path, options: dict[str, Any], progress: Callable[[str], None]
) -> None:
    from trimtab.compression.quantize import quantize_checkpoint
    from trimtab.compression.settings import QuantizeSettings

    settings = QuantizeSettings(**options)
    calibration = builtin.calibration_path() if settings.needs_calibration else None
    try:
        quantize_checkpoint(source, path, settings, progress, calibration=calibration)
    except BaseException:
        shutil.rmtree(path, ignore_errors=True)
        raise


def tensor_bytes(path: Path) -> int:
    """Of a checkpoint's tensors, without vocabulary and configuration."""
    if path.suffix == ".gguf":
        from trimtab.checkpoints.gguf_file import GgufFile

        return sum(tensor.end - tensor.start for tensor in GgufFile(path).tensors.values())
    return sum(file.stat().st_size for file in path.glob("*.safetensors"))


def num_weights(checkpoint: Checkpoint) -> int:
    """Of the model, embedding included; an output head that is the embedding counts once."""
    spec = checkpoint.spec
    query, kv = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    layer = spec.hidden_size * (2 * query + 2 * kv + 3 * spec.intermediate_size)
    tables = 1 if spec.tied_embeddings else 2
    return spec.num_layers * layer + tables * spec.vocab_size * spec.hidden_size
