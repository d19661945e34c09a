"""GPTQ, as AutoGPTQ and GPTQModel store it.

    <module>.qweight  int32 [cols bits / 32, rows]     <module>.scales  floats [groups, rows]
    <module>.qzeros   int32 [groups, rows bits / 32]   <module>.g_idx   int32 [cols], optional
    <module>.bias     floats [rows], optional

The bits of the words are in `trimtab.numerics.bit_packing`. Column k belongs to group g_idx[k]; in
float32, element = (q - zero) * scale. Source: GPTQModel (qlinear, utils/model.py,
quantization/config.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from trimtab.checkpoints.name_patterns import Budget, NamePattern
from trimtab.checkpoints.stored_layers import (
    FLOATS,
    ColumnOrder,
    Module,
    StoredLayer,
    StoredTensors,
    column_order,
    ordered,
    read_names,
)
from trimtab.errors import CheckpointError
from trimtab.models.config_reader import ConfigReader, show
from trimtab.numerics.bit_packing import centred, unpack_gptq_weight, unpack_gptq_zeros
from trimtab.numerics.stored import GroupedMatrix, GroupFormat, Int16Array

BITS = (2, 3, 4, 8)
VERSIONS = {"gptq": 1, "gptq_v2": 2}  # by checkpoint_format: how zero points are stored

# What made the integers, or which kernel multiplies them elsewhere.
HARMLESS = frozenset(
    """
    quant_method meta true_sequential static_groups damp_percent damp_auto_increment mse
    act_group_aware model_name_or_path model_file_base_name dataset tokenizer batch_size
    block_name_to_quantize module_name_preceding_first_block cache_block_outputs pad_token_id
    model_seqlen max_input_length use_cuda_fp16 use_exllama disable_exllama exllama_config
    backend quant_backend parallel_packing offload_to_disk offload_to_disk_path pack_impl
    device rounding quantizer hyb_act fail_safe calibration_data_min_length mock_quantization
    """.split()  # noqa: SIM905
)


@dataclass(frozen=True)
class GptqSettings:
    """Of one module; `dynamic` rules can change them from module to module."""

    bits: int
    group_size: int  # -1: one group
    symmetric: bool
    act_order: bool

    @classmethod
    def read(cls, config: ConfigReader, default: GptqSettings | None = None) -> GptqSettings:
        """Keys that are absent stay as in `default`; without one, bits and group_size must be
        there."""
        bits = config.integer("bits", default.bits if default else None)
        if bits not in BITS:
            raise config.error(f"bits = {bits}: GPTQ has {', '.join(map(str, BITS))}")
        group_size = config.integer("group_size", default.group_size if default else None, -1)
        if group_size == 0:
            raise config.error("group_size = 0: must be -1 (one group) or more than 0")
        return cls(
            bits,
            group_size,
            config.flag("sym", default.symmetric if default else True),
            config.flag("desc_act", default.act_order if default else False),
        )


@dataclass(frozen=True)
class GptqRule:
    """A line of `dynamic`: the first whose pattern matches a module's name counts for it."""

    pattern: NamePattern
    settings: GptqSettings | None  # None: the module stays in floats


class GptqQuantization:
    """See `trimtab.checkpoints.stored_layers.Quantization`."""

    def __init__(self, config: ConfigReader) -> None:
        """Raises CheckpointError for what is missing, impossible or not supported."""
        self._settings = GptqSettings.read(config)
        self._version = _read_version(config)
        self._has_head = config.flag("lm_head", False)
        if config.text("pack_dtype", "int32") != "int32":
            raise config.error(f"pack_dtype = {show(config.raw('pack_dtype'))}: must be int32")
        self._in_block = _read_block_modules(config)
        self._rules = _read_rules(config, self._settings)
        config.finish(HARMLESS)

    def layer(self, module: Module, tensors: StoredTensors) -> StoredLayer | None:
        settings = self._settings_of(module)
        return None if settings is None else GptqLayer(module, settings, self._version, tensors)

    def _settings_of(self, module: Module) -> GptqSettings | None:
        if module.kind != "Linear":
            return None
        if module.is_head:
            if not self._has_head:
                return None
        elif self._in_block and not module.name.endswith(self._in_block):
            return None
        for rule in self._rules:
            if rule.pattern.matches(module.name):
                return rule.settings
        return self._settings


def _read_version(config: ConfigReader) -> int | None:
    """1 or 2; None where the config does not say and the zero points may."""
    for key in ("is_marlin_format", "use_marlin"):
        if config.flag(key, False):
            raise config.error(f"{key}: the Marlin layout of GPTQ is not supported")
    if config.text("method", "gptq") != "gptq":
        raise config.error(f"method = {show(config.raw('method'))} is not supported with gptq")
    formats = [config.text(key, "") for key in ("checkpoint_format", "format")]
    name = formats[0] or formats[1]
    if not name:
        return None
    if name not in VERSIONS:
        supported = ", ".join(VERSIONS)
        raise config.error(f"checkpoint_format = {show(name)} is not supported ({supported} are)")
    return VERSIONS[name]


def _read_block_modules(config: ConfigReader) -> tuple[str, ...]:
    """modules_in_block_to_quantize: lists of names within a layer; empty: all of them."""
    key = "modules_in_block_to_quantize"
    value = config.raw(key)
    lists = [value] if not isinstance(value, list) else value
    flat: list[Any] = []
    for item in lists:
        flat.extend(item if isinstance(item, list) else [] if item is None else [item])
    return tuple(f".{name}" for name in read_names(flat, f"{config.where}: {key}"))


def _read_rules(config: ConfigReader, default: GptqSettings) -> list[GptqRule]:
    """`dynamic`: "-:pattern" leaves modules out, "+:pattern" and "pattern" change settings."""
    section = config.section("dynamic")
    if section is None:
        return []
    budget = Budget(section.where)
    rules = []
    for key in section.names():
        pattern = NamePattern(key.removeprefix("-:").removeprefix("+:"), section.where, budget)
        if key.startswith("-:"):
            section.ignore(key)
            rules.append(GptqRule(pattern, None))
            continue
        own = section.section(key)
        if own is None:
            raise section.error(f"{show(key)}: must be an object")
        rules.append(GptqRule(pattern, GptqSettings.read(own, default)))
        own.finish(HARMLESS)
    return rules


class GptqLayer:
    """See `trimtab.checkpoints.stored_layers.StoredLayer`."""

    def __init__(
        self, module: Module, settings: GptqSettings, version: int | None, tensors: StoredTensors
    ) -> None:
        self._tensors = tensors
        self._name = name = module.name
        self._settings = settings
        self._rows, self._cols = rows, cols = module.rows, module.cols
        bits = settings.bits
        self._group_size = cols if settings.group_size == -1 else settings.group_size
        where = f"{tensors.path}: {name}"
        if self._group_size > cols:
            raise CheckpointError(
                f"{where}: group_size {self._group_size} is beyond {cols} columns"
            )
        if cols * bits % 32 or rows * bits % 32:
            raise CheckpointError(
                f"{where}: [{rows}, {cols}] does not fill words of {bits}-bit GPTQ"
            )
        groups = -(-cols // self._group_size)
        names = {f"{name}.qweight", f"{name}.qzeros", f"{name}.scales"}
        tensors.check(f"{name}.qweight", ("I32",), (cols * bits // 32, rows))
        tensors.check(f"{name}.qzeros", ("I32",), (groups, rows * bits // 32))
        tensors.check(f"{name}.scales", FLOATS, (groups, rows))
        if f"{name}.g_idx" in tensors:
            names.add(f"{name}.g_idx")
            tensors.check(f"{name}.g_idx", ("I32",), (cols,))
        elif settings.act_order and groups > 1:
            raise CheckpointError(f"{tensors.path}: tensor {name}.g_idx is missing (desc_act)")
        if not module.has_bias and f"{name}.bias" in tensors:
            names.add(f"{name}.bias")
            _check_no_bias(tensors, f"{name}.bias", rows)
        self.tensor_names = frozenset(names)
        self._version = version

    @cached_property
    def _order(self) -> ColumnOrder:
        name = f"{self._name}.g_idx"
        if name not in self._tensors:
            return ColumnOrder()
        return column_order(self._tensors, name, self._cols, self._group_size)

    @cached_property
    def _is_symmetric(self) -> bool:
        """Whether the config says so and all zero points are in the middle. Not the zero points
        are kept: of a whole model they are many."""
        versions = (1, 2) if self._version is None else (self._version,)
        return self._settings.symmetric and any(not self._zeros(v).any() for v in versions)

    def _zeros(self, version: int) -> Int16Array:
        """[rows, groups], centred."""
        bits = self._settings.bits
        words = self._tensors.integers(f"{self._name}.qzeros")
        return centred(unpack_gptq_zeros(words, bits, version=version), bits).astype(np.int16)

    def format(self, first_row: int, rows: int) -> GroupFormat:
        return GroupFormat(
            self._settings.bits,
            self._group_size,
            self._tensors.float_dtype(f"{self._name}.scales"),
            "none" if self._is_symmetric else "zero",
            self._order.name,
        )

    def read(self, first_row: int, rows: int) -> GroupedMatrix:
        taken = slice(first_row, first_row + rows)
        bits = self._settings.bits
        words = self._tensors.integers(f"{self._name}.qweight")[:, taken]
        scales = self._tensors.scales(f"{self._name}.scales")[:, taken]
        return GroupedMatrix(
            ordered(centred(unpack_gptq_weight(words, bits), bits), self._order),
            bits,
            self._group_size,
            np.ascontiguousarray(scales.T),
            self._tensors.float_dtype(f"{self._name}.scales"),
            zeros=None if self._is_symmetric else self._zeros(self._version or 1)[taken],
            columns=self._order.columns,
            order=self._order.name,
        )


def _check_no_bias(tensors: StoredTensors, name: str, rows: int) -> None:
    """Old files have a bias of zeros for every module, whether the model knows one or not."""
    tensors.check(name, FLOATS, (rows,))
    if tensors.floats(name).to_float32().any():
        raise tensors.error(name, "is not zero, but the model has no bias there")
