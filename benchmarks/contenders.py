"""Who is measured, in which formats, and how each gets its own copy of the model.

Bits count what a decode step reads of a weight, scales included; the output head has a format of
its own, which differs between peers and is named in every row.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Group = Literal["bf16", "int8", "int4"]


@dataclass(frozen=True)
class Contender:
    environment: str
    adapter: str  # a file of benchmarks/peers
    group: Group  # the row group it competes in: what its arithmetic may use
    format: str  # the peer's own name
    layer_bits: float
    head: str
    head_bits: float
    converter: str = ""  # "" runs the checkpoint itself

    @property
    def label(self) -> str:
        return f"{self.environment} {self.format}"


CONTENDERS = (
    Contender("trimtab", "trimtab_engine", "bf16", "bf16", 16, "bf16", 16),
    Contender("trimtab", "trimtab_engine", "int8", "int8", 8, "int8", 8),
    Contender("trimtab", "trimtab_engine", "int4", "int4-g64", 4.25, "int8", 8),
    Contender("trimtab", "trimtab_engine", "int4", "int4-g128", 4.125, "int8", 8),
    Contender("llama_cpp", "llama_cpp_engine", "bf16", "BF16", 16, "bf16", 16, "gguf"),
    Contender("llama_cpp", "llama_cpp_engine", "int8", "Q8_0", 8.5, "Q8_0", 8.5, "gguf"),
    Contender("llama_cpp", "llama_cpp_engine", "int4", "Q4_0", 4.5, "Q6_K", 6.5625, "gguf"),
    Contender("openvino", "openvino_engine", "bf16", "fp16", 16, "fp16", 16, "optimum"),
    Contender("openvino", "openvino_engine", "int8", "int8", 8, "int8", 8, "optimum"),
    Contender("openvino", "openvino_engine", "int4", "int4", 4.125, "int8", 8, "optimum"),
    Contender("onnxruntime", "onnxruntime_engine", "int4", "int4", 5, "int4", 5, "builder"),
    Contender("transformers", "transformers_engine", "bf16", "bf16", 16, "bf16", 16),
)


def convert(contender: Contender, python: Path, checkpoint: Path, out_root: Path) -> Path:
    """The contender's copy of the checkpoint; made once, under its name only when complete."""
    if not contender.converter:
        return checkpoint
    out = out_root / f"{contender.environment}-{contender.format}"
    if contender.converter == "gguf":
        return _to_gguf(contender.format, python, checkpoint, out_root)
    if out.exists():
        return out
    partial = out.with_name(out.name + ".partial")
    if contender.converter == "optimum":
        weights = ["--weight-format", contender.format]
        if contender.format != "fp16":
            weights.append("--sym")
        if contender.format == "int4":
            weights += ["--group-size", "128", "--ratio", "1.0"]
        tool = [str(python.with_name("optimum-cli")), "export", "openvino", "-m", str(checkpoint)]
        command: list[str | Path] = [
            *tool,
            "--task",
            "text-generation-with-past",
            *weights,
            str(partial),
        ]
    else:
        command = [str(python), "-m", "onnxruntime_genai.models.builder", "-i", str(checkpoint)]
        command += ["-o", str(partial), "-p", contender.format, "-e", "cpu"]
        command += ["-c", str(out_root / "cache"), "--extra_options"]
        command += ["int4_block_size=32", "int4_accuracy_level=4"]
    _run(command, out)
    partial.rename(out)
    return out


def _run(command: list[str | Path], out: Path) -> None:
    """What converters print goes to a file beside their output."""
    with out.with_name(out.name + ".log").open("w") as log:
        subprocess.run(command, check=True, stdout=log, stderr=subprocess.STDOUT)


def _to_gguf(file_format: str, python: Path, checkpoint: Path, out_root: Path) -> Path:
    script = Path(__file__).parent / "peers" / "to_gguf.py"
    out = out_root / f"{file_format}.gguf"
    for step in dict.fromkeys(("BF16", file_format)):
        target = out_root / f"{step}.gguf"
        if not target.exists():
            partial = target.with_suffix(".partial")
            # to_gguf.py finds the bf16 file beside its output.
            _run([python, script, checkpoint, partial, step], target)
            partial.rename(target)
    return out
