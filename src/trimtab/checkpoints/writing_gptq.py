"""GPTQ and AWQ: a matrix [N, K] stored as qweight, qzeros, scales (float16) (, g_idx).

GPTQ is written in version 1, which every program reads, where all zero points are the middle of
their range; else in version 2 ("gptq_v2"), whose zero points no two programs read differently.
Matrices that differ from the first in bits or groups get a rule of their own ("dynamic").

Sources: GPTQModel (qlinear, quantization/config.py), AutoAWQ (gemm), and what vLLM's loaders ask
for (layers/quantization/auto_gptq.py, auto_awq.py).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from trimtab.checkpoints.writing_compressed_tensors import differing_parts, encode_scales
from trimtab.checkpoints.writing_huggingface import Encoding, Module, Piece
from trimtab.errors import CheckpointError
from trimtab.numerics.bit_packing import (
    pack_awq,
    pack_gptq_weight,
    pack_gptq_zeros,
    uncentred,
)
from trimtab.numerics.stored import GroupedMatrix, UInt8Array

GPTQ_BITS = (2, 3, 4, 8)
ROW = -1  # the group size where a scale covers a row


@dataclass(frozen=True)
class GptqRule:
    bits: int
    group_size: int
    symmetric: bool

    def fields(self) -> dict[str, Any]:
        return {"bits": self.bits, "group_size": self.group_size, "sym": self.symmetric}


class GptqEncoding(Encoding):
    def __init__(self) -> None:
        self._rules: dict[str, GptqRule] = {}  # by module
        self._zeros: dict[str, tuple[UInt8Array, int]] = {}  # unsigned [N, groups], bits
        self._in_order = True  # no columns in activation order
        self._dynamic: dict[str, dict[str, Any]] = {}

    def encode(self, module: Module, matrix: GroupedMatrix) -> Sequence[Piece]:
        check_layout("GPTQ", module, matrix)
        rows, cols = matrix.shape
        bits = matrix.bits
        if bits not in GPTQ_BITS:
            raise CheckpointError(f"tensor {module.name}: GPTQ has no format of {bits} bits")
        for size, what in ((rows, "rows"), (cols, "columns")):
            if size * bits % 32:
                raise CheckpointError(
                    f"tensor {module.name}: GPTQ cannot hold {size} {what} of {bits} bits: "
                    "they do not fill words of 32 bits"
                )
        group_size = ROW if matrix.group_size >= cols else matrix.group_size
        zeros = zero_points(matrix)
        self._zeros[module.name] = (zeros, bits)
        symmetric = bool((zeros == 1 << (bits - 1)).all())
        self._rules[module.name] = GptqRule(bits, group_size, symmetric)
        values, group_of = matrix.values, np.arange(cols, dtype=np.int32) // matrix.group_size
        if matrix.columns is not None:
            values = np.empty_like(values)
            values[:, matrix.columns] = matrix.values
            in_order = group_of.copy()
            group_of[matrix.columns] = in_order
            self._in_order = False
        _, scales = encode_scales(module.name, matrix.scales, "f16")
        return [
            ("qweight", "I32", pack_gptq_weight(uncentred(values, bits), bits)),
            ("scales", "F16", np.ascontiguousarray(scales.T)),
            ("g_idx", "I32", group_of),
        ]

    def last_pieces(self) -> Sequence[tuple[str, Piece]]:
        """Zero points, whose version is known when all are."""
        version = 1 if self._symmetric else 2
        return [
            (name, ("qzeros", "I32", pack_gptq_zeros(zeros, bits, version=version)))
            for name, (zeros, bits) in self._zeros.items()
        ]

    @property
    def _symmetric(self) -> bool:
        return all(rule.symmetric for rule in self._rules.values())

    def config(self, plain: Sequence[Module]) -> dict[str, Any]:
        if not self._rules:
            raise CheckpointError("nothing was quantized: write plain safetensors instead")
        rules = list(self._rules.values())
        base = max(dict.fromkeys(rules), key=rules.count)
        rule_of = {
            f"+:^{re.escape(name)}$": rule.fields()
            for name, rule in self._rules.items()
            if rule != base
        }
        left: dict[str, dict[str, Any]] = {
            f"-:^{re.escape(module.name)}$": {}
            for module in plain
            if module.name.startswith("model.layers.")
        }
        form = "gptq" if self._symmetric else "gptq_v2"
        self._config = {
            "quant_method": "gptq",
            **base.fields(),
            "desc_act": not self._in_order,
            "lm_head": "lm_head" in self._rules,
            "checkpoint_format": form,
            "pack_dtype": "int32",
            "dynamic": {**left, **rule_of},
            "meta": {"quantizer": ["trimtab"]},
        }
        return self._config

    def other_files(self) -> dict[str, dict[str, Any]]:
        return {"quantize_config.json": self._config}

    def notes(self) -> list[str]:
        notes = differing_parts(self._rules)
        if any(rule.bits not in (4, 8) or not rule.symmetric for rule in self._rules.values()):
            notes.append("vLLM runs GPTQ of 4 and 8 bits without zero points only")
        if not self._in_order:
            notes.append("vLLM does not run columns in activation order")
        return notes


class AwqEncoding(Encoding):
    def __init__(self) -> None:
        self._group_size: int | None = None
        self._modules: dict[str, int] = {}

    def encode(self, module: Module, matrix: GroupedMatrix) -> Sequence[Piece]:
        check_layout("AWQ", module, matrix)
        rows, cols = matrix.shape
        where = f"tensor {module.name}: AWQ"
        if matrix.bits != 4:
            raise CheckpointError(f"{where} has no format of {matrix.bits} bits")
        if matrix.columns is not None:
            raise CheckpointError(f"{where} cannot hold columns in activation order (GPTQ can)")
        if module.name == "lm_head":
            raise CheckpointError(f"{where} keeps the output head in floats")
        group_size = ROW if matrix.group_size >= cols else matrix.group_size
        if rows % 8 or (group_size != ROW and cols % group_size):
            raise CheckpointError(
                f"{where} cannot hold {rows} rows of {cols} columns in groups of {group_size}"
            )
        if self._group_size not in (None, group_size):
            raise CheckpointError(f"{where} has one group size for all: {self._group_size}")
        self._group_size = group_size
        self._modules[module.name] = group_size
        _, scales = encode_scales(module.name, matrix.scales, "f16")
        return [
            ("qweight", "I32", pack_awq(uncentred(matrix.values, 4))),
            ("qzeros", "I32", pack_awq(zero_points(matrix))),
            ("scales", "F16", np.ascontiguousarray(scales.T)),
        ]

    def config(self, plain: Sequence[Module]) -> dict[str, Any]:
        if not self._modules:
            raise CheckpointError("nothing was quantized: write plain safetensors instead")
        left = [module.name for module in plain if module.name.startswith("model.layers.")]
        return {
            "quant_method": "awq",
            "bits": 4,
            "group_size": self._group_size,
            "zero_point": True,
            "version": "gemm",
            "modules_to_not_convert": sorted(left) or None,
        }

    def notes(self) -> list[str]:
        return differing_parts(self._modules)


def check_layout(container: str, module: Module, matrix: GroupedMatrix) -> None:
    """That the matrix is a linear layer's, with zero points that are integers."""
    if module.name.endswith("embed_tokens"):
        raise CheckpointError(f"tensor {module.name}: {container} keeps embeddings in floats")
    if matrix.offsets is not None or matrix.scale_type == "super":
        raise CheckpointError(
            f"tensor {module.name}: {container} cannot hold float offsets or scales in two levels "
            "(GGUF can)"
        )


def zero_points(matrix: GroupedMatrix) -> UInt8Array:
    """[rows, groups], unsigned; the middle of the range where the matrix has none."""
    zeros: npt.NDArray[Any] = np.zeros(matrix.scales.shape, np.int16)
    return uncentred(zeros if matrix.zeros is None else matrix.zeros, matrix.bits)
