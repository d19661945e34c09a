"""The type of each matrix of a GGUF file: the mixtures that llama.cpp's quantizer makes.

Source: `llama_tensor_get_type` and `tensor_type_fallback` of llama.cpp (src/llama-quant.cpp).
"""

from __future__ import annotations

from dataclasses import dataclass

from trimtab.errors import CheckpointError

# What a file is called -> general.file_type, the type of most matrices.
FILE_TYPES = {
    "F32": (0, "F32"),
    "F16": (1, "F16"),
    "BF16": (32, "BF16"),
    "Q4_0": (2, "Q4_0"),
    "Q4_1": (3, "Q4_1"),
    "Q5_0": (8, "Q5_0"),
    "Q5_1": (9, "Q5_1"),
    "Q8_0": (7, "Q8_0"),
    "Q4_K_S": (14, "Q4_K"),
    "Q4_K_M": (15, "Q4_K"),
    "Q5_K_S": (16, "Q5_K"),
    "Q5_K_M": (17, "Q5_K"),
    "Q6_K": (18, "Q6_K"),
}
ALIASES = {"Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}

_SMALLER_BLOCKS = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
_PLAIN = ("F32", "F16", "BF16")


def file_type(name: str) -> str:
    """The name as FILE_TYPES has it. Raises CheckpointError, one line."""
    upper = name.upper()
    known = ALIASES.get(upper, upper)
    if known not in FILE_TYPES:
        raise CheckpointError(f"unknown GGUF type {name!r} (known: {', '.join(FILE_TYPES)})")
    return known


@dataclass(frozen=True)
class Mixture:
    """`name` is a key of FILE_TYPES."""

    name: str
    num_layers: int
    tied: bool
    has_importance: bool = False

    def type_of(self, tensor: str, columns: int) -> str:
        """The type of a matrix, by its name in the file."""
        base = FILE_TYPES[self.name][1]
        if base in _PLAIN:
            return base
        chosen = self._choice(tensor, base)
        return _fitting(chosen, columns)

    def _choice(self, tensor: str, base: str) -> str:
        if tensor == "output.weight" or (self.tied and tensor == "token_embd.weight"):
            return "Q8_0" if base == "Q8_0" else "Q6_K"
        part = tensor.removesuffix(".weight").rpartition(".")[2]
        layer = int(tensor.split(".")[1]) if tensor.startswith("blk.") else 0
        eighth = self.num_layers // 8
        if self.name in ("Q4_K_M", "Q5_K_M"):
            if part in ("attn_v", "ffn_down") and self._has_more_bits(layer):
                return "Q6_K"
            if part == "attn_qkv":
                return "Q5_K" if base == "Q4_K" else "Q6_K"
        if self.name == "Q4_K_S":
            if part == "attn_v" and layer < 4:
                return "Q5_K"
            if part == "ffn_down" and layer < eighth:
                return "Q5_K"
        if part == "ffn_down" and layer < eighth and self.has_importance:
            return {"Q4_0": "Q4_1", "Q5_0": "Q5_1"}.get(base, base)
        return base

    def _has_more_bits(self, layer: int) -> bool:
        """The first and the last eighth of the layers, and every third between."""
        eighth = self.num_layers // 8
        return layer < eighth or layer >= 7 * self.num_layers // 8 or (layer - eighth) % 3 == 2


def _fitting(chosen: str, columns: int) -> str:
    """A type with smaller blocks where the columns are no whole number of blocks."""
    if columns % 256:
        chosen = _SMALLER_BLOCKS.get(chosen, chosen)
    return "F16" if columns % 32 else chosen
