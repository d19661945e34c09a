"""What `trimtab inspect` says: what a model is, what it needs, what limits its speed here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from trimtab.bench.footprint import Ceilings, Footprint, ceilings, footprint
from trimtab.bench.machine import MachineLimits
from trimtab.config import ExecutorConfig
from trimtab.executors.formats import ModelFormats, formats_of_config
from trimtab.models.spec import ModelSpec

CONTEXTS = (192, 2048, 8192, 32768)
PROMPTS = (512, 2048, 8192)


@dataclass(frozen=True)
class Inspection:
    spec: ModelSpec
    config: ExecutorConfig
    formats: ModelFormats
    model: Footprint
    machine: MachineLimits
    limits: Ceilings

    def as_json(self) -> dict[str, Any]:
        spec, model = self.spec, self.model
        return {
            "model": {
                "architecture": spec.architecture,
                "parameters": model.parameters,
                "layers": spec.num_layers,
                "hidden_size": spec.hidden_size,
                "intermediate_size": spec.intermediate_size,
                "heads": spec.num_heads,
                "kv_heads": spec.num_kv_heads,
                "head_dim": spec.head_dim,
                "vocab_size": spec.vocab_size,
                "max_context": spec.max_context,
                "sliding_windows": sorted({x.sliding_window for x in spec.layers} - {0}),
                "tied_embeddings": spec.tied_embeddings,
            },
            "formats": {
                "weights": self.formats.label,
                "output_head": self.formats.head.format.label,
                "kv_cache": self.config.kv_cache,
            },
            "bytes": {
                "weights": model.weight_bytes,
                "by_part": model.part_bytes,
                "read_per_decode_step": model.read_bytes_per_step,
                "kv_per_token": model.kv_bytes_per_token,
            },
            "machine": self.machine.as_json(),
            "ceilings": self.limits.as_json(),
        }


def model_ceilings(
    spec: ModelSpec, config: ExecutorConfig, model: Footprint, machine: MachineLimits
) -> Ceilings:
    """At the usual context and prompt lengths, as far as the model goes."""
    longest = config.max_context or spec.max_context
    return ceilings(
        model,
        machine.read_bytes_per_s,
        machine.linear_macs_per_s(model.layer_weights),
        machine.attention_macs_per_s,
        contexts=tuple(n for n in CONTEXTS if n <= longest) or (longest,),
        prompts=tuple(n for n in PROMPTS if n <= longest) or (longest,),
    )


def inspection(
    spec: ModelSpec,
    config: ExecutorConfig,
    machine: MachineLimits,
    formats: ModelFormats | None = None,
) -> Inspection:
    """`formats`: of a checkpoint; by default of one that stores floats."""
    formats = formats or formats_of_config(spec, config)
    model = footprint(spec, config, formats)
    limits = model_ceilings(spec, config, model, machine)
    return Inspection(spec, config, formats, model, machine, limits)


def _human(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"


def describe(found: Inspection) -> list[str]:
    """The same for people, one line a list entry."""
    spec, model, machine = found.spec, found.model, found.machine
    windows = sorted({x.sliding_window for x in spec.layers} - {0})
    shape = (
        f"{spec.num_layers} layers, hidden {spec.hidden_size}, "
        f"{spec.num_heads} heads of {spec.head_dim} ({spec.num_kv_heads} KV), "
        f"vocabulary {spec.vocab_size:,}, context {spec.max_context:,}"
    )
    if windows:
        shape += f", sliding window {', '.join(map(str, windows))}"
    lines = [
        f"{spec.architecture}: {model.parameters / 1e6:,.1f} M parameters, {shape}",
        "",
        f"memory with {found.formats.label} weights{' as stored' * found.formats.quantized} "
        f"(output head {found.formats.head.format.label}): {_human(model.weight_bytes)}",
    ]
    lines += [f"  {part:<12} {_human(size):>12}" for part, size in model.part_bytes.items()]
    lines += [
        f"KV cache ({found.config.kv_cache}): {_human(model.kv_bytes_per_token)} per token",
        "",
        f"this machine: {machine.title}",
        f"  reads {machine.read_bytes_per_s / 1e9:.1f} GB/s at best "
        f"(median {machine.read_bytes_per_s_median / 1e9:.1f}, "
        f"lowest {machine.read_bytes_per_s_low / 1e9:.1f})",
        "  multiply-accumulates per second: "
        + ", ".join(f"{name} {rate / 1e9:,.0f} G" for name, rate in machine.macs_per_s.items()),
        "",
        "no engine can be faster here, in these formats, than (tokens/s):",
    ]
    lines += [
        f"  decode at context {c:>6,}: {rate:>10,.1f}" for c, rate in found.limits.decode.items()
    ]
    lines += [f"  prefill of {p:>13,}: {rate:>10,.1f}" for p, rate in found.limits.prefill.items()]
    return lines
