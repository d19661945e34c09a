"""AWQ, as AutoAWQ's version "gemm" stores it: 4 bits, always with zero points.

    <module>.qweight  int32 [cols, rows / 8]       <module>.scales  floats [groups, rows]
    <module>.qzeros   int32 [groups, rows / 8]

The bits of the words are in `trimtab.numerics.bit_packing`. In float32, element = (q - zero) *
scale. The scales that AWQ finds for channels are already part of the weights and norms.
Source: AutoAWQ (modules/linear/gemm.py, models/_config.py).
"""

from __future__ import annotations

from functools import cached_property

import numpy as np

from trimtab.checkpoints.gptq import HARMLESS
from trimtab.checkpoints.stored_layers import (
    FLOATS,
    Module,
    StoredLayer,
    StoredTensors,
    may_stay_float,
    read_names,
)
from trimtab.errors import CheckpointError
from trimtab.models.config_reader import ConfigReader, show
from trimtab.numerics.bit_packing import centred, unpack_awq
from trimtab.numerics.stored import GroupedMatrix, GroupFormat, Int16Array, OffsetType

BITS = 4

# transformers writes GPTQ's keys for AWQ too.
_HARMLESS = HARMLESS | {"method", "do_fuse", "fuse_max_seq_len", "modules_to_fuse"}


class AwqQuantization:
    """See `trimtab.checkpoints.stored_layers.Quantization`."""

    def __init__(self, config: ConfigReader) -> None:
        """Raises CheckpointError for what is missing, impossible or not supported."""
        if (bits := config.integer("bits")) != BITS:
            raise config.error(f"bits = {bits}: AWQ is supported with {BITS} only")
        self._group_size = config.integer("group_size", minimum=-1)
        if self._group_size == 0:
            raise config.error("group_size = 0: must be -1 (one group) or more than 0")
        for key in ("version", "checkpoint_format", "format"):
            if (version := config.text(key, "gemm")).lower() != "gemm":
                raise config.error(f"{key} = {show(version)}: of AWQ only gemm is supported")
        if config.text("pack_dtype", "int32") != "int32":
            raise config.error(f"pack_dtype = {show(config.raw('pack_dtype'))}: must be int32")
        # Without zero points in name, they may be stored all the same.
        self._has_zeros = config.flag("zero_point", True)
        config.flag("sym", False)
        self._floats = read_names(
            config.raw("modules_to_not_convert"), f"{config.where}: modules_to_not_convert"
        )
        config.finish(_HARMLESS)

    def layer(self, module: Module, tensors: StoredTensors) -> StoredLayer | None:
        if module.kind != "Linear" or module.is_head:
            return None
        if may_stay_float(module, self._floats) and f"{module.name}.qweight" not in tensors:
            return None
        return AwqLayer(module, self._group_size, self._has_zeros, tensors)


class AwqLayer:
    """See `trimtab.checkpoints.stored_layers.StoredLayer`."""

    def __init__(
        self, module: Module, group_size: int, has_zeros: bool, tensors: StoredTensors
    ) -> None:
        self._tensors = tensors
        self._name = name = module.name
        rows, cols = module.rows, module.cols
        self._group_size = cols if group_size == -1 else group_size
        if cols % self._group_size or rows % 8:
            raise CheckpointError(
                f"{tensors.path}: {name}: [{rows}, {cols}] does not divide into AWQ's words of 8 "
                f"rows and groups of {self._group_size} columns"
            )
        groups = cols // self._group_size
        tensors.check(f"{name}.qweight", ("I32",), (cols, rows // 8))
        tensors.check(f"{name}.scales", FLOATS, (groups, rows))
        self.tensor_names = frozenset((f"{name}.qweight", f"{name}.scales"))
        self._has_zeros = has_zeros or f"{name}.qzeros" in tensors
        if self._has_zeros:
            tensors.check(f"{name}.qzeros", ("I32",), (groups, rows // 8))
            self.tensor_names |= {f"{name}.qzeros"}

    @cached_property
    def _is_symmetric(self) -> bool:
        """Whether all zero points are in the middle."""
        return not (self._has_zeros and self._zeros().any())

    def _zeros(self) -> Int16Array:
        """[rows, groups], centred."""
        words = self._tensors.integers(f"{self._name}.qzeros")
        return centred(unpack_awq(words), BITS).astype(np.int16)

    def format(self, first_row: int, rows: int) -> GroupFormat:
        scale_type = self._tensors.float_dtype(f"{self._name}.scales")
        offset: OffsetType = "none" if self._is_symmetric else "zero"
        return GroupFormat(BITS, self._group_size, scale_type, offset)

    def read(self, first_row: int, rows: int) -> GroupedMatrix:
        taken = slice(first_row, first_row + rows)
        # Eight rows share a word: those that hold the range are unpacked, then it is cut out.
        words_taken = slice(first_row // 8, -(-(first_row + rows) // 8))
        words = self._tensors.integers(f"{self._name}.qweight")[:, words_taken]
        values = centred(unpack_awq(words), BITS)[first_row % 8 :][:rows]
        scales = self._tensors.scales(f"{self._name}.scales")[:, taken]
        return GroupedMatrix(
            np.ascontiguousarray(values),
            BITS,
            self._group_size,
            np.ascontiguousarray(scales.T),
            self._tensors.float_dtype(f"{self._name}.scales"),
            zeros=None if self._is_symmetric else self._zeros()[taken],
        )
