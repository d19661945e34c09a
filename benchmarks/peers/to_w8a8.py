"""A bf16 checkpoint as compressed-tensors W8A8 for vLLM: `python to_w8a8.py MODEL OUT`.

Runs in vLLM's environment. Matrices of the layers become int8, one symmetric scale an output
channel; activations are quantized per token as they come; the output head stays bf16.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

WEIGHTS = {"num_bits": 8, "type": "int", "symmetric": True}
QUANTIZATION = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "quantization_status": "compressed",
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {**WEIGHTS, "strategy": "channel", "dynamic": False},
            "input_activations": {**WEIGHTS, "strategy": "token", "dynamic": True},
        }
    },
    "ignore": ["lm_head"],
}


def quantized(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    if not name.endswith("_proj.weight"):
        return {name: tensor}
    wide = tensor.float()
    scale = (wide.abs().amax(1, keepdim=True).clamp(min=1e-12) / 127).to(torch.bfloat16)
    values = (wide / scale.float()).round().clamp(-127, 127).to(torch.int8)
    return {name: values, name + "_scale": scale}


def main() -> None:
    model, out = Path(sys.argv[1]), Path(sys.argv[2])
    out.mkdir(parents=True)
    sources = sorted(model.glob("*.safetensors"))
    weight_map = {}
    for source in sources:
        parts = [quantized(name, tensor) for name, tensor in load_file(source).items()]
        tensors = {name: tensor for part in parts for name, tensor in part.items()}
        save_file(tensors, out / source.name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, source.name)
    if len(sources) > 1:
        index = {"metadata": {}, "weight_map": weight_map}
        (out / "model.safetensors.index.json").write_text(json.dumps(index))
    for path in model.glob("*.json"):
        if path.name not in ("config.json", "model.safetensors.index.json"):
            shutil.copyfile(path, out / path.name)
    config = json.loads((model / "config.json").read_text())
    config["quantization_config"] = QUANTIZATION
    (out / "config.json").write_text(json.dumps(config, indent=2))


if __name__ == "__main__":
    main()
