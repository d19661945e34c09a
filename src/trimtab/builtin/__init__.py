"""The model that ships with the package: a small chat and code model, and a draft for it.

``target/`` and ``draft/`` are directories in Hugging Face layout with one and the same tokenizer.
``tools/builtin_model`` in the repository trained them; see NOTICE for the text they come from.
"""

from __future__ import annotations

from pathlib import Path

_HERE = Path(__file__).resolve().parent


def target_path() -> Path:
    """The directory of the target model."""
    return _HERE / "target"


def draft_path() -> Path:
    """The directory of the draft model, several times smaller than the target."""
    return _HERE / "draft"


def heads_path() -> Path:
    """The directory of the draft head on the target's hidden states."""
    return _HERE / "heads"


def heldout_path() -> Path:
    """UTF-8 Python sources that neither model nor tokenizer has seen, for perplexity."""
    return _HERE / "heldout.txt"


def tasks_path() -> Path:
    """JSON lines ``{"prompt", "answer", "kind"}``: a user message and its one right reply."""
    return _HERE / "tasks.jsonl"


def calibration_path() -> Path:
    """JSON lines ``{"text"}`` or ``{"messages"}`` to calibrate quantization on: of the kinds that
    the models were trained on, nothing of the held-out text or the tasks."""
    return _HERE / "calibration.jsonl"
