"""OpenVINO on the IR itself, for logits: its pipeline gives none. No paged attention, same formats.

Format fp32 is the IR of 16-bit weights with all arithmetic in float32.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openvino
from worker import Options


class OpenVinoModel:
    def __init__(self, model: Path, options: Options) -> None:
        properties = {"INFERENCE_NUM_THREADS": options.threads, "KV_CACHE_PRECISION": "u8"}
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
        settings = ("INFERENCE_PRECISION_HINT", "KV_CACHE_PRECISION")
        settings += ("DYNAMIC_QUANTIZATION_GROUP_SIZE",)
        read_back = ", ".join(f"{name} {compiled.get_property(name)}" for name in settings)
        self.about = f"openvino {openvino.__version__.partition('-')[0]}; {read_back}"

    def logits(self, window: list[int]) -> np.ndarray:
        length = len(window)
        inputs = {
            "input_ids": np.array([window], np.int64),
            "attention_mask": np.ones((1, length), np.int64),
            "position_ids": np.arange(length, dtype=np.int64)[None],
            "beam_idx": np.zeros(1, np.int32),
        }
        self._request.reset_state()
        outputs = self._request.infer({k: v for k, v in inputs.items() if k in self._names})
        return np.array(outputs["logits"][0])


def load(model: Path, options: Options) -> OpenVinoModel:
    return OpenVinoModel(model, options)
