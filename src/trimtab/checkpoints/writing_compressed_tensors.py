"""compressed-tensors: how vLLM's llm-compressor stores matrices of integers.

    pack-quantized    weight_packed, weight_scale, weight_shape (, weight_zero_point)
    int-quantized     weight int8, weight_scale (, weight_zero_point int8): where the activations
                      are quantized as well, whatever the bits

Source: the package compressed-tensors 0.20 (compressors/, quantization/quant_config.py), and what
vLLM's loader asks for (layers/quantization/compressed_tensors).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from trimtab.checkpoints.writing_huggingface import Encoding, Module, Piece
from trimtab.errors import CheckpointError
from trimtab.numerics.bit_packing import pack_stream, pack_zeros_down, uncentred
from trimtab.numerics.floats import to_bf16
from trimtab.numerics.stored import Float32Array, GroupedMatrix, ScaleType

VERSION = "0.20.0"  # of the package whose rules these files follow
FUSED_BY_SERVERS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))

Scheme = tuple[int, int | None, bool]  # bits, group size (None: a row), symmetric


class CompressedTensorsEncoding(Encoding):
    def __init__(self, activation_bits: int | None = None) -> None:
        """`activation_bits`: the activations are to be quantized too, a scale for each token."""
        if activation_bits not in (None, 8):
            raise CheckpointError(f"activations of {activation_bits} bits: only 8 can be written")
        self._activation_bits = activation_bits
        self._schemes: dict[str, Scheme] = {}  # by module

    def encode(self, module: Module, matrix: GroupedMatrix) -> Sequence[Piece]:
        group_size = _group_size(module, matrix)
        self._schemes[module.name] = (matrix.bits, group_size, matrix.zeros is None)
        dtype, scales = encode_scales(module.name, matrix.scales, matrix.scale_type)
        if self._activation_bits is not None:
            pieces: list[Piece] = [("weight", "I8", matrix.values), ("weight_scale", dtype, scales)]
            if matrix.zeros is not None:
                pieces.append(("weight_zero_point", "I8", matrix.zeros.astype(np.int8)))
            return pieces
        packed = pack_stream(uncentred(matrix.values, matrix.bits), matrix.bits)
        pieces = [
            ("weight_packed", "I32", packed),
            ("weight_scale", dtype, scales),
            ("weight_shape", "I64", np.array(matrix.shape, np.int64)),
        ]
        if matrix.zeros is not None:
            zeros = pack_zeros_down(uncentred(matrix.zeros, matrix.bits), matrix.bits)
            pieces.append(("weight_zero_point", "I32", zeros))
        return pieces

    def config(self, plain: Sequence[Module]) -> dict[str, Any]:
        form = "pack-quantized" if self._activation_bits is None else "int-quantized"
        modules = defaultdict(list)
        for name, scheme in self._schemes.items():
            modules[scheme].append(name)
        if not modules:
            raise CheckpointError("nothing was quantized: write plain safetensors instead")
        groups = {
            f"group_{i}": {
                "targets": self._targets(names, alone=len(modules) == 1),
                "weights": _arguments(scheme),
                "input_activations": self._input_activations(),
                "output_activations": None,
                "format": form,
            }
            for i, (scheme, names) in enumerate(modules.items())
        }
        return {
            "quant_method": "compressed-tensors",
            "format": form,
            "quantization_status": "compressed",
            "config_groups": groups,
            "ignore": sorted({module.name for module in plain if not _is_embedding(module.name)}),
            "kv_cache_scheme": None,
            "global_compression_ratio": None,
            "version": VERSION,
        }

    def _targets(self, names: Sequence[str], *, alone: bool) -> list[str]:
        """One scheme for all: every linear layer (but for the ignored). Several: each by name."""
        if not alone:
            return sorted(names)
        return ["Linear", *(name for name in names if _is_embedding(name))]

    def _input_activations(self) -> dict[str, Any] | None:
        if self._activation_bits is None:
            return None
        return {
            "num_bits": self._activation_bits,
            "type": "int",
            "symmetric": True,
            "strategy": "token",
            "dynamic": True,
            "group_size": None,
        }

    def notes(self) -> list[str]:
        notes = differing_parts(self._schemes)
        if any(_is_embedding(name) for name in self._schemes):
            notes.append("transformers cannot load embeddings that are quantized (vLLM can)")
        return notes


def differing_parts(schemes: Mapping[str, object]) -> list[str]:
    """vLLM runs q, k, v and gate, up as one matrix each, with one scheme."""
    for parts in FUSED_BY_SERVERS:
        for name in schemes:
            place, _, last = name.rpartition(".")
            if last in parts and len({schemes.get(f"{place}.{part}") for part in parts}) > 1:
                return [
                    f"vLLM cannot load this: {', '.join(parts)} of {place} are not stored alike"
                ]
    return []


def encode_scales(
    name: str, scales: Float32Array, scale_type: ScaleType
) -> tuple[str, npt.NDArray[Any]]:
    """The safetensors dtype and the bits; nothing is rounded. Raises CheckpointError for scales
    that are not what their type says."""
    if scale_type == "bf16":
        bits = to_bf16(scales)
        exact = (bits.astype(np.uint32) << 16).view(np.float32) == scales
        result: tuple[str, npt.NDArray[Any]] = ("BF16", bits)
    elif scale_type == "f16":
        with np.errstate(over="ignore"):
            halves = scales.astype(np.float16)
        exact = halves == scales
        result = ("F16", halves)
    else:
        return "F32", scales
    if not exact.all():
        raise CheckpointError(f"tensor {name}: its scales are not exact in {scale_type}")
    return result


def _group_size(module: Module, matrix: GroupedMatrix) -> int | None:
    """None where a scale covers a row. Raises CheckpointError for what the format cannot say."""
    cols = matrix.shape[1]
    where = f"tensor {module.name}: compressed-tensors cannot hold"
    if matrix.offsets is not None or matrix.scale_type == "super":
        raise CheckpointError(f"{where} float offsets or scales in two levels (GGUF can)")
    if matrix.columns is not None:
        raise CheckpointError(f"{where} columns in activation order (GPTQ can)")
    if matrix.group_size >= cols:
        return None
    if cols % matrix.group_size:
        raise CheckpointError(f"{where} {cols} columns in groups of {matrix.group_size}")
    return matrix.group_size


def _arguments(scheme: Scheme) -> dict[str, Any]:
    bits, group_size, symmetric = scheme
    return {
        "num_bits": bits,
        "type": "int",
        "symmetric": symmetric,
        "strategy": "channel" if group_size is None else "group",
        "group_size": group_size,
        "dynamic": False,
    }


def _is_embedding(name: str) -> bool:
    return name.endswith("embed_tokens")
