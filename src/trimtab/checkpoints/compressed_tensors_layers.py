"""How compressed-tensors stores one module, by format.

    pack-quantized    weight_packed int32 [rows, ceil(cols bits / 32)], weight_shape int64 [2],
                      weight_scale; weight_zero_point int32 [ceil(rows bits / 32), groups] and
                      weight_g_idx int32 [cols] where the scheme asks for them
    int-quantized     weight int8 [rows, cols], weight_scale; weight_zero_point int8, of its shape
    float-quantized   weight float8 e4m3fn [rows, cols], weight_scale
    naive-quantized   as int-quantized or float-quantized, by the type

    weight_scale: floats [1] (tensor), [rows, 1] (channel), [rows, cols / group] (group),
    [ceil(rows / r), ceil(cols / c)] (block)

In float32, element = (value - zero) * scale; the format's own package rounds it to the dtype of the
scales then, here it stays. Of widths that do not divide 32, old files pack 32 // bits elements a
word; their size tells. Source: vllm-project/compressed-tensors, compressors/.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from trimtab.checkpoints.fp8 import Fp8Layer
from trimtab.checkpoints.stored_layers import (
    FLOATS,
    ColumnOrder,
    Module,
    StoredTensors,
    column_order,
    ordered,
)
from trimtab.errors import CheckpointError
from trimtab.models.config_reader import ConfigReader
from trimtab.numerics.bit_packing import (
    centred,
    padded_words,
    stream_words,
    unpack_padded,
    unpack_stream,
)
from trimtab.numerics.stored import (
    Float32Array,
    GroupedMatrix,
    GroupFormat,
    Int8Array,
    Int16Array,
    UInt8Array,
)


@dataclass(frozen=True)
class WeightScheme:
    """The weights of a config group."""

    bits: int
    kind: str  # int or float
    symmetric: bool
    strategy: str  # tensor, channel, group or block
    group_size: int  # -1 unless by group
    block: tuple[int, int] | None = None  # rows, cols
    out_of_order: bool = False  # with weight_g_idx
    static_inputs: bool = False  # scales of activations are stored beside the weights


class IntegerLayer(ABC):
    """Scales, zero points and order of a matrix of integers; a format adds where those are."""

    def __init__(self, module: Module, scheme: WeightScheme, tensors: StoredTensors) -> None:
        self._tensors = tensors
        self._name = name = module.name
        self._scheme = scheme
        self._rows, self._cols = module.rows, module.cols
        self._group_size = scheme.group_size if scheme.strategy == "group" else module.cols
        if self._group_size > module.cols or module.cols % self._group_size:
            raise CheckpointError(
                f"{tensors.path}: {name}: {module.cols} columns do not divide into groups of "
                f"{self._group_size}"
            )
        self._groups = module.cols // self._group_size
        names = self._check_weight() | {f"{name}.weight_scale"}
        self._scale_shapes: list[tuple[int, ...]] = [(module.rows, self._groups)]
        if scheme.strategy == "tensor":
            self._scale_shapes = [(1,), ()]
        tensors.check(f"{name}.weight_scale", FLOATS, *self._scale_shapes)
        if not scheme.symmetric:
            self._check_zeros(f"{name}.weight_zero_point")
            names |= {f"{name}.weight_zero_point"}
        if scheme.out_of_order:
            tensors.check(f"{name}.weight_g_idx", ("I32",), (module.cols,))
            names |= {f"{name}.weight_g_idx"}
        self.tensor_names = frozenset(names)

    @staticmethod
    def check_scheme(scheme: WeightScheme, config: ConfigReader) -> None:
        """Raises CheckpointError where the format cannot store the scheme."""
        if scheme.strategy == "block":
            raise config.error("strategy = 'block' is supported for float8 only")
        if scheme.out_of_order and scheme.strategy != "group":
            raise config.error("actorder needs strategy group")

    @abstractmethod
    def _check_weight(self) -> set[str]:
        """Checks the tensors of the integers; their names."""

    def _check_zeros(self, name: str) -> None:
        """As int8, in the shape of the scales."""
        self._tensors.check(name, ("I8",), *self._scale_shapes)

    @abstractmethod
    def _values(self, first_row: int, rows: int) -> Int8Array:
        """[rows, cols], centred."""

    def _zero_points(self, name: str) -> Int8Array:
        """Of the shape of the scales, or [rows, groups]."""
        zeros: Int8Array = self._tensors.integers(name)
        return self._within_bits(zeros, name)

    def _within_bits(self, values: Int8Array, name: str) -> Int8Array:
        half = 1 << (self._scheme.bits - 1)
        if half < 128 and (values.min() < -half or values.max() >= half):
            raise self._tensors.error(name, f"has values beyond {self._scheme.bits} bits")
        return values

    @cached_property
    def _order(self) -> ColumnOrder:
        if not self._scheme.out_of_order:
            return ColumnOrder()
        name = f"{self._name}.weight_g_idx"
        return column_order(self._tensors, name, self._cols, self._group_size)

    def format(self, first_row: int, rows: int) -> GroupFormat:
        return GroupFormat(
            self._scheme.bits,
            self._group_size,
            self._tensors.float_dtype(f"{self._name}.weight_scale"),
            "none" if self._scheme.symmetric else "zero",
            self._order.name,
        )

    def read(self, first_row: int, rows: int) -> GroupedMatrix:
        shape, taken = (self._rows, self._groups), slice(first_row, first_row + rows)
        scales: Float32Array = self._tensors.scales(f"{self._name}.weight_scale")
        zeros: Int16Array | None = None
        if not self._scheme.symmetric:
            zeros = self._zero_points(f"{self._name}.weight_zero_point").astype(np.int16)
            zeros = np.ascontiguousarray(np.broadcast_to(zeros, shape)[taken])
        return GroupedMatrix(
            ordered(self._values(first_row, rows), self._order),
            self._scheme.bits,
            self._group_size,
            np.ascontiguousarray(np.broadcast_to(scales, shape)[taken]),
            self._tensors.float_dtype(f"{self._name}.weight_scale"),
            zeros=zeros,
            columns=self._order.columns,
            order=self._order.name,
        )


class IntQuantizedLayer(IntegerLayer):
    """int8, whatever the number of bits."""

    def _check_weight(self) -> set[str]:
        name = f"{self._name}.weight"
        self._tensors.check(name, ("I8",), (self._rows, self._cols))
        return {name}

    def _values(self, first_row: int, rows: int) -> Int8Array:
        name = f"{self._name}.weight"
        values: Int8Array = self._tensors.integers(name)[first_row : first_row + rows]
        return self._within_bits(values, name)


class PackQuantizedLayer(IntegerLayer):
    """Streams of bits in int32."""

    def _check_weight(self) -> set[str]:
        packed, shape = f"{self._name}.weight_packed", f"{self._name}.weight_shape"
        bits, rows, cols = self._scheme.bits, self._rows, self._cols
        self._tensors.check(
            packed,
            ("I32",),
            (rows, stream_words(cols, bits)),
            (rows, padded_words(cols, bits)),
        )
        self._tensors.check(shape, ("I64", "I32"), (2,))
        stored = self._tensors.integers(shape).tolist()
        if stored != [rows, cols]:
            raise self._tensors.error(shape, f"is {stored}, the model asks for {[rows, cols]}")
        return {packed, shape}

    def _check_zeros(self, name: str) -> None:
        if self._scheme.strategy == "tensor":
            super()._check_zeros(name)
            return
        bits, rows = self._scheme.bits, self._rows
        self._tensors.check(
            name,
            ("I32",),
            (stream_words(rows, bits), self._groups),
            (padded_words(rows, bits), self._groups),
        )

    def _unpack(self, words: np.ndarray, count: int) -> UInt8Array:
        """[n, words] -> [n, count]. The old layout is longer; of equal lengths it is the new."""
        bits = self._scheme.bits
        if words.shape[1] == stream_words(count, bits):
            return unpack_stream(words, bits, count)
        return unpack_padded(words, bits, count)

    def _values(self, first_row: int, rows: int) -> Int8Array:
        words = self._tensors.integers(f"{self._name}.weight_packed")[first_row : first_row + rows]
        return centred(self._unpack(words, self._cols), self._scheme.bits)

    def _zero_points(self, name: str) -> Int8Array:
        if self._scheme.strategy == "tensor":
            return super()._zero_points(name)
        unsigned = self._unpack(self._tensors.integers(name).T, self._rows)
        return centred(np.ascontiguousarray(unsigned.T), self._scheme.bits)


class FloatQuantizedLayer(Fp8Layer):
    """float8; a tensor, a channel or a group is a block like any other."""

    def __init__(self, module: Module, scheme: WeightScheme, tensors: StoredTensors) -> None:
        rows, cols = {
            "tensor": (module.rows, module.cols),
            "channel": (1, module.cols),
            "group": (1, scheme.group_size),
            "block": scheme.block or (0, 0),
        }[scheme.strategy]
        if scheme.strategy == "group" and module.cols % cols:
            raise CheckpointError(
                f"{tensors.path}: {module.name}: {module.cols} columns do not divide into groups "
                f"of {cols}"
            )
        super().__init__(module, rows, cols, f"{module.name}.weight_scale", tensors)

    @staticmethod
    def check_scheme(scheme: WeightScheme, config: ConfigReader) -> None:
        """Raises CheckpointError where the format cannot store the scheme."""
        if scheme.bits != 8:
            raise config.error("of float weights only those of 8 bits (e4m3) are supported")
        if not scheme.symmetric or scheme.out_of_order:
            raise config.error("float8 with zero points or actorder is not supported")


Layer = IntQuantizedLayer | PackQuantizedLayer | FloatQuantizedLayer
LAYERS: dict[str, dict[str, type[Layer]]] = {  # format -> type of the weights -> class
    "pack-quantized": {"int": PackQuantizedLayer},
    "int-quantized": {"int": IntQuantizedLayer},
    "float-quantized": {"float": FloatQuantizedLayer},
    "naive-quantized": {"int": IntQuantizedLayer, "float": FloatQuantizedLayer},
}


def activation_tensors(
    module: Module, scheme: WeightScheme, tensors: StoredTensors
) -> frozenset[str]:
    """Static scales of inputs belong to the module, but nothing here uses them."""
    names = set()
    if scheme.static_inputs:
        for suffix, dtypes in (("input_scale", FLOATS), ("input_zero_point", ("I8", "F8_E4M3"))):
            if (name := f"{module.name}.{suffix}") in tensors:
                tensors.check(name, dtypes, (), (1,))
                names.add(name)
    return frozenset(names)
