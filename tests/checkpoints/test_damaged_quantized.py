"""Damaged and impossible quantized directories: one line each, quickly, in little memory."""

from __future__ import annotations

import copy
import itertools
import json
import os
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import handmade
import numpy as np
import pytest
import quantized_models as models
from command_line import refused_line
from quantized_models import Awq, Gptq, Model
from test_compressed_tensors import Scheme
from test_fp8 import config_of as fp8_config
from test_fp8 import writer as fp8_writer

from trimtab.checkpoints import open_checkpoint
from trimtab.errors import CheckpointError

MAX_SECONDS = 8
MAX_PEAK_BYTES = 64 << 20
FILE = "model.safetensors"
Q = "model.layers.0.self_attn.q_proj"
DEEP = "[" * 100_000

Damage = Callable[[Model], Any]


def packed(**more: Any) -> Scheme:
    own = {"num_bits": 4, "strategy": "group", "group_size": 16, "symmetric": False, **more}
    return Scheme("pack-quantized", **own)


def built(scheme: Scheme) -> Model:
    return models.build(scheme.config(), scheme.write)


BASES: dict[str, Model] = {
    "gptq": models.build(Gptq(symmetric=False).config(), Gptq(symmetric=False).write),
    "gptq-order": models.build(Gptq(act_order=True).config(), Gptq(act_order=True).write),
    "gptq-3": models.build(Gptq(3, 16).config(), Gptq(3, 16).write),
    "awq": models.build(Awq().config(), Awq().write),
    "packed": built(packed()),
    "packed-order": built(packed(symmetric=True, actorder="group")),
    "int": built(Scheme("int-quantized", num_bits=8, strategy="channel", symmetric=False)),
    "int4": built(Scheme("int-quantized", num_bits=4, strategy="group", group_size=32)),
    "float": built(
        Scheme(
            "float-quantized", num_bits=8, type="float", strategy="block", block_structure=[32, 32]
        )
    ),
    "fp8": models.build(fp8_config((32, 16)), fp8_writer((32, 16))),
}


def refusal(directory: Path) -> str:
    """The line that opening and reading everything ends with."""
    tracemalloc.start()
    start = time.process_time()
    with pytest.raises(CheckpointError) as caught:
        read_all(directory)
    seconds, peak = time.process_time() - start, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 600
    assert seconds < MAX_SECONDS
    assert peak < MAX_PEAK_BYTES
    assert refused_line(directory)
    return message


def read_all(directory: Path) -> None:
    checkpoint = open_checkpoint(directory)
    for name in checkpoint.names():
        checkpoint.format(name)
        checkpoint.matrix(name)


@pytest.mark.parametrize("base", BASES)
def test_the_undamaged_models_can_be_read(base: str, tmp_path: Path) -> None:
    read_all(BASES[base].write(tmp_path))


# Damages of the quantization config and of the tensors, by format.


def config(**changes: Any) -> Damage:
    return lambda model: model.config["quantization_config"].update(changes)


def group(**changes: Any) -> Damage:
    def damage(model: Model) -> None:
        model.config["quantization_config"]["config_groups"]["group_0"].update(changes)

    return damage


def weights(**changes: Any) -> Damage:
    def damage(model: Model) -> None:
        groups = model.config["quantization_config"]["config_groups"]
        groups["group_0"]["weights"].update(changes)

    return damage


def without(*keys: str) -> Damage:
    return lambda model: [model.config["quantization_config"].pop(key) for key in keys]


def drop(part: str) -> Damage:
    return lambda model: model.tensors.pop(f"{Q}.{part}")


def change(part: str, make: Callable[[np.ndarray], np.ndarray]) -> Damage:
    def damage(model: Model) -> None:
        model.tensors[f"{Q}.{part}"] = make(model.tensors[f"{Q}.{part}"].copy())

    return damage


def put(part: str, index: Any, value: Any) -> Damage:
    def edit(data: np.ndarray) -> np.ndarray:
        data[index] = value
        return data

    return change(part, edit)


def extra(part: str, data: np.ndarray) -> Damage:
    return lambda model: model.tensors.update({f"{Q}.{part}": data})


def longer(data: np.ndarray) -> np.ndarray:
    return np.concatenate([data, data[:1]])


def as_type(dtype: Any) -> Callable[[np.ndarray], np.ndarray]:
    return lambda data: data.astype(dtype)


SLOW_PATTERNS = ["re:(.*)*(.*)*(.*)*(.*)*x$", "re:(([a-z._0-9]+)+)+X", "re:(m|mo|mod|o|d|e|el)*X"]
FLOAT_KEYS = {"num_bits": 8, "type": "float", "strategy": "tensor"}

DAMAGES: dict[tuple[str, str], tuple[Damage, str]] = {
    # GPTQ: the config
    ("gptq", "bits 5"): (config(bits=5), "bits = 5: GPTQ has 2, 3, 4, 8"),
    ("gptq", "bits 0"): (config(bits=0), "bits = 0"),
    ("gptq", "bits -4"): (config(bits=-4), "bits = -4"),
    ("gptq", "bits text"): (config(bits="4"), "bits = '4'"),
    ("gptq", "bits huge"): (config(bits=10**19), "bits = 1000"),
    ("gptq", "no bits"): (without("bits"), "bits is missing"),
    ("gptq", "other bits"): (config(bits=8), "q_proj.qweight has shape [8, 64]"),
    ("gptq", "group 0"): (config(group_size=0), "group_size = 0"),
    ("gptq", "group -2"): (config(group_size=-2), "group_size = -2"),
    ("gptq", "group large"): (config(group_size=65), "group_size 65 is beyond 64 columns"),
    ("gptq", "group huge"): (config(group_size=2**31 - 1), "is beyond 64 columns"),
    ("gptq", "group beyond int32"): (config(group_size=2**31), "group_size = 2147483648"),
    ("gptq", "other group"): (config(group_size=16), "qzeros has shape [2, 8]"),
    ("gptq", "no group"): (without("group_size"), "group_size is missing"),
    ("gptq", "sym"): (config(sym="yes"), "sym = 'yes'"),
    ("gptq", "marlin"): (config(checkpoint_format="marlin"), "checkpoint_format = 'marlin'"),
    ("gptq", "marlin flag"): (config(is_marlin_format=True), "Marlin layout"),
    ("gptq", "planar"): (config(checkpoint_format="gptq_p"), "'gptq_p' is not supported"),
    ("gptq", "method"): (config(method="awq"), "method = 'awq'"),
    ("gptq", "pack type"): (config(pack_dtype="int16"), "pack_dtype = 'int16'"),
    ("gptq", "rotation"): (config(rotation="hadamard"), "'rotation' = 'hadamard' is not under"),
    ("gptq", "head"): (config(lm_head=True), "tensor lm_head.qweight is missing"),
    ("gptq", "dynamic text"): (config(dynamic="x"), "dynamic = 'x'"),
    ("gptq", "dynamic rule"): (config(dynamic={"+:x": 4}), "+:x = 4: must be an object"),
    ("gptq", "dynamic null"): (config(dynamic={"+:x": None}), "'+:x': must be an object"),
    ("gptq", "dynamic bits"): (config(dynamic={"+:x": {"bits": 6}}), "bits = 6"),
    ("gptq", "dynamic key"): (config(dynamic={".": {"scale": 2}}), "'scale' = 2 is not"),
    ("gptq", "dynamic skip"): (config(dynamic={"-:.*q_proj": {}}), "q_proj.weight is missing"),
    ("gptq", "dynamic pattern"): (config(dynamic={"-:(": {}}), "no regular expression"),
    ("gptq", "dynamic slow"): (
        config(dynamic={f"-:{SLOW_PATTERNS[0][3:]}": {}, "-:.*q_proj": {}}),
        "q_proj.weight is missing",
    ),
    ("gptq", "blocks"): (
        config(modules_in_block_to_quantize=[["mlp.up_proj"]]),
        "q_proj.weight is missing",
    ),
    ("gptq", "blocks of no names"): (
        config(modules_in_block_to_quantize=[[3]]),
        "must be a list of names",
    ),
    ("gptq", "no method"): (without("quant_method"), "quant_method = ''"),
    ("gptq", "bitsandbytes"): (config(quant_method="bitsandbytes"), "'bitsandbytes': quantized"),
    ("gptq", "number as method"): (config(quant_method=4), "quant_method = 4"),
    ("gptq", "config a list"): (
        lambda model: model.config.update(quantization_config=[1]),
        "quantization_config = [1]: must be an object",
    ),
    ("gptq", "config empty"): (
        lambda model: model.config.update(quantization_config={}),
        "quant_method = ''",
    ),
    ("gptq", "config gone"): (
        lambda model: model.config.pop("quantization_config"),
        "q_proj.weight is missing",
    ),
    # GPTQ: the tensors
    ("gptq", "no qweight"): (drop("qweight"), f"tensor {Q}.qweight is missing"),
    ("gptq", "no qzeros"): (drop("qzeros"), f"tensor {Q}.qzeros is missing"),
    ("gptq", "no scales"): (drop("scales"), f"tensor {Q}.scales is missing"),
    ("gptq", "qweight int64"): (change("qweight", as_type(np.int64)), "stored as I64, it must be"),
    ("gptq", "qweight float"): (change("qweight", as_type(np.float32)), "stored as F32, it must"),
    ("gptq", "qweight turned"): (
        change("qweight", lambda data: np.ascontiguousarray(data.T)),
        "qweight has shape [64, 8], the quantization config asks for [8, 64]",
    ),
    ("gptq", "qweight flat"): (change("qweight", np.ravel), "qweight has shape [512]"),
    ("gptq", "qzeros int8"): (change("qzeros", as_type(np.int8)), "stored as I8"),
    ("gptq", "qzeros longer"): (change("qzeros", longer), "qzeros has shape [3, 8]"),
    ("gptq", "scales int"): (change("scales", as_type(np.int32)), "scales is stored as I32"),
    ("gptq", "scales longer"): (change("scales", longer), "scales has shape [3, 64]"),
    ("gptq", "scales NaN"): (put("scales", (0, 3), np.nan), "scale that is not finite"),
    ("gptq", "scales infinite"): (put("scales", (1, 0), -np.inf), "scale that is not finite"),
    ("gptq", "g_idx int64"): (change("g_idx", as_type(np.int64)), "g_idx is stored as I64"),
    ("gptq", "g_idx longer"): (change("g_idx", longer), "g_idx has shape [65]"),
    ("gptq", "weight too"): (extra("weight", np.zeros((64, 64), np.float32)), "q_proj.weight'"),
    ("gptq", "bias"): (extra("bias", np.ones(64, np.float16)), "is not zero, but the model has"),
    ("gptq", "bias shape"): (extra("bias", np.zeros(65, np.float16)), "bias has shape [65]"),
    ("gptq", "stray"): (extra("qscales", np.ones(1, np.float16)), "q_proj.qscales'"),
    ("gptq-order", "no g_idx"): (drop("g_idx"), "g_idx is missing (desc_act)"),
    ("gptq-order", "g_idx negative"): (put("g_idx", 7, -1), "outside [0, 1]"),
    ("gptq-order", "g_idx beyond"): (put("g_idx", 7, 2), "outside [0, 1]"),
    ("gptq-order", "g_idx huge"): (put("g_idx", 7, 2**31 - 1), "outside [0, 1]"),
    ("gptq-order", "g_idx uneven"): (put("g_idx", slice(0, 20), 0), "not 32: not supported"),
    ("gptq-order", "g_idx constant"): (put("g_idx", slice(None), 0), "gives group 0 64 columns"),
    ("gptq-3", "no whole words"): (
        lambda model: model.config.update(intermediate_size=97),
        "does not fill words of 3-bit GPTQ",
    ),
    ("gptq-3", "as 2 bits"): (config(bits=2), "qweight has shape [6, 64]"),
    # AWQ
    ("awq", "bits 8"): (config(bits=8), "bits = 8: AWQ is supported with 4 only"),
    ("awq", "gemv"): (config(version="gemv"), "version = 'gemv': of AWQ only gemm"),
    ("awq", "gemv_fast"): (config(version="GEMV_fast"), "only gemm"),
    ("awq", "marlin"): (config(checkpoint_format="marlin"), "only gemm"),
    ("awq", "version 3"): (config(version=3), "version = 3: must be a string"),
    ("awq", "group 0"): (config(group_size=0), "group_size = 0"),
    ("awq", "group -2"): (config(group_size=-2), "group_size = -2"),
    ("awq", "group 48"): (config(group_size=48), "does not divide"),
    ("awq", "group large"): (config(group_size=4096), "does not divide"),
    ("awq", "no group"): (without("group_size"), "group_size is missing"),
    ("awq", "desc_act"): (config(desc_act=True), "'desc_act' = True is not understood"),
    ("awq", "head"): (config(lm_head=True), "'lm_head' = True is not understood"),
    ("awq", "not converted"): (
        config(modules_to_not_convert="o_proj"),
        "modules_to_not_convert: must be a list of names",
    ),
    ("awq", "empty name"): (config(modules_to_not_convert=[""]), "must be a list of names"),
    ("awq", "no qweight"): (drop("qweight"), "q_proj.qweight is missing"),
    ("awq", "no qzeros"): (drop("qzeros"), "q_proj.qzeros is missing"),
    ("awq", "gptq's shape"): (
        change("qweight", lambda data: data.reshape(8, 64)),
        "qweight has shape [8, 64], the quantization config asks for [64, 8]",
    ),
    ("awq", "qzeros shape"): (change("qzeros", longer), "qzeros has shape [3, 8]"),
    ("awq", "scales NaN"): (put("scales", (0, 0), np.nan), "not finite"),
    ("awq", "g_idx"): (extra("g_idx", np.zeros(64, np.int32)), "q_proj.g_idx'"),
    ("awq", "rows"): (
        lambda model: model.config.update(intermediate_size=100),
        "does not divide into AWQ's words of 8 rows",
    ),
    # compressed-tensors: the config
    ("packed", "no groups"): (without("config_groups"), "config_groups is missing"),
    ("packed", "groups empty"): (config(config_groups={}), "q_proj.weight is missing"),
    ("packed", "group is a number"): (config(config_groups={"a": 3}), "a = 3: must be an obj"),
    ("packed", "group is null"): (config(config_groups={"a": None}), "'a': must be an object"),
    ("packed", "preset"): (config(config_groups={"W9A9": ["Linear"]}), "'W9A9': not a preset"),
    ("packed", "format"): (group(format="nvfp4-pack-quantized"), "'nvfp4-pack-quantized' is not"),
    ("packed", "mxfp4"): (group(format="mxfp4-pack-quantized"), "is not supported"),
    ("packed", "sparse"): (group(format="sparse-24-bitmask"), "is not supported"),
    ("packed", "other format"): (group(format="int-quantized"), "q_proj.weight is missing"),
    ("packed", "float format"): (group(format="float-quantized"), "does not store type 'int'"),
    ("packed", "status"): (config(quantization_status="frozen"), "must be compressed"),
    ("packed", "kv cache"): (config(kv_cache_scheme={"num_bits": 8}), "kv_cache_scheme"),
    ("packed", "transform"): (config(transform_config={"a": 1}), "transform_config"),
    ("packed", "sparsity"): (
        config(sparsity_config={"format": "sparse-24-bitmask"}),
        "sparsity_config: format = 'sparse-24-bitmask' is not supported",
    ),
    ("packed", "unknown top key"): (config(rotate=True), "'rotate' = True is not understood"),
    ("packed", "unknown group key"): (group(smooth=1), "'smooth' = 1 is not understood"),
    ("packed", "unknown weight key"): (weights(clip=0.5), "'clip' = 0.5 is not understood"),
    ("packed", "unknown input key"): (
        group(input_activations={"num_bits": 8, "clip": 1}),
        "'clip' = 1 is not understood",
    ),
    ("packed", "outputs"): (group(output_activations={"num_bits": 8}), "output_activations"),
    ("packed", "targets"): (group(targets="Linear"), "targets: must be a list of names"),
    ("packed", "no targets"): (group(targets=[]), "q_proj.weight is missing"),
    ("packed", "bits 1"): (weights(num_bits=1), "num_bits = 1"),
    ("packed", "bits 9"): (weights(num_bits=9), "num_bits = 9"),
    ("packed", "other bits"): (weights(num_bits=5), "weight_packed has shape [64, 8]"),
    ("packed", "type"): (weights(type="complex"), "type = 'complex'"),
    ("packed", "dynamic"): (weights(dynamic=True), "weights must be static"),
    ("packed", "strategy"): (weights(strategy="token"), "strategy = 'token'"),
    ("packed", "tensor_group"): (weights(strategy="tensor_group"), "strategy = 'tensor_group'"),
    ("packed", "channel with group"): (weights(strategy="channel"), "does not go with strategy"),
    ("packed", "group 0"): (weights(group_size=0), "group_size = 0"),
    ("packed", "group -2"): (weights(group_size=-2), "group_size = -2"),
    ("packed", "group without size"): (weights(group_size=None), "does not go with strategy"),
    ("packed", "group large"): (weights(group_size=128), "do not divide into groups of 128"),
    ("packed", "group odd"): (weights(group_size=48), "do not divide into groups of 48"),
    ("packed", "actorder"): (weights(actorder="sideways"), "actorder = 'sideways'"),
    ("packed", "actorder without g_idx"): (weights(actorder=True), "weight_g_idx is missing"),
    ("packed", "block"): (weights(block_structure=[8, 8]), "does not go with strategy"),
    ("packed", "ignore"): (config(ignore=["lm_head", "re:.*q_proj"]), "q_proj.weight is missing"),
    ("packed", "ignore numbers"): (config(ignore=[1, 2]), "ignore: must be a list of names"),
    ("packed", "pattern"): (config(ignore=["re:[a-"]), "'[a-' is no regular expression"),
    ("packed", "long pattern"): (config(ignore=["re:" + "a" * 3000]), "more than 2000"),
    ("packed", "deep pattern"): (group(targets=["re:" + "(" * 999 + ")" * 999]), "the pattern"),
    ("packed", "flags"): (group(targets=["re:(?i)linear"]), "has flags"),
    ("packed", "slow pattern 0"): (group(targets=[SLOW_PATTERNS[0]]), "q_proj.weight is missing"),
    ("packed", "slow pattern 1"): (group(targets=[SLOW_PATTERNS[1]]), "q_proj.weight is missing"),
    ("packed", "slow pattern 2"): (group(targets=[SLOW_PATTERNS[2]]), "q_proj.weight is missing"),
    ("packed", "many names"): (config(ignore=["a"] * 99_999), "has 99999 names: at most"),
    ("awq", "many names"): (
        config(modules_to_not_convert=["a"] * 99_999),
        "modules_to_not_convert: has 99999 names: at most",
    ),
    # compressed-tensors: the tensors
    ("packed", "no words"): (drop("weight_packed"), "weight_packed is missing"),
    ("packed", "no shape"): (drop("weight_shape"), "weight_shape is missing"),
    ("packed", "no zeros"): (drop("weight_zero_point"), "weight_zero_point is missing"),
    ("packed", "shape differs"): (put("weight_shape", 0, 63), "weight_shape is [63, 64]"),
    ("packed", "shape negative"): (put("weight_shape", 1, -64), "weight_shape is [64, -64]"),
    ("packed", "shape huge"): (put("weight_shape", 0, 2**62), "weight_shape is [46116860"),
    ("packed", "shape float"): (change("weight_shape", as_type(np.float32)), "stored as F32"),
    ("packed", "shape of three"): (change("weight_shape", longer), "weight_shape has shape [3]"),
    ("packed", "words int64"): (change("weight_packed", as_type(np.int64)), "stored as I64"),
    ("packed", "zeros along rows"): (
        change("weight_zero_point", lambda data: np.ascontiguousarray(data.T)),
        "weight_zero_point has shape [4, 8]",
    ),
    ("packed", "zeros int8"): (change("weight_zero_point", as_type(np.int8)), "stored as I8"),
    ("packed", "scale NaN"): (put("weight_scale", (0, 0), 0x7FC0), "not finite"),
    ("packed", "zeros where symmetric"): (weights(symmetric=True), "weight_zero_point'"),
    ("packed", "scale per row"): (
        change("weight_scale", lambda data: np.ascontiguousarray(data[:, :1])),
        "weight_scale has shape [64, 1], the quantization config asks for [64, 4]",
    ),
    ("packed-order", "uneven"): (put("weight_g_idx", slice(0, 9), 1), "not 16: not supported"),
    ("packed-order", "beyond"): (put("weight_g_idx", 0, 4), "outside [0, 3]"),
    ("packed-order", "negative"): (put("weight_g_idx", 0, -5), "outside [0, 3]"),
    ("packed-order", "not asked for"): (weights(actorder=None), "weight_g_idx'"),
    ("packed-order", "by channel"): (
        weights(strategy="channel", group_size=None),
        "actorder needs strategy group",
    ),
    ("int", "weight float"): (change("weight", as_type(np.float32)), "stored as F32, it must be"),
    ("int", "zeros int32"): (change("weight_zero_point", as_type(np.int32)), "stored as I32"),
    ("int", "zeros flat"): (change("weight_zero_point", np.ravel), "has shape [64]"),
    ("int", "block"): (
        weights(strategy="block", block_structure=[8, 8]),
        "'block' is supported for float8 only",
    ),
    ("int", "naive 16 bits"): (weights(num_bits=16), "num_bits = 16"),
    ("int4", "beyond its bits"): (put("weight", (3, 3), 8), "weight has values beyond 4 bits"),
    ("int4", "below its bits"): (put("weight", (3, 3), -9), "weight has values beyond 4 bits"),
    ("float", "e5m2 in name"): (weights(num_bits=6), "only those of 8 bits"),
    ("float", "zeros"): (weights(symmetric=False), "float8 with zero points"),
    ("float", "integers"): (weights(type="int"), "does not store type 'int'"),
    ("float", "block of three"): (weights(block_structure=[1, 2, 3]), "must be two sizes"),
    ("float", "block of zero"): (weights(block_structure=[0, 32]), "must be two sizes"),
    ("float", "block as text"): (weights(block_structure="32xx"), "must be two sizes"),
    ("float", "block huge"): (weights(block_structure=[2**40, 32]), "must be two sizes"),
    ("float", "other block"): (weights(block_structure=[16, 32]), "weight_scale has shape [2, 2]"),
    ("float", "scale NaN"): (put("weight_scale", (1, 1), 0xFFFF), "not finite"),
    ("float", "weight int8"): (change("weight", as_type(np.int8)), "weight is stored as I8"),
    # FP8
    ("fp8", "e5m2"): (config(fmt="e5m2"), "fmt = 'e5m2': only e4m3"),
    ("fp8", "activations"): (config(activation_scheme="lazy"), "activation_scheme = 'lazy'"),
    ("fp8", "block of one"): (config(weight_block_size=[128]), "must be two sizes"),
    ("fp8", "block negative"): (config(weight_block_size=[-1, 128]), "must be two sizes"),
    ("fp8", "block of floats"): (config(weight_block_size=[1.5, 2.5]), "must be two sizes"),
    ("fp8", "block text"): (config(weight_block_size="x" * 9999), "must be two sizes"),
    ("fp8", "other block"): (config(weight_block_size=[16, 16]), "has shape [2, 4]"),
    ("fp8", "no block"): (config(weight_block_size=None), "asks for [1, 1]"),
    ("fp8", "no scale"): (drop("weight_scale_inv"), "weight_scale_inv is missing"),
    ("fp8", "no weight"): (drop("weight"), "weight is missing"),
    ("fp8", "scale int"): (change("weight_scale_inv", as_type(np.int32)), "is stored as I32"),
    ("fp8", "scale NaN"): (put("weight_scale_inv", (0, 0), np.nan), "not finite"),
    ("fp8", "scale huge"): (put("weight_scale_inv", (0, 0), 1.3e36), "overflows float32"),
    ("fp8", "scale -huge"): (put("weight_scale_inv", (0, 0), -1.3e36), "overflows float32"),
    ("packed", "scale huge"): (put("weight_scale", (0, 0), 0x7F7F), "overflows float32"),
    ("fp8", "weight int8"): (change("weight", as_type(np.int8)), "stored as I8"),
    ("fp8", "weight short"): (change("weight", longer), "weight has shape [65, 64]"),
    ("fp8", "unknown key"): (config(rescale=2), "'rescale' = 2 is not understood"),
    ("fp8", "input scale"): (extra("input_scale", np.ones(1, np.float32)), "input_scale'"),
    ("fp8", "skip list"): (config(ignored_layers=7), "ignored_layers: must be a list"),
}


@pytest.mark.parametrize("case", DAMAGES, ids=lambda case: f"{case[0]}: {case[1]}")
def test_damaged_models(case: tuple[str, str], tmp_path: Path) -> None:
    damage, culprit = DAMAGES[case]
    model = copy.deepcopy(BASES[case[0]])
    damage(model)
    assert culprit in refusal(model.write(tmp_path))


def test_many_patterns(tmp_path: Path) -> None:
    model = copy.deepcopy(BASES["packed"])
    patterns = [f"re:({i}|[a-z0-9_.]+)*(.*)*x" for i in range(5_000)]
    model.config["quantization_config"]["ignore"] = patterns
    directory = model.write(tmp_path)
    start = time.process_time()
    with pytest.raises(CheckpointError, match="take too long to match"):
        read_all(directory)
    assert (
        time.process_time() - start < MAX_SECONDS
    )  # memory is not traced: that costs ten times more


# Damages of the files, the same for every format.


def header(edit: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """An edit of the header's object; of the name of the first tensor of integers or float8."""

    def damage(directory: Path) -> None:
        path = directory / FILE
        content = path.read_bytes()
        length = int.from_bytes(content[:8], "little")
        entries = json.loads(content[8 : 8 + length])
        quantized = next(
            key for key in entries if entries[key]["dtype"] in ("I32", "I8", "F8_E4M3")
        )
        edit(entries[quantized])
        path.unlink()
        path.write_bytes(handmade.file_bytes(entries, content[8 + length :]))

    return damage


def as_e5m2(entry: dict[str, Any]) -> None:
    start, end = entry["data_offsets"]
    shape = entry["shape"] if entry["dtype"] != "I32" else [end - start]
    entry.update(dtype="F8_E5M2", shape=shape)


def truncate(size: int) -> Callable[[Path], None]:
    def damage(directory: Path) -> None:
        path = directory / FILE
        os.truncate(path, size if size >= 0 else path.stat().st_size + size)

    return damage


def set_config(text: str) -> Callable[[Path], None]:
    def damage(directory: Path) -> None:
        path = directory / "config.json"
        stored = json.loads(path.read_text())
        del stored["quantization_config"]
        path.write_text(json.dumps(stored)[:-1] + f', "quantization_config": {text}}}')

    return damage


def shard(name: str) -> Callable[[Path], None]:
    def damage(directory: Path) -> None:
        entries = handmade.header_of({"x": np.zeros(1, np.float32)})
        weight_map = dict.fromkeys(entries, name)
        (directory / FILE).unlink()
        index = directory / "model.safetensors.index.json"
        index.write_text(json.dumps({"weight_map": weight_map}))

    return damage


FILE_DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "cut in the data": (truncate(-1), "truncated"),
    "cut in the header": (truncate(300), "truncated"),
    "grown": (lambda directory: os.truncate(directory / FILE, 1 << 40), "belong to no tensor"),
    "huge shape": (header(lambda e: e.update(shape=[1 << 40, 1 << 40])), "does not take"),
    "shape that wraps": (header(lambda e: e.update(shape=[1 << 32, 1 << 32])), "does not take"),
    "negative shape": (header(lambda e: e.update(shape=[-1, -1])), "non-negative"),
    "negative offsets": (header(lambda e: e.update(data_offsets=[-8, 8])), "non-negative"),
    "overlap": (
        header(lambda e: e.update(data_offsets=[at - 64 for at in e["data_offsets"]])),
        "an overlap|a hole|non-negative",
    ),
    "other dtype": (header(lambda e: e.update(dtype="U32" if e["dtype"] == "I32" else "U8")), "U"),
    "e5m2": (header(as_e5m2), "has shape|is stored as F8_E5M2"),
    "deep config": (set_config(DEEP), "nested too deeply"),
    "duplicate key": (set_config('{"quant_method": "awq", "quant_method": "gptq"}'), "duplicate"),
    "long number": (set_config('{"bits": ' + "9" * 99_999 + "}"), "is too large"),
    "leads out": (shard("../../etc/model.safetensors"), "is not a plain"),
    "absolute shard": (shard("/etc/model.safetensors"), "is not a plain"),
    "missing shard": (shard("model-1.safetensors"), "shard model-1.safetensors is missing"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("base", "name"), list(itertools.product(("gptq", "awq", "packed", "int", "fp8"), FILE_DAMAGES))
)
def test_damaged_files(base: str, name: str, tmp_path: Path) -> None:
    damage, culprits = FILE_DAMAGES[name]
    directory = BASES[base].write(tmp_path)
    damage(directory)
    message = refusal(directory)
    assert any(culprit in message for culprit in culprits.split("|")), message


def test_the_file_beside_config_json_is_checked_too(tmp_path: Path) -> None:
    model = copy.deepcopy(BASES["gptq"])
    del model.config["quantization_config"]
    directory = model.write(tmp_path)
    beside = directory / "quantize_config.json"
    for text, culprit in (
        ("[]", "must hold a JSON object"),
        (DEEP, "nested too deeply"),
        ('{"bits": 4}', "quantize_config.json: group_size is missing"),
        ('{"bits": 4, "group_size": 32, "quant_method": "hqq"}', "quant_method = 'hqq'"),
    ):
        beside.write_text(text)
        assert culprit in refusal(directory)
