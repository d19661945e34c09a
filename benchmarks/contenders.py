"""Who is measured, in which formats, and how each gets its own copy of the model.

Bits count what a decode step reads of a weight, scales included; the output head has a format of
its own, which differs between peers and is named in every table, and so has the KV cache.
"""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

Group = Literal["bf16", "int8", "int4"]


@dataclass(frozen=True)
class KVFormat:
    name: str
    bits: int  # of an element
    vector_bits: int = 0  # besides, for each token and head of K, and of V


BF16, F16, F32 = KVFormat("bf16", 16), KVFormat("f16", 16), KVFormat("f32", 32)
U8 = KVFormat("u8", 8, 64)  # a float32 scale and a float32 zero point


class ConversionError(Exception):
    """One line: where the converter's own words are."""


class Convertible(Protocol):
    @property
    def environment(self) -> str: ...

    @property
    def format(self) -> str: ...

    @property
    def converter(self) -> str: ...


@dataclass(frozen=True)
class Contender:
    environment: str
    adapter: str  # a file of benchmarks/peers
    group: Group  # the row group it competes in: what its arithmetic may use
    format: str  # the peer's own name
    layer_bits: float
    head: str
    head_bits: float
    kv: KVFormat
    converter: str = ""  # "" runs the checkpoint itself
    prefix_cache: bool = False  # has one

    @property
    def label(self) -> str:
        return f"{self.environment} {self.format}"


def _trimtab(group: Group, name: str, bits: float, head: str, head_bits: float) -> Contender:
    return Contender(
        "trimtab", "trimtab_engine", group, name, bits, head, head_bits, BF16, "", True
    )


def _llama_cpp(group: Group, name: str, bits: float, head: str, head_bits: float) -> Contender:
    return Contender(
        "llama_cpp", "llama_cpp_engine", group, name, bits, head, head_bits, F16, "gguf", True
    )


def _openvino(group: Group, name: str, bits: float, head: str, head_bits: float) -> Contender:
    return Contender(
        "openvino", "openvino_engine", group, name, bits, head, head_bits, U8, "optimum", True
    )


CONTENDERS = (
    _trimtab("bf16", "bf16", 16, "bf16", 16),
    _trimtab("int8", "int8", 8, "int8", 8),
    _trimtab("int8", "int8-g32", 8.5, "int8-g32", 8.5),
    _trimtab("int4", "int4-g64", 4.25, "int8", 8),
    _trimtab("int4", "int4-g32", 4.5, "int8", 8),
    _trimtab("int4", "int4-g128", 4.125, "int8", 8),
    _llama_cpp("bf16", "BF16", 16, "bf16", 16),
    _llama_cpp("int8", "Q8_0", 8.5, "Q8_0", 8.5),
    _llama_cpp("int4", "Q4_0", 4.5, "Q6_K", 6.5625),
    _openvino("bf16", "fp16", 16, "fp16", 16),
    _openvino("int8", "int8", 8, "int8", 8),
    _openvino("int4", "int4", 4.125, "int8", 8),
    Contender("onnxruntime", "onnxruntime_engine", "int4", "int4", 5, "int4", 5, F32, "builder"),
    Contender("vllm", "vllm_engine", "bf16", "bf16", 16, "bf16", 16, BF16, "", True),
    Contender("vllm", "vllm_engine", "int8", "w8a8", 8, "bf16", 16, BF16, "w8a8", True),
    Contender("transformers", "transformers_engine", "bf16", "bf16", 16, "bf16", 16, BF16),
)


def convert(contender: Convertible, python: Path, checkpoint: Path, out_root: Path) -> Path:
    """Its copy of the checkpoint; made once, under its name only when complete.

    Raises ConversionError.
    """
    if not contender.converter:
        return checkpoint
    name, here = contender.format, Path(__file__).parent / "peers"
    if contender.converter == "gguf":
        out = out_root / f"{name}.gguf"
        # The bf16 file is what to_gguf.py quantizes; it finds it beside its output.
        for step in dict.fromkeys((name,) if name == "F32" else ("BF16", name)):
            target = out_root / f"{step}.gguf"
            partial = target.with_suffix(".partial")
            _make(target, partial, [python, here / "to_gguf.py", checkpoint, partial, step])
        return out
    out = out_root / f"{contender.environment}-{name}"
    partial = out.with_name(out.name + ".partial")
    command: list[str | Path]
    if contender.converter == "optimum":
        command = [python.with_name("optimum-cli"), "export", "openvino", "-m", checkpoint]
        command += ["--task", "text-generation-with-past", "--weight-format", name]
        command += [] if name.startswith("fp") else ["--sym"]
        command += ["--group-size", "128", "--ratio", "1.0"] if name == "int4" else []
        command += [partial]
    elif contender.converter == "w8a8":
        command = [python, here / "to_w8a8.py", checkpoint, partial]
    else:
        command = [python, "-m", "onnxruntime_genai.models.builder", "-i", checkpoint]
        command += ["-o", partial, "-p", name, "-e", "cpu", "-c", out_root / "cache"]
        command += ["--extra_options", "int4_block_size=32", "int4_accuracy_level=4"]
    _make(out, partial, command)
    return out


def _make(out: Path, partial: Path, command: list[str | Path]) -> None:
    """What converters print goes to a file beside their output."""
    if out.exists():
        return
    if partial.is_dir():
        shutil.rmtree(partial)
    log = out.with_name(out.name + ".log")
    with log.open("w") as file:
        status = subprocess.run(command, check=False, stdout=file, stderr=file).returncode
    if status != 0:
        raise ConversionError(f"not converted, see {log.name}")
    partial.rename(out)
