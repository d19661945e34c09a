"""ONNX Runtime on the graph that onnxruntime-genai's builder wrote, for the logits of every row."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
from worker import Options


class OnnxRuntimeModel:
    def __init__(self, model: Path, options: Options) -> None:
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = options.threads
        self._session = onnxruntime.InferenceSession(model / "model.onnx", settings)
        config = json.loads((model / "genai_config.json").read_text())
        self._head_dim = int(config["model"]["decoder"]["head_size"])
        self.about = f"onnxruntime {onnxruntime.__version__}; KV f32"

    def logits(self, window: list[int]) -> np.ndarray:
        inputs = {
            "input_ids": np.array([window], np.int64),
            "attention_mask": np.ones((1, len(window)), np.int64),
        }
        for entry in self._session.get_inputs():
            if entry.name.startswith("past_key_values"):
                shape = (1, entry.shape[1], 0, self._head_dim)
                inputs[entry.name] = np.zeros(shape, np.float32)
        (values,) = self._session.run(["logits"], inputs)
        return values[0]


def load(model: Path, options: Options) -> OnnxRuntimeModel:
    return OnnxRuntimeModel(model, options)
