"""compressed-tensors, against the package that owns the format."""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import quantized_models as models
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.utils import calculate_qparams

from trimtab.checkpoints import open_checkpoint
from trimtab.numerics import bit_packing
from trimtab.numerics.stored import Fp8Format, GroupFormat

DTYPES = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}


def as_array(tensor: torch.Tensor) -> np.ndarray:
    """Bit patterns where numpy has no type of its own."""
    tensor = tensor.contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.uint16).numpy()
    if tensor.dtype == torch.float8_e4m3fn:
        return tensor.view(torch.uint8).numpy()
    return tensor.numpy()


def blocks_of(weight: torch.Tensor, weights: dict[str, Any]) -> torch.Tensor:
    """[scales rows, scales cols, elements that share a scale]; padded with zeros."""
    rows, cols = weight.shape
    height, width = {
        "tensor": (rows, cols),
        "channel": (1, cols),
        "group": (1, weights.get("group_size") or 1),
        "block": tuple(weights.get("block_structure") or (1, 1)),
    }[weights["strategy"]]
    weight = torch.nn.functional.pad(weight, (0, -cols % width, 0, -rows % height))
    down, along = weight.shape[0] // height, weight.shape[1] // width
    blocks = weight.view(down, height, along, width).transpose(1, 2)
    return blocks.reshape(down, along, -1)


class Scheme:
    """A config group, as the package reads it; and modules stored by it, by the package."""

    def __init__(self, format_name: str, dtype: str = "bf16", **weights: Any) -> None:
        self.format = format_name
        self.dtype = DTYPES[dtype]
        self.weights = weights
        own = {key: value for key, value in weights.items() if key != "actorder"}
        self.scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**own))

    def group(self, *targets: str, **more: Any) -> dict[str, Any]:
        targets = targets or ("Linear",)
        return {"targets": list(targets), "weights": self.weights, "format": self.format, **more}

    def config(self, **more: Any) -> dict[str, Any]:
        return config_of({"group_0": self.group()}, format=self.format, **more)

    def write(self, name: str, rows: int, cols: int) -> tuple[models.Tensors, np.ndarray]:
        """The parts, and the package's own decompression, which rounds to the scales' dtype."""
        generator = torch.Generator().manual_seed(models.seed_of(name))
        weight = torch.randn(rows, cols, generator=generator) + 0.5  # so that zeros spread
        blocks = blocks_of(weight, self.weights)
        args = self.scheme.weights
        assert args is not None
        scale, zero = calculate_qparams(blocks.amin(-1), blocks.amax(-1), args)
        scale = scale.to(self.dtype)
        if self.weights["strategy"] == "tensor":
            scale, zero = scale.view(1), zero.view(1)
        state = {"weight": weight, "weight_scale": scale, "weight_zero_point": zero}
        compressor = BaseCompressor.get_value_from_registry(self.format)
        state["weight"] = weight.to(self.dtype)
        parts = compressor.compress(state, self.scheme)
        back = compressor.decompress(parts, self.scheme)["weight"]
        assert back.dtype == self.dtype
        matrix = back.to(torch.float32).numpy()
        if self.weights.get("actorder") == "group":
            order = list(range(cols))
            random.Random(name).shuffle(order)
            matrix = out_of_order(parts, self.weights, matrix, order)
        return {part: as_array(data) for part, data in parts.items()}, matrix


def out_of_order(
    parts: dict[str, torch.Tensor], weights: dict[str, Any], matrix: np.ndarray, order: list[int]
) -> np.ndarray:
    """The same integers with every column k and its group moved to column order[k], packed by
    the package."""
    from compressed_tensors.compressors.pack_quantized.helpers import (
        pack_to_int32,
        unpack_from_int32,
    )

    bits, size = weights["num_bits"], weights["group_size"]
    shape = torch.Size(parts["weight_shape"].tolist())
    values = unpack_from_int32(parts["weight_packed"], bits, shape)
    moved, result = torch.empty_like(values), np.empty_like(matrix)
    moved[:, order] = values
    result[:, order] = matrix
    parts["weight_packed"] = pack_to_int32(moved, bits)
    group_of = torch.empty(shape[1], dtype=torch.int32)
    group_of[order] = torch.arange(shape[1], dtype=torch.int32) // size
    parts["weight_g_idx"] = group_of
    return result


def config_of(groups: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "quant_method": "compressed-tensors",
        "config_groups": groups,
        "quantization_status": "compressed",
        "global_compression_ratio": None,
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
        "sparsity_config": {},
        "transform_config": {},
        "version": "0.20.0",
        **more,
    }


def rounded(matrix: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    return torch.from_numpy(matrix).to(dtype).to(torch.float32).numpy()


def check(directory: Path, model: models.Model, dtype: torch.dtype) -> Any:
    """As `models.check_reads`, after the rounding that the package makes."""
    checkpoint = open_checkpoint(directory)
    spec = checkpoint.spec
    for name, source in models.FAMILIES[spec.architecture].tensors(spec).items():
        expected = model.matrices.get(source.name.removesuffix(".weight"))
        if expected is None:
            continue
        if source.fused_rows:
            expected = expected[source.first_row :][: source.shape[0]]
        matrix = checkpoint.matrix(name)
        assert (rounded(matrix.to_float32(), dtype) == expected).all(), name
        assert (checkpoint.tensor(name).data == matrix.to_float32()).all(), name
        assert checkpoint.format(name) == matrix.format, name  # type: ignore[union-attr]
    return checkpoint


INT4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32}
PACKED = [
    Scheme("pack-quantized", dtype, num_bits=bits, type="int", symmetric=symmetric, **shape)
    for (bits, dtype), symmetric, shape in itertools.product(
        zip(range(2, 9), ("bf16", "f16", "f32", "bf16", "f16", "f32", "bf16"), strict=True),
        (True, False),
        ({"strategy": "channel"}, {"strategy": "group", "group_size": 16}),
    )
]
OTHERS = [
    Scheme("int-quantized", num_bits=8, type="int", symmetric=True, strategy="channel"),
    Scheme("int-quantized", "f32", num_bits=8, type="int", symmetric=False, strategy="channel"),
    Scheme("int-quantized", "f16", **INT4, symmetric=False),
    Scheme("int-quantized", num_bits=8, type="int", symmetric=True, strategy="tensor"),
    Scheme("int-quantized", num_bits=8, type="int", symmetric=False, strategy="tensor"),
    Scheme("naive-quantized", num_bits=6, type="int", symmetric=True, strategy="channel"),
    Scheme("naive-quantized", num_bits=8, type="float", symmetric=True, strategy="channel"),
    Scheme("float-quantized", num_bits=8, type="float", symmetric=True, strategy="tensor"),
    Scheme("float-quantized", "f32", num_bits=8, type="float", symmetric=True, strategy="channel"),
    Scheme(
        "float-quantized",
        num_bits=8,
        type="float",
        symmetric=True,
        strategy="block",
        block_structure=[40, 48],
    ),
    Scheme(
        "float-quantized",
        "f32",
        num_bits=8,
        type="float",
        symmetric=True,
        strategy="group",
        group_size=32,
    ),
    Scheme("pack-quantized", num_bits=4, type="int", symmetric=True, strategy="tensor"),
]
ODD = {**models.CONFIG, "hidden_size": 36, "intermediate_size": 50, "head_dim": 10}


def name_of(scheme: Scheme) -> str:
    return f"{scheme.format}-{scheme.dtype}-{scheme.weights}".replace(" ", "")


@pytest.mark.parametrize("scheme", PACKED + OTHERS, ids=name_of)
def test_formats(scheme: Scheme, tmp_path: Path) -> None:
    model = models.build(scheme.config(), scheme.write)
    check(model.write(tmp_path, shards=2), model, scheme.dtype)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("symmetric", [True, False])
def test_sizes_that_fill_no_word(bits: int, symmetric: bool, tmp_path: Path) -> None:
    scheme = Scheme(
        "pack-quantized", "f32", num_bits=bits, type="int", symmetric=symmetric, strategy="channel"
    )
    model = models.build(scheme.config(), scheme.write, ODD)
    check(model.write(tmp_path), model, torch.float32)


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_columns_out_of_order(bits: int, symmetric: bool, tmp_path: Path) -> None:
    scheme = Scheme(
        "pack-quantized",
        num_bits=bits,
        symmetric=symmetric,
        strategy="group",
        group_size=16,
        actorder="group",
    )
    model = models.build(scheme.config(), scheme.write)
    checkpoint = check(model.write(tmp_path), model, scheme.dtype)
    assert checkpoint.format("layers.0.q").order


@pytest.mark.parametrize("scheme", [*PACKED[4:12], *OTHERS[:4], *OTHERS[7:11]], ids=name_of)
def test_fused_rows(scheme: Scheme, tmp_path: Path) -> None:
    model = models.build(scheme.config(), scheme.write, models.PHI3)
    check(model.write(tmp_path, shards=2), model, scheme.dtype)


def test_blocks_that_are_cut_by_a_range_of_rows(tmp_path: Path) -> None:
    """Blocks of 40 rows under query, key and value of 64, 32 and 32: a range that does not start
    with a block has smaller ones, and one within a single block has that."""
    scheme = OTHERS[9]
    assert scheme.weights["block_structure"] == [40, 48]
    model = models.build(scheme.config(), scheme.write, models.PHI3)
    checkpoint = check(model.write(tmp_path), model, scheme.dtype)
    assert checkpoint.format("layers.0.q") == Fp8Format(40, 48)
    assert checkpoint.format("layers.0.k") == Fp8Format(8, 48)  # rows 64 to 95
    assert checkpoint.format("layers.0.v") == Fp8Format(8, 48)  # rows 96 to 127
    assert checkpoint.format("layers.0.gate") == Fp8Format(40, 48)


def test_the_formats_that_are_reported(tmp_path: Path) -> None:
    scheme = PACKED[9]
    model = models.build(scheme.config(), scheme.write)
    checkpoint = check(model.write(tmp_path), model, scheme.dtype)
    bits = scheme.weights["num_bits"]
    assert checkpoint.format("layers.0.down") == GroupFormat(bits, 16, "f32", "none")
    assert checkpoint.format("lm_head") == "f32"


GROUPS = {
    "packed": Scheme(
        "pack-quantized", num_bits=3, strategy="group", group_size=32, symmetric=False
    ),
    "eight": Scheme("int-quantized", num_bits=8, strategy="channel", symmetric=True),
    "float": Scheme("float-quantized", num_bits=8, type="float", strategy="tensor", symmetric=True),
}


def mixed(name: str) -> Scheme:
    if name.endswith("o_proj"):
        return GROUPS["float"]
    return GROUPS["packed"] if ".mlp." in name else GROUPS["eight"]


@pytest.mark.parametrize("top", ["mixed-precision", "pack-quantized"])
def test_several_groups(top: str, tmp_path: Path) -> None:
    """By class, by pattern and by name, the closest first; `ignore` before all."""
    groups = {
        "group_0": GROUPS["packed"].group("re:.*mlp.*", "re:.*self_attn"),
        "group_1": GROUPS["eight"].group("Linear", "re:.*attn"),  # sorted before .*self_attn
        "group_2": GROUPS["float"].group("model.layers.0.self_attn.o_proj"),
    }
    ignored = ["re:.*lm_head", "model.layers.0.self_attn.v_proj", "re:.*(gate|x)_proj$"]
    config = config_of(groups, format=top, ignore=ignored)

    def chosen(name: str) -> bool:
        return "_proj" in name and not name.endswith(("v_proj", "gate_proj"))

    model = models.build(config, lambda *args: mixed(args[0]).write(*args), chosen=chosen)
    checkpoint = check(model.write(tmp_path), model, torch.bfloat16)
    assert checkpoint.format("layers.0.v") == checkpoint.format("layers.0.gate") == "f32"
    assert checkpoint.format("layers.0.q") == GroupFormat(8, 64, "bf16", "none")
    assert checkpoint.format("layers.0.up") == GroupFormat(3, 32, "bf16", "zero")


def test_embeddings_and_head(tmp_path: Path) -> None:
    scheme = GROUPS["packed"]
    groups = {"group_0": scheme.group("Linear", "Embedding")}
    config = config_of(groups, format=scheme.format, ignore=None)
    model = models.build(config, scheme.write, chosen=lambda name: "norm" not in name)
    check(model.write(tmp_path), model, scheme.dtype)


@pytest.mark.parametrize(
    ("preset", "scheme"),
    [
        ("W8A8", GROUPS["eight"]),
        ("FP8", GROUPS["float"]),
        ("W3A16", Scheme("pack-quantized", num_bits=3, group_size=128, strategy="group")),
    ],
)
def test_presets(preset: str, scheme: Scheme, tmp_path: Path) -> None:
    from compressed_tensors.quantization import preset_name_to_scheme

    theirs = preset_name_to_scheme(preset, ["Linear"]).weights
    assert theirs is not None
    assert theirs.num_bits == scheme.weights["num_bits"]
    assert theirs.strategy == scheme.weights["strategy"]
    config = config_of({preset: ["Linear"]}, format=scheme.format)
    sizes = {"hidden_size": 128, "intermediate_size": 128, "head_dim": 32}
    model = models.build(config, scheme.write, {**models.CONFIG, **sizes})
    check(model.write(tmp_path), model, scheme.dtype)


def test_dense_weights_stay_as_they_are(tmp_path: Path) -> None:
    groups = {"group_0": GROUPS["eight"].group()}
    groups["group_0"]["format"] = None
    model = models.build(config_of(groups, format="dense"), GROUPS["eight"].write, chosen=bool)
    plain = models.build(config_of(groups, format="dense"), GROUPS["eight"].write, chosen=never)
    assert set(plain.tensors) < set(model.tensors)
    models.check_reads(plain.write(tmp_path), plain)


def never(name: str) -> bool:
    return False


def test_schemes_of_activations_change_no_weight(tmp_path: Path) -> None:
    """Dynamic ones have no tensors; static ones leave theirs beside the weights."""
    scheme = GROUPS["eight"]
    inputs = {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True}
    groups = {"group_0": scheme.group(input_activations=inputs)}
    model = models.build(config_of(groups, format=scheme.format), scheme.write)
    check(model.write(tmp_path), model, scheme.dtype)
    inputs.update(strategy="tensor", dynamic=False, symmetric=False, observer="minmax")
    model = models.build(config_of(groups, format=scheme.format), scheme.write)
    for module in model.matrices:
        model.tensors[f"{module}.input_scale"] = np.ones(1, np.float32)
        model.tensors[f"{module}.input_zero_point"] = np.ones(1, np.int8)
    check(model.write(tmp_path), model, scheme.dtype)


@pytest.mark.parametrize("bits", [3, 5, 6, 7])
@pytest.mark.parametrize("symmetric", [True, False])
def test_the_padded_words_of_old_files(bits: int, symmetric: bool, tmp_path: Path) -> None:
    """32 // bits elements a word, for weights along rows and for zero points down them."""
    scheme = Scheme(
        "pack-quantized", num_bits=bits, symmetric=symmetric, strategy="group", group_size=32
    )
    model = models.build(scheme.config(), scheme.write)
    for module, matrix in model.matrices.items():
        words = model.tensors[f"{module}.weight_packed"]
        values = bit_packing.unpack_stream(words, bits, matrix.shape[1])
        model.tensors[f"{module}.weight_packed"] = padded(values, bits)
        if not symmetric:
            name = f"{module}.weight_zero_point"
            zeros = bit_packing.unpack_zeros_down(model.tensors[name], bits, len(matrix))
            model.tensors[name] = np.ascontiguousarray(padded(zeros.T, bits).T)
    check(model.write(tmp_path), model, scheme.dtype)


def padded(values: np.ndarray, bits: int) -> np.ndarray:
    each = 32 // bits
    rows = []
    for row in values.tolist():
        pieces = [row[i : i + each] for i in range(0, len(row), each)]
        rows.append([sum(value << bits * i for i, value in enumerate(piece)) for piece in pieces])
    return models.int32(rows)


@pytest.mark.filterwarnings("ignore")  # of transformers, about its own future
@pytest.mark.parametrize(
    "scheme", [PACKED[4], PACKED[8], PACKED[16], *OTHERS[:1], *OTHERS[7:10]], ids=name_of
)
def test_transformers_reads_the_same_model(scheme: Scheme, tmp_path: Path) -> None:
    """Zero points are left out: transformers expects packed ones in another shape."""
    import transformers

    more = {"model_type": "llama", "hidden_act": "silu", "head_dim": 16, "dtype": "bfloat16"}
    model = models.build(scheme.config(), scheme.write, {**models.CONFIG, **more})
    directory = model.write(tmp_path, shards=2)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        directory,
        dtype=torch.float32,
        quantization_config=transformers.CompressedTensorsConfig(run_compressed=False),
    ).state_dict()
    checkpoint = open_checkpoint(directory)
    table = models.FAMILIES["LlamaForCausalLM"].tensors(checkpoint.spec)
    for name, source in table.items():
        ours = torch.from_numpy(checkpoint.tensor(name).to_float32())
        expected = theirs[source.name].to(torch.float32)
        if source.name.removesuffix(".weight") in model.matrices:
            ours = ours.to(scheme.dtype).to(torch.float32)
        assert torch.equal(ours, expected), name
