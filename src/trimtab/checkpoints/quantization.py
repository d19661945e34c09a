"""Which quantization a Hugging Face directory has. A new format is a new file and a line here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from trimtab.checkpoints.awq import AwqQuantization
from trimtab.checkpoints.compressed_tensors import CompressedTensorsQuantization
from trimtab.checkpoints.fp8 import Fp8Quantization
from trimtab.checkpoints.gptq import GptqQuantization
from trimtab.checkpoints.json_file import read_json_object
from trimtab.checkpoints.stored_layers import Quantization
from trimtab.models.config_reader import ConfigReader, show

METHODS: dict[str, Callable[[ConfigReader], Quantization]] = {
    "gptq": GptqQuantization,
    "awq": AwqQuantization,
    "compressed-tensors": CompressedTensorsQuantization,
    "fp8": Fp8Quantization,
}
GPTQ_FILE = "quantize_config.json"  # AutoGPTQ's, where config.json says nothing


def quantization_config(config: Mapping[str, Any], directory: Path) -> ConfigReader | None:
    """What config.json, or the file beside it, says of quantization; None: nothing. Raises
    CheckpointError."""
    if config.get("quantization_config") is not None:
        return ConfigReader(config).section("quantization_config")
    if (directory / GPTQ_FILE).exists():
        values = {"quant_method": "gptq", **read_json_object(directory / GPTQ_FILE)}
        return ConfigReader(values, GPTQ_FILE)
    return None


def read_quantization(config: ConfigReader) -> Quantization:
    """Raises CheckpointError, one line naming the method or the key that is not supported."""
    method = config.text("quant_method", "")
    if method not in METHODS:
        raise config.error(
            f"quant_method = {show(method)}: quantized checkpoints of this kind are not supported "
            f"({', '.join(METHODS)} are)"
        )
    return METHODS[method](config)
