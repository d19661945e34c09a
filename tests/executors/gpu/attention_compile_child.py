"""Compiles what the functions of the package would launch, for sm_90, on a machine without a card.

Launches are caught and compiled instead of run. One JSON line each on stdout: the kernel, its
shared memory, what ptxas says of registers and spilled bytes, and how its products are laid out.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)
os.environ["TRITON_CACHE_DIR"] = tempfile.mkdtemp(prefix="triton-")

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction, mangle_type

TARGET = GPUTarget("cuda", 90, 32)
CASE: list[int] = []
BIN = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


def compile_launch(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
    options = {name: kwargs.pop(name) for name in ("num_warps", "num_stages") if name in kwargs}
    given = self.signature.bind(*args, **kwargs).arguments
    constants = {p.name: given[p.name] for p in self.params if p.is_constexpr}
    signature = {
        name: "constexpr" if name in constants else mangle_type(value)
        for name, value in given.items()
    }
    aligned = {
        (index,): [["tt.divisibility", 16]]
        for index, name in enumerate(given)
        if signature[name].startswith("*")
    }
    names = {(self.arg_names.index(name),): value for name, value in constants.items()}
    source = ASTSource(self, signature, names, aligned)
    compiled = triton.compile(source, target=TARGET, options=options)
    report = {"case": CASE[-1], "kernel": self.fn.__name__, "shared": compiled.metadata.shared}
    print(
        json.dumps({**report, **options, **resources(compiled.asm["cubin"]), **products(compiled)})
    )


def resources(cubin: bytes) -> dict[str, int]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(BIN / "cuobjdump"), "--dump-resource-usage", file.name]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = dict(re.findall(r"\b(REG|STACK):(\d+)", said))
    return {"registers": int(found["REG"]), "stack": int(found["STACK"])}


def products(compiled: Any) -> dict[str, Any]:
    """The layouts of the results of products, and how often sm_90's own instruction stands there;
    mma.sync would be the one of older cards."""
    text = compiled.asm["ptx"]
    layouts = re.findall(r"#ttg.nvidia_mma<\{(.*?)\}>", compiled.asm["ttgir"])
    shapes = sorted(re.sub(r"warpsPerCTA = \[\d+, (\d+)\]", r"\1 warps wide", x) for x in layouts)
    return {
        "layouts": shapes,
        "wgmma": text.count("wgmma.mma_async"),
        "mma.sync": text.count("mma.sync"),
        "in flight": text.count("cp.async.cg"),
    }


def main(cases: list[list[Any]]) -> None:
    from trimtab.executors.gpu.attention import attention
    from trimtab.executors.gpu.cache import KVCache
    from trimtab.executors.gpu.rope_write import qk_norm_rope_write

    JITFunction.run = compile_launch
    for index, (dim, format, softcap, window) in enumerate(cases):
        CASE.append(index)
        cache = KVCache(4, 16, 8, dim, format, "cpu")
        starts = torch.tensor([0, 1, 200], dtype=torch.int32)
        positions, tables = torch.zeros(200, dtype=torch.int32), torch.zeros(2, 9).int()
        q = torch.zeros(200, 32, dim, dtype=torch.bfloat16)
        for max_rows in (1, 20, 199):
            attention(q, cache, starts, positions, tables, 0.1, window, softcap, max_rows, 8192)
        cos = torch.zeros(9, dim // 2)
        qkv = torch.zeros(200, 48 * dim, dtype=torch.bfloat16)
        norm = torch.ones(dim)
        slots = positions.long()
        qk_norm_rope_write(qkv, norm, norm, 1e-6, 0.0, cos, cos, positions, slots, cache)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
