"""Float8 weights as DeepSeek's models have them, and per-tensor ones: quant_method "fp8".

    <module>.weight            float8 e4m3fn [rows, cols]
    <module>.weight_scale_inv  floats [ceil(rows / r), ceil(cols / c)], weight_block_size = [r, c]
    or <module>.weight_scale   one float, without weight_block_size (or under the other name)

Despite its name, weight_scale_inv is multiplied: in float32, element = value * scale of its block.
Blocks at the ends may be short. Scales of activations are not used: see docs/formats.md.
Source: deepseek-ai/DeepSeek-V3, README_WEIGHTS.md.
"""

from __future__ import annotations

import math

import numpy as np

from trimtab.checkpoints.stored_layers import (
    FLOATS,
    Module,
    StoredLayer,
    StoredTensors,
    may_stay_float,
    read_names,
)
from trimtab.models.config_reader import ConfigReader, show
from trimtab.numerics.stored import Fp8Format, Fp8Matrix

SKIP_KEYS = ("modules_to_not_convert", "ignored_layers")
ACTIVATION_SCALES = ("input_scale", "activation_scale")

_HARMLESS = frozenset(("quant_method", "scale_fmt", "dequantize", "expert_dtype"))


class Fp8Quantization:
    """See `trimtab.checkpoints.stored_layers.Quantization`."""

    def __init__(self, config: ConfigReader) -> None:
        """Raises CheckpointError for what is missing, impossible or not supported."""
        for key in ("fmt", "weight_format"):
            if config.text(key, "e4m3") not in ("e4m3", "float8_e4m3fn"):
                raise config.error(f"{key} = {show(config.raw(key))}: only e4m3 is supported")
        activations = config.text("activation_scheme", "dynamic")
        if activations not in ("dynamic", "static"):
            raise config.error(f"activation_scheme = {show(activations)} is not supported")
        self._static = activations == "static"
        self._block = read_block(config, "weight_block_size")
        self._floats = tuple(
            name
            for key in SKIP_KEYS
            for name in read_names(config.raw(key), f"{config.where}: {key}")
        )
        config.finish(_HARMLESS)

    def layer(self, module: Module, tensors: StoredTensors) -> StoredLayer | None:
        if module.kind != "Linear":
            return None
        weight = f"{module.name}.weight"
        if (module.is_head or may_stay_float(module, self._floats)) and not (
            weight in tensors and tensors.dtype(weight) == "F8_E4M3"
        ):
            return None
        names = ("weight_scale_inv", "weight_scale")
        scale = names[0] if self._block or f"{module.name}.{names[1]}" not in tensors else names[1]
        rows, cols = self._block or (module.rows, module.cols)
        layer = Fp8Layer(module, rows, cols, f"{module.name}.{scale}", tensors)
        for suffix in ACTIVATION_SCALES if self._static else ():
            if (name := f"{module.name}.{suffix}") in tensors:
                tensors.check(name, FLOATS, (), (1,))
                layer.tensor_names |= {name}
        return layer


def read_block(config: ConfigReader, key: str) -> tuple[int, int] | None:
    """Two numbers above 0, or null; also the string "128x128" of older files."""
    value = config.raw(key)
    if value is None:
        return None
    if isinstance(value, str):
        value = [int(part) if part.isdecimal() else part for part in value[:30].split("x")]
    if (
        not isinstance(value, list)
        or len(value) != 2
        or not all(type(size) is int and 0 < size <= 1 << 24 for size in value)
    ):
        raise config.error(f"{key} = {show(config.raw(key))}: must be two sizes above 0")
    return value[0], value[1]


class Fp8Layer:
    """See `trimtab.checkpoints.stored_layers.StoredLayer`. Blocks larger than the matrix are cut
    to it: one block of a whole row, or of the whole matrix, is a scale of that."""

    def __init__(
        self, module: Module, block_rows: int, block_cols: int, scale: str, tensors: StoredTensors
    ) -> None:
        self._tensors = tensors
        self._weight, self._scale = f"{module.name}.weight", scale
        rows, cols = module.rows, module.cols
        self._block_rows, self._block_cols = min(block_rows, rows), min(block_cols, cols)
        self._blocks = -(-rows // self._block_rows), -(-cols // self._block_cols)
        tensors.check(self._weight, ("F8_E4M3",), (rows, cols))
        shapes: list[tuple[int, ...]] = [self._blocks]
        if self._blocks == (1, 1):
            shapes += [(), (1,)]
        tensors.check(scale, FLOATS, *shapes)
        self.tensor_names = frozenset((self._weight, scale))

    def _block_rows_of(self, first_row: int, rows: int) -> int:
        """A range that starts within a block has smaller ones, which share its scale."""
        block_rows = math.gcd(first_row, self._block_rows)
        if first_row // self._block_rows == (first_row + rows - 1) // self._block_rows:
            return rows  # all in one block
        return block_rows

    def format(self, first_row: int, rows: int) -> Fp8Format:
        return Fp8Format(self._block_rows_of(first_row, rows), self._block_cols)

    def read(self, first_row: int, rows: int) -> Fp8Matrix:
        scales = self._tensors.scales(self._scale).reshape(self._blocks)
        block_rows = self._block_rows_of(first_row, rows)
        starts = np.arange(first_row, first_row + rows, block_rows)
        values = self._tensors.integers(self._weight)[first_row : first_row + rows]
        return Fp8Matrix(values, scales[starts // self._block_rows], block_rows, self._block_cols)
