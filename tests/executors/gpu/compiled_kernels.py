"""Compiles Triton kernels for sm_90, with or without a card, and tells what became of them.

Run as a program, without TRITON_INTERPRET: prints a JSON object, name to Compiled's fields. Kernels
of other files are added to `JOBS` below.
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from trimtab.executors.gpu import (
    gated,
    gemm_dense,
    gemm_packed,
    gemm_plan,
    gemm_scaled,
    norm,
    quantize,
    sampling_race,
    sampling_scores,
    sampling_select,
)
from trimtab.executors.gpu.gemm_plan import Splits, Tile

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


@dataclass
class Compiled:
    registers: int
    stack_bytes: int  # 0: nothing is spilled
    shared_bytes: int
    matrix_instructions: list[str]  # their shapes, as m64n16k16
    converted_weights: int  # conversions of a weight tile's layout, through shared memory


def compile_kernel(
    kernel: Any,
    types: Mapping[str, str],
    constants: Mapping[str, Any],
    num_warps: int = 4,
    num_stages: int = 3,
    **options: Any,
) -> Compiled:
    """`types`: of arguments, as "*bf16" or "i32"; pointers and i32 named in capitals are taken for
    multiples of 16, as those of real models are."""
    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else types[name] for name in names}
    aligned = [n for n in names if signature[n].startswith("*") or (n in types and n.isupper())]
    source = ASTSource(
        kernel,
        signature,
        {(names.index(name),): value for name, value in constants.items()},
        {(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    options = {"num_warps": num_warps, "num_stages": num_stages, **options}
    found = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(found.asm["cubin"])
        file.flush()
        command = [str(TOOLS / "cuobjdump"), "-res-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    sizes = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert sizes is not None, usage
    shapes = re.findall(r"mma_async\.sync\.aligned\.(m\d+n\d+k\d+)\.", found.asm["ptx"])
    return Compiled(
        registers=int(sizes[1]),
        stack_bytes=int(sizes[2]),
        shared_bytes=found.metadata.shared,
        matrix_instructions=sorted(set(shapes)),
        converted_weights=len(re.findall(r"convert_layout %w_tile", found.asm["ttgir"])),
    )


INTEGERS = dict.fromkeys(("num_rows", "N", "K", "SPLIT_COLUMNS", "BLOCK_COLUMNS"), "i32")
POINTERS = dict.fromkeys(("scales", "x_scales", "w_scales", "partials"), "*fp32")
COMMON = {**INTEGERS, **POINTERS, "bias": "*fp32", "y": "*bf16", "counters": "*i32", "x": "*bf16"}


def dense(kernel: Any, tile: Tile, splits: int, weight: str = "*bf16") -> Compiled:
    constants = {
        "SPLITS": splits,
        "BLOCK_N": tile.block_n,
        "BLOCK_M": tile.block_m,
        "BLOCK_K": tile.block_k,
        "EVEN_K": True,
        "HAS_SCALES": weight != "*bf16",
        "HAS_BIAS": True,
        "PRECISION": "ieee",
    }
    types = {**COMMON, "w": weight}
    return compile_kernel(kernel, types, constants, tile.num_warps, tile.num_stages)


def packed(num_rows: int, form: str, group: int, bits: int = 4) -> Compiled:
    tile = gemm_plan.packed_tile(num_rows, 512 // bits)
    constants = {
        "SPLITS": 4,
        "BLOCK_N": tile.block_n,
        "BLOCK_M": tile.block_m,
        "BITS": bits,
        "GROUP": group,
        "FORM": gemm_packed.FORMS[form],
        "EVEN_K": True,
        "HAS_BIAS": False,
        "PRECISION": "ieee",
    }
    types = {**COMMON, "words": "*i32", "ones": "*i32", "CHUNKS": "i32", "ROWS": "i32"}
    held = "*i32" if form in ("f16", "bf16") else "*fp32"
    types.update(scales=held, others=held)
    return compile_kernel(
        gemm_packed.packed_kernel, types, constants, tile.num_warps, tile.num_stages
    )


def scaled(kernel: Any, tile: Tile, splits: int, *, int8: bool, blocks: bool = False) -> Compiled:
    constants = {
        "SPLITS": splits,
        "BLOCK_N": tile.block_n,
        "BLOCK_M": tile.block_m,
        "BLOCK_K": tile.block_k,
        "EVEN_K": True,
        "INT8": int8,
        "BLOCKS": blocks,
        "HAS_BIAS": False,
    }
    held = "*i8" if int8 else "*fp8e4nv"
    types = {**COMMON, "x": held, "w": held, "partials": "*i32" if int8 else "*fp32"}
    return compile_kernel(kernel, types, constants, tile.num_warps, tile.num_stages)


def norms(kind: int, out: str) -> Compiled:
    block, warps = quantize.row_block(4096)
    types = {
        **dict.fromkeys(("x", "residual", "total"), "*bf16"),
        **dict.fromkeys(("weight", "scales"), "*fp32"),
        "y": out,
        "H": "i32",
        "eps": "fp32",
        "offset": "fp32",
    }
    return compile_kernel(
        norm.norm_kernel, types, {"BLOCK": block, "ADD": True, "KIND": kind}, warps
    )


def gates(kind: int, out: str) -> Compiled:
    block, warps = quantize.row_block(14336)
    types = {"gate_up": "*bf16", "y": out, "scales": "*fp32", "WIDTH": "i32"}
    return compile_kernel(
        gated.gated_kernel, types, {"BLOCK": block, "GELU": True, "KIND": kind}, warps
    )


LISTS = ("maxima", "places", "bad", "model_maxima", "model_places", "model_bad")
RULES = ("temperatures", "top_ks", "top_ps", "min_ps", "seeds", "positions")
PARTS = ("scores", "tokens", "logits", "masses", "lanes")
SAMPLING = {
    **dict(zip(LISTS, ("*fp32", "*i32", "*i32") * 2, strict=True)),
    **dict(zip(RULES, ("*fp32", "*i32", "*fp32", "*fp32", "*i64", "*i32"), strict=True)),
    **dict(zip(PARTS, ("*fp64", "*i32", "*fp32", "*fp64", "*fp64"), strict=True)),
    **dict.fromkeys(("x", "cut_logits", "logprobs", "top_logprobs", "target_logprobs"), "*fp32"),
    **dict.fromkeys(("cut_tokens", "histograms", "wanted", "counts", "found"), "*i32"),
    **dict.fromkeys(("chosen", "num_logprobs", "targets", "top_ids"), "*i32"),
    **dict.fromkeys(("V", "ROWS", "CHUNKS", "WIDTH"), "i32"),
}


def sampler(kernel: Any, logits: str, **constants: Any) -> Compiled:
    """`logits`: the type of that argument, which some kernels write."""
    known = {"CHUNK": 4096, "LANES": 256, "PADDED": 64}
    found = {name: value for name, value in known.items() if name in kernel.arg_names}
    types = {**SAMPLING, "logits": logits}
    return compile_kernel(kernel, types, {**found, **constants}, 8, enable_fp_fusion=False)


def two() -> Tile:
    return gemm_plan.large_tile(Splits(2, 128))


JOBS: dict[str, Callable[[], Compiled]] = {
    "dense 1": lambda: dense(gemm_dense.split_kernel, gemm_plan.small_tile(1), 2),
    "dense 64": lambda: dense(gemm_dense.split_kernel, gemm_plan.small_tile(64), 2),
    "dense 128": lambda: dense(gemm_dense.split_kernel, gemm_plan.small_tile(128), 1),
    "dense whole": lambda: dense(gemm_dense.whole_kernel, gemm_plan.large_tile(Splits(1, 128)), 1),
    "dense whole, splits": lambda: dense(gemm_dense.whole_kernel, two(), 2),
    "dense float8": lambda: dense(gemm_dense.split_kernel, gemm_plan.small_tile(1), 2, "*fp8e4nv"),
    "packed 1": lambda: packed(1, "f16", 128),
    "packed 128": lambda: packed(128, "f16", 128),
    "packed offsets": lambda: packed(1, "offset", 32),
    "packed bytes": lambda: packed(16, "bf16", 32, 8),
    "int8 1": lambda: scaled(gemm_scaled.split_kernel, gemm_plan.small_tile_bytes(1), 2, int8=True),
    "int8 whole": lambda: scaled(
        gemm_scaled.whole_kernel, gemm_plan.large_tile_bytes(1), 1, int8=True
    ),
    "fp8 128": lambda: scaled(
        gemm_scaled.split_kernel, gemm_plan.small_tile_bytes(128), 2, int8=False
    ),
    "fp8 whole, blocks": lambda: scaled(
        gemm_scaled.whole_kernel, gemm_plan.large_tile_bytes(2), 2, int8=False, blocks=True
    ),
    "scan": lambda: sampler(sampling_select.scan_kernel, "*fp32"),
    "count": lambda: sampler(sampling_select.count_kernel, "*fp32", DIGITS=3),
    "cut": lambda: sampler(sampling_select.cut_kernel, "*fp32"),
    "mass": lambda: sampler(sampling_select.mass_kernel, "*fp32"),
    "race": lambda: sampler(sampling_race.race_kernel, "*fp32", PASS=1, FILTERS=True),
    "finish": lambda: sampler(sampling_race.finish_kernel, "*fp32", PASSES=3, SAMPLES=True),
    "gather": lambda: sampler(sampling_scores.gather_kernel, "*fp32"),
    "score": lambda: sampler(sampling_scores.score_kernel, "*fp32", TOP=32, HAS_TARGETS=True),
    "norm to int8": lambda: norms(1, "*i8"),
    "gate to float8": lambda: gates(2, "*fp8e4nv"),
}

if __name__ == "__main__":
    print(json.dumps({name: asdict(job()) for name, job in JOBS.items()}))
