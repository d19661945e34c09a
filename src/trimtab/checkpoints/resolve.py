"""From what a user types as MODEL to a place on this machine."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

from trimtab.errors import CheckpointError
from trimtab.models.config_reader import show

DOWNLOAD_PATTERNS = ["*.json", "*.safetensors", "*.jinja"]
# Subfolders hold other formats; `consolidated` files are the same weights a second time.
SKIP_PATTERNS = ["*/*", "consolidated*.safetensors"]

_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def resolve_model(name: str) -> Path:
    """`builtin`, a local directory or file, or a Hugging Face repo id (downloaded if need be).

    Raises CheckpointError with one line saying what was looked for and what is wrong.
    """
    if name == "builtin":
        return _builtin()
    if not name:
        raise CheckpointError("the model name is empty")
    path = Path(name).expanduser()
    try:
        if path.exists():
            return path
    except (OSError, ValueError):
        raise CheckpointError(f"{show(name)}: not a possible file name") from None
    if not _REPO_ID.fullmatch(name) or path.suffix in (".gguf", ".safetensors", ".json"):
        hint = "" if "/" in name else " (known names: builtin, or a Hugging Face id OWNER/NAME)"
        raise CheckpointError(f"{show(name)}: no such file or directory{hint}")
    return _download(name)


def _builtin() -> Path:
    """The model that ships with the package, if this installation has it."""
    try:
        module = importlib.import_module("trimtab.builtin")
        path = Path(module.target_path())
    except (ImportError, AttributeError):
        raise CheckpointError("builtin: this installation has no built-in model") from None
    if not (path / "config.json").exists():
        raise CheckpointError(f"builtin: {path} holds no model: the installation is incomplete")
    return path


def _download(repo_id: str) -> Path:
    # The hub's client raises errors of several libraries, and their kinds have changed between
    # versions; whatever it is, the user needs one line.
    try:
        from huggingface_hub import snapshot_download

        return Path(
            snapshot_download(
                repo_id, allow_patterns=DOWNLOAD_PATTERNS, ignore_patterns=SKIP_PATTERNS
            )
        )
    except Exception as error:
        raise CheckpointError(
            f"{show(repo_id)}: no such local directory, and not available from Hugging Face: "
            f"{_reason(error)}"
        ) from None


_REASONS = {
    "GatedRepoError": "access is restricted; accept its terms there and log in (`hf auth login`)",
    "RepositoryNotFoundError": "no such repository, or a private one",
    "HFValidationError": "not a valid repository id",
    "OfflineModeIsEnabled": "offline mode (HF_HUB_OFFLINE) and not downloaded before",
    "LocalEntryNotFoundError": "cannot be reached, and not downloaded before",
    "ImportError": "the package huggingface_hub is not installed",
    "ModuleNotFoundError": "the package huggingface_hub is not installed",
}


def _reason(error: BaseException) -> str:
    for kind in type(error).__mro__:
        if kind.__name__ in _REASONS:
            return _REASONS[kind.__name__]
    lines = str(error).split("\n")
    return f"{type(error).__name__}: {lines[0][:200]}"
