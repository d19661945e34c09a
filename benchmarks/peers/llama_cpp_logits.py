"""llama.cpp for logits: the engine of the speed comparison, and what its file really holds."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import gguf
from llama_cpp_engine import LlamaCppEngine
from worker import Options


def load(model: Path, options: Options) -> LlamaCppEngine:
    engine = LlamaCppEngine(model, options)
    tensors = [tensor for tensor in gguf.GGUFReader(model).tensors if len(tensor.shape) == 2]
    counts = Counter(tensor.tensor_type.name for tensor in tensors)
    held = ", ".join(f"{count} {name}" for name, count in counts.most_common())
    (head,) = (t.tensor_type.name for t in tensors if t.name in ("token_embd.weight",))
    version = engine.about.partition(";")[0]
    engine.about = f"{version}; {held}, of these the embedding and head {head}"
    return engine
