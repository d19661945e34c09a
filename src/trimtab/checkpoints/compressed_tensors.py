"""The config of compressed-tensors: which module is stored how.

`config_groups` gives modules, by class, name or pattern, a scheme; `ignore` takes modules out. A
module that several targets name has the scheme of the closest: its own name, then patterns in
alphabetical order, then its class. How a module then lies in the files, by `format`, is in
`compressed_tensors_layers`. Schemes of activations change no weight: see docs/formats.md.
Source: vllm-project/compressed-tensors (config/base.py, quantization/, utils/match.py).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from trimtab.checkpoints.compressed_tensors_layers import (
    LAYERS,
    WeightScheme,
    activation_tensors,
)
from trimtab.checkpoints.fp8 import read_block
from trimtab.checkpoints.name_patterns import Budget, NamePattern
from trimtab.checkpoints.stored_layers import Module, StoredLayer, StoredTensors, read_names
from trimtab.models.config_reader import ConfigReader, show

PATTERN = "re:"
DENSE, MIXED = "dense", "mixed-precision"
NO_KEYS: frozenset[str] = frozenset()

_STRATEGIES = ("tensor", "channel", "group", "block")
_ORDERS = {"group": True, "dynamic": True, "weight": False, "static": False}
_OF_ACTIVATIONS = frozenset(
    """
    num_bits type symmetric group_size strategy block_structure dynamic actorder observer
    observer_kwargs scale_dtype zp_dtype
    """.split()  # noqa: SIM905
)
_UNUSED = frozenset(("observer", "observer_kwargs", "scale_dtype", "zp_dtype"))


@dataclass(frozen=True)
class Group:
    """A scheme and its format; either None: the modules are stored as floats."""

    format: str
    weights: WeightScheme | None


class Names:
    """Names, classes and patterns of modules: a list of `targets`, or `ignore`."""

    def __init__(self, names: tuple[str, ...], where: str, budget: Budget) -> None:
        self._exact = frozenset(name for name in names if not name.startswith(PATTERN))
        self._patterns = [
            NamePattern(name.removeprefix(PATTERN), where, budget)
            for name in sorted(names)
            if name.startswith(PATTERN)
        ]

    def mean(self, module: Module) -> bool:
        return (
            module.name in self._exact
            or module.kind in self._exact
            or any(pattern.matches(module.name) for pattern in self._patterns)
        )


class CompressedTensorsQuantization:
    """See `trimtab.checkpoints.stored_layers.Quantization`."""

    def __init__(self, config: ConfigReader) -> None:
        """Raises CheckpointError for what is missing, impossible or not supported."""
        _refuse_unsupported(config)
        budget = Budget(config.where)
        ignore = read_names(config.raw("ignore"), f"{config.where}: ignore")
        self._ignore = Names(ignore, f"{config.where}: ignore", budget)
        self._exact: dict[str, Group] = {}  # by name or class
        self._patterns: list[tuple[NamePattern, Group]] = []
        default = config.text("format", MIXED)
        status = config.text("quantization_status", "compressed")
        if status != "compressed":
            raise config.error(f"quantization_status = {show(status)}: must be compressed")
        config.ignore("quant_method", "version", "global_compression_ratio")
        config.ignore("run_compressed", "dequantize", "use_optimized_inference")  # transformers'
        section = config.section("config_groups")
        if section is None:
            raise config.error("config_groups is missing")
        by_pattern: dict[str, Group] = {}
        for name in section.names():
            targets, group = _read_group(section, name, default)
            for target in targets:  # of equal targets the last counts
                table = by_pattern if target.startswith(PATTERN) else self._exact
                table[target] = group
        for target in sorted(by_pattern):
            pattern = NamePattern(target.removeprefix(PATTERN), section.where, budget)
            self._patterns.append((pattern, by_pattern[target]))
        config.finish(NO_KEYS)

    def layer(self, module: Module, tensors: StoredTensors) -> StoredLayer | None:
        group = self._group_of(module)
        if group is None or group.weights is None or group.format == DENSE:
            return None
        if self._ignore.mean(module):
            return None
        kind = LAYERS[group.format][group.weights.kind]
        layer = kind(module, group.weights, tensors)
        layer.tensor_names |= activation_tensors(module, group.weights, tensors)
        return layer

    def _group_of(self, module: Module) -> Group | None:
        if module.name in self._exact:
            return self._exact[module.name]
        for pattern, group in self._patterns:
            if pattern.matches(module.name):
                return group
        return self._exact.get(module.kind)


def _refuse_unsupported(config: ConfigReader) -> None:
    """What would change the answers, and is not done here."""
    for key in ("kv_cache_scheme", "moe_sparsity_config", "transform_config"):
        if value := config.raw(key):
            raise config.error(f"{key} = {show(value)} is not supported")
    sparsity = config.section("sparsity_config")
    if sparsity is not None and sparsity.raw("format") not in (None, DENSE):
        raise sparsity.error(f"format = {show(sparsity.raw('format'))} is not supported")


def _read_group(
    section: ConfigReader, name: str, default_format: str
) -> tuple[tuple[str, ...], Group]:
    """The targets of a group, and what they are stored as."""
    preset = section.raw(name)
    if isinstance(preset, list):  # the name of a preset, with its targets
        targets = read_names(preset, f"{section.where}: {show(name)}")
        _check_format(section, default_format)
        return targets, _group(section, default_format, _preset(section, name))
    group = section.section(name)
    if group is None:
        raise section.error(f"{show(name)}: must be an object")
    targets = read_names(group.raw("targets"), f"{group.where}: targets")
    if group.raw("output_activations") is not None:
        raise group.error("output_activations: rounding outputs is not supported")
    format_name = group.text("format", default_format)
    weights = None
    if (own := group.section("weights")) is not None:
        _check_format(group, format_name)
        weights = _read_weights(own)
    if (inputs := group.section("input_activations")) is not None:
        static = inputs.raw("dynamic") in (None, False)
        weights = weights and replace(weights, static_inputs=static)
        inputs.finish(_OF_ACTIVATIONS)
    group.finish(NO_KEYS)
    return targets, _group(group, format_name, weights)


def _check_format(config: ConfigReader, name: str) -> None:
    if name not in LAYERS and name != DENSE:
        supported = ", ".join((DENSE, *LAYERS))
        raise config.error(f"format = {show(name)} is not supported ({supported} are)")


def _group(config: ConfigReader, format_name: str, weights: WeightScheme | None) -> Group:
    if weights is not None and format_name != DENSE:
        kinds = LAYERS[format_name]
        if weights.kind not in kinds:
            raise config.error(f"format {format_name} does not store type {show(weights.kind)}")
        kinds[weights.kind].check_scheme(weights, config)
    return Group(format_name, weights)


def _read_weights(config: ConfigReader) -> WeightScheme:
    kind = config.text("type", "int").lower()
    if kind not in ("int", "float"):
        raise config.error(f"type = {show(kind)}: must be int or float")
    if config.raw("dynamic") not in (None, False):
        raise config.error("dynamic: weights must be static")
    group_size = config.optional_integer("group_size", minimum=-1)
    if group_size == 0:
        raise config.error("group_size = 0: must be -1 or more than 0")
    implied = "tensor" if group_size is None else "channel" if group_size == -1 else "group"
    strategy = config.text("strategy", implied).lower()
    if strategy not in _STRATEGIES:
        supported = ", ".join(_STRATEGIES)
        raise config.error(f"strategy = {show(strategy)} is not supported ({supported} are)")
    if (strategy == "group") != (group_size is not None and group_size > 0):
        raise config.error(f"group_size = {group_size} does not go with strategy {strategy}")
    block = read_block(config, "block_structure")
    if (strategy == "block") != (block is not None):
        raise config.error(f"block_structure = {show(block)} does not go with strategy {strategy}")
    scheme = WeightScheme(
        config.integer("num_bits", 8, minimum=2, maximum=8),
        kind,
        config.flag("symmetric", True),
        strategy,
        group_size or -1,
        block,
        _read_order(config),
    )
    config.finish(_UNUSED)
    return scheme


def _read_order(config: ConfigReader) -> bool:
    """Whether groups are of columns out of order (weight_g_idx)."""
    value = config.raw("actorder")
    if isinstance(value, bool) or value is None:
        return bool(value)
    if not isinstance(value, str) or value.lower() not in _ORDERS:
        raise config.error(f"actorder = {show(value)} is not supported")
    return _ORDERS[value.lower()]


def _preset(section: ConfigReader, name: str) -> WeightScheme | None:
    """Schemes that a config can call by their name, PRESET_SCHEMES in the package."""
    upper = name.upper()
    eight = WeightScheme(8, "int", True, "channel", -1)
    presets: Mapping[str, WeightScheme | None] = {
        "UNQUANTIZED": None,
        "W4A16_ASYM": WeightScheme(4, "int", False, "group", 128),
        "W8A8": eight,
        "INT8": eight,
        "W4AFP8": WeightScheme(4, "int", True, "group", 128),
        "FP8": WeightScheme(8, "float", True, "tensor", -1, static_inputs=True),
        "FP8_DYNAMIC": WeightScheme(8, "float", True, "channel", -1),
        "FP8_BLOCK": WeightScheme(8, "float", True, "block", -1, (128, 128)),
    }
    if upper in presets:
        return presets[upper]
    match: Any = re.fullmatch(r"W([2-8])A(4|8|16)", upper)
    if match is None:
        raise section.error(f"{show(name)}: not a preset that is supported")
    return WeightScheme(int(match[1]), "int", True, "group", 128)
