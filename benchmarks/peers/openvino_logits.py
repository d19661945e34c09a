"""OpenVINO on the IR itself, for logits: its pipeline gives none. The pipeline's formats.

A token at a time, so that attention reads K and V in the format of the cache. Format fp32 has all
arithmetic in float32 too.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openvino
from worker import Options

SETTINGS = (
    "INFERENCE_PRECISION_HINT",
    "KV_CACHE_PRECISION",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE",
)


def value(compiled: openvino.CompiledModel, name: str) -> str:
    """Of a setting, as it came out."""
    found = compiled.get_property(name)
    return found.get_type_name() if isinstance(found, openvino.Type) else str(found)


class OpenVinoModel:
    def __init__(self, model: Path, options: Options) -> None:
        properties = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": options.threads,
            "KV_CACHE_PRECISION": "u8",
        }
        if options.format == "fp32":
            properties |= {
                "INFERENCE_PRECISION_HINT": "f32",
                "KV_CACHE_PRECISION": "f32",
                "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
            }
        core = openvino.Core()
        compiled = core.compile_model(model / "openvino_model.xml", "CPU", properties)
        self._request = compiled.create_infer_request()
        self._names = {name for port in compiled.inputs for name in port.names}
        read_back = ", ".join(f"{name} {value(compiled, name)}" for name in SETTINGS)
        self.about = f"openvino {openvino.__version__.partition('-')[0]}; {read_back}"

    def logits(self, window: list[int]) -> np.ndarray:
        self._request.reset_state()
        rows = []
        for position, token in enumerate(window):
            inputs = {
                "input_ids": np.array([[token]], np.int64),
                "attention_mask": np.ones((1, position + 1), np.int64),
                "position_ids": np.array([[position]], np.int64),
                "beam_idx": np.zeros(1, np.int32),
            }
            known = {name: value for name, value in inputs.items() if name in self._names}
            rows.append(np.array(self._request.infer(known)["logits"][0, 0]))
        return np.stack(rows)


def load(model: Path, options: Options) -> OpenVinoModel:
    return OpenVinoModel(model, options)
