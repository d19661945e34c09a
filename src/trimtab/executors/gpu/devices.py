"""Where the torch executor runs, and with which operations."""

from __future__ import annotations

import torch

from trimtab.errors import ConfigError
from trimtab.executors.gpu.ops import Ops
from trimtab.executors.gpu.reference import ReferenceOps


def open_device(name: str) -> torch.device:
    """Of `ExecutorConfig.device`: cuda or torch-cpu. ConfigError if there is no such device."""
    if name == "torch-cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError(
            "device=cuda: torch finds no GPU here; use device=cpu, or look at nvidia-smi and at "
            "torch.version.cuda"
        )
    return torch.device("cuda", torch.cuda.current_device())


def choose_ops(device: torch.device) -> Ops:
    """Kernels on CUDA, plain torch elsewhere. ConfigError if there is no Triton to compile them."""
    if device.type != "cuda":
        return ReferenceOps()
    try:
        from trimtab.executors.gpu.triton_ops import TritonOps
    except ImportError as error:
        raise ConfigError(f"device=cuda: needs Triton, which torch brings ({error})") from None
    return TritonOps()


def multiplies_fp8(device: torch.device) -> bool:
    """Whether products of float8 are to be had; plain torch computes them anywhere."""
    if device.type != "cuda":
        return True
    return bool(torch.cuda.get_device_capability(device) >= (8, 9))


def describe_device(device: torch.device) -> str:
    """For people, and for the identity: other hardware, other bits."""
    if device.type != "cuda":
        return "torch cpu"
    major, minor = torch.cuda.get_device_capability(device)
    return f"cuda {torch.cuda.get_device_name(device)} (sm_{major}{minor})"
