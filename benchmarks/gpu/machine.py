"""What the results were measured on."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = (
    *("torch", "triton", "numpy", "transformers", "tokenizers", "safetensors", "flash-attn"),
    *("flashinfer-python", "msgspec", "pydantic", "pytest"),
)
QUERY = "driver_version,clocks.max.sm,clocks.max.mem,power.limit,mig.mode.current"


def describe_machine(device: str) -> dict[str, Any]:
    import torch

    found: dict[str, Any] = {
        "device": device,
        "python": platform.python_version(),
        "system": platform.platform(),
        "packages": {name: version_of(name) for name in PACKAGES},
        "native core": has_native_core(),
        "command": " ".join(sys.argv),
        "revision": revision(),
    }
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found["gpu"] = {
            "name": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "memory_bytes": properties.total_memory,
            "multiprocessors": properties.multi_processor_count,
            "cuda": torch.version.cuda,
            **nvidia_smi(),
        }
    return found


def version_of(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def has_native_core() -> bool:
    try:
        from trimtab import _native  # noqa: F401
    except ImportError:
        return False
    return True


def nvidia_smi() -> dict[str, str]:
    """Nothing where there is none: it is asked, never told."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return {}
    command = [program, f"--query-gpu={QUERY}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    values = [value.strip() for value in done.stdout.split("\n")[0].split(",")]
    names = QUERY.split(",")
    return dict(zip(names, values, strict=True)) if len(values) == len(names) else {}


def revision() -> str | None:
    """The commit of the source tree, with + if files differ from it; None without git."""
    try:
        done = subprocess.run(
            ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+"],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
