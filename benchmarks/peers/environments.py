"""Environments of their own for the peers, each with the versions that were measured.

An environment is made once and kept; a failed step removes it, so that the next run starts anew.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

TORCH = "torch==2.13.0"


@dataclass(frozen=True)
class Environment:
    """What pip installs, one call after another, and what is in its environment meanwhile."""

    steps: tuple[tuple[str, ...], ...]
    variables: tuple[tuple[str, str], ...] = ()


ENVIRONMENTS = {
    "llama_cpp": Environment(
        steps=(
            ("numpy", "gguf"),
            ("--no-binary", "llama-cpp-python", "llama-cpp-python==0.3.36"),
        ),
        variables=(("CMAKE_ARGS", "-DGGML_NATIVE=ON"),),
    ),
    "openvino": Environment(
        steps=(
            (TORCH,),
            ("openvino-genai==2026.4.1.0", "optimum-intel==2.2.0", "nncf==3.4.0"),
        )
    ),
    "onnxruntime": Environment(
        steps=(
            (TORCH,),
            ("onnxruntime==1.31.1", "onnxruntime-genai==0.18.0", "onnx", "onnx_ir", "transformers"),
        )
    ),
    "transformers": Environment(steps=((TORCH,), ("transformers==5.23.0",))),
}


def interpreter(root: Path, name: str) -> Path:
    """The Python that runs a peer: trimtab's own for trimtab."""
    if name == "trimtab":
        return Path(sys.executable)
    return root / name / "bin" / "python"


def install(root: Path, name: str) -> Path:
    """Make the environment if it is not there. Raises CalledProcessError with pip's own words."""
    python = interpreter(root, name)
    done = python.parent.parent / ".installed"
    if name == "trimtab" or done.exists():
        return python
    environment = ENVIRONMENTS[name]
    directory = root / name
    shutil.rmtree(directory, ignore_errors=True)
    try:
        subprocess.run([sys.executable, "-m", "venv", directory], check=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        variables = {**os.environ, **dict(environment.variables)}
        for step in environment.steps:
            subprocess.run([*pip, *step], check=True, env=variables)
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise
    done.touch()
    return python
