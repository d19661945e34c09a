"""What GPU this is."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from trimtab.config import Device
from trimtab.executors.devices import DeviceFacts
from trimtab.executors.gpu.devices import open_device
from trimtab.executors.gpu.executor import NUMERICS_REVISION

DRIVER = Path("/proc/driver/nvidia/version")
_VERSION = re.compile(r"\s(\d{3,}\.[\d.]+)\s")


def torch_device_facts(name: Device) -> DeviceFacts:
    """Raises ConfigError as `open_device`."""
    device = open_device(name)
    if device.type != "cuda":
        return DeviceFacts(name, torch=str(torch.__version__), revision=NUMERICS_REVISION)
    properties = torch.cuda.get_device_properties(device)
    return DeviceFacts(
        name,
        gpu=str(properties.name),
        driver=driver_version(DRIVER),
        memory_bytes=int(properties.total_memory),
        torch=str(torch.__version__),
        revision=NUMERICS_REVISION,
    )


def driver_version(path: Path) -> str:
    """From the first line of the kernel module's own file; empty where there is none."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return ""
    found = _VERSION.search(lines[0] + " ") if lines else None
    return found.group(1) if found else ""
