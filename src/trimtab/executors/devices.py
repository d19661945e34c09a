"""What a device is, asked before anything long begins. torch is imported only if it is asked."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from trimtab.config import Device
from trimtab.errors import ConfigError


@dataclass(frozen=True)
class DeviceFacts:
    """What numbers of a device depend on most; empty where there is nothing to say."""

    device: Device = "cpu"
    gpu: str = ""  # its name
    driver: str = ""
    memory_bytes: int = 0  # of the GPU
    torch: str = ""  # version
    revision: int = 0  # of the torch executor's numerics

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def numerics(self) -> str:
        """Other ones, other bits; of device=cpu nothing, which has NUMERICS_REVISION."""
        parts = (self.device, self.gpu, self.torch, str(self.revision))
        return " ".join(parts) if self.device != "cpu" else ""


THE_CPU = DeviceFacts()


def check_device(device: Device) -> None:
    """ConfigError, one line that says what to do, if nothing can run on `device` here."""
    if device == "cpu":
        return
    try:
        import torch  # noqa: F401
    except ImportError:
        raise ConfigError(f"device={device}: needs torch; pip install 'trimtab[gpu]'") from None
    from trimtab.executors.gpu.devices import open_device

    open_device(device)


def device_facts(device: Device) -> DeviceFacts:
    """Of the device that an executor would open here. Raises as `check_device`. On a GPU this opens
    a context, which takes some of its memory until the process ends."""
    check_device(device)
    if device == "cpu":
        return THE_CPU
    from trimtab.executors.gpu.facts import torch_device_facts

    return torch_device_facts(device)
