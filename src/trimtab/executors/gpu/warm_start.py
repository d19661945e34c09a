"""What one start leaves for the next, on the same device with the same versions.

    directory/KEY/versions.json     what KEY is the hash of
    directory/KEY/kernels/          Triton's cache: compiled kernels and their launchers
    directory/KEY/sealed.json       size and checksum of each file of it, as of the last start
    directory/KEY/steps/STEP.json   what the largest step of a model took of the device's memory

Nothing of it is needed: what cannot be read is made again, what cannot be written is not kept.
Captured graphs cannot be kept: they hold addresses.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import hashlib
import json
import logging
import os
import platform
import shutil
import tempfile
import time
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from trimtab.environment import gpu_cache_directory

logger = logging.getLogger(__name__)

KEPT_KEYS = 4  # of other devices and versions, those used last
KEPT_SECONDS = 7 * 86400.0  # no younger one is removed: somebody may have it in use
LARGEST_STEP_BYTES = 1 << 50


@dataclass(frozen=True, slots=True)
class StepMemory:
    activations: int  # bytes of torch's allocator, at the peak
    beside: int  # bytes that stay in use outside of it: kernels' code, the libraries' buffers


class WarmStart:
    """Of one device and one set of versions. Raises nothing for a directory that is damaged,
    read-only or full."""

    def __init__(self, directory: Path | None, versions: Mapping[str, str]) -> None:
        """`directory`: of all keys; None: nothing is kept."""
        self._place: Path | None = None
        if directory is None:
            return
        place = directory / digest(versions)
        try:
            for part in ("kernels", "steps"):
                (place / part).mkdir(mode=0o700, parents=True, exist_ok=True)
            _write(place / "versions.json", dict(versions))
            _write(place / "kernels" / "tmp.writable", {})
            (place / "kernels" / "tmp.writable").unlink()
        except OSError as error:
            logger.warning("%s: nothing is kept for the next start: %s", place, error.strerror)
            return
        self._place = place
        _remove_old(directory, place)

    @property
    def is_kept(self) -> bool:
        return self._place is not None

    def kernel_directory(self) -> Path:
        """For Triton, its damaged entries removed; one that lasts as long as the process, if none
        is kept: Triton stops at a directory that it cannot write. Where kernels are missing, steps
        are forgotten: running one compiles what the first prompt would wait for."""
        if self._place is None:
            made = tempfile.mkdtemp(prefix="trimtab-kernels-")
            atexit.register(shutil.rmtree, made, ignore_errors=True)
            return Path(made)
        kernels = self._place / "kernels"
        sealed = _read(self._place / "sealed.json")
        if not isinstance(sealed, dict):
            sealed = {}
        entries = list(_entries(kernels))
        damaged = [entry for entry in entries if not _is_whole(entry, sealed)]
        for entry in damaged:
            logger.warning("%s: damaged, compiled again", entry)
            shutil.rmtree(entry, ignore_errors=True)
        lost = {name.split("/")[0] for name in sealed} - {entry.name for entry in entries}
        if damaged or lost or not entries:
            for path in (self._place / "steps").glob("*.json"):
                with contextlib.suppress(OSError):
                    path.unlink()
        return kernels

    def seal(self) -> None:
        """What was compiled so far is checked at the next start."""
        if self._place is None:
            return
        with contextlib.suppress(OSError):
            sums = {
                f"{entry.name}/{file.name}": _checksum(file)
                for entry in _entries(self._place / "kernels")
                for file in _files(entry)
            }
            _write(self._place / "sealed.json", sums)

    def recall_step(self, model: Mapping[str, str]) -> StepMemory | None:
        """What `remember_step` was told of the same model, settings and code."""
        if self._place is None:
            return None
        found = _read(self._step_file(model))
        if not isinstance(found, dict) or found.get("of") != dict(model):
            return None
        sizes = found.get("bytes")
        if found.get("check") != digest([sizes]) or not isinstance(sizes, dict):
            return None
        try:
            memory = StepMemory(**sizes)
        except TypeError:
            return None
        whole = all(isinstance(x, int) and 0 <= x < LARGEST_STEP_BYTES for x in sizes.values())
        return memory if whole else None

    def remember_step(self, model: Mapping[str, str], memory: StepMemory) -> None:
        if self._place is None:
            return
        sizes = asdict(memory)
        with contextlib.suppress(OSError):
            _write(
                self._step_file(model),
                {"of": dict(model), "bytes": sizes, "check": digest([sizes])},
            )

    def forget_step(self, model: Mapping[str, str]) -> None:
        if self._place is not None:
            with contextlib.suppress(OSError):
                self._step_file(model).unlink()

    def _step_file(self, model: Mapping[str, str]) -> Path:
        assert self._place is not None
        return self._place / "steps" / f"{digest(model)}.json"


def open_warm_start(device: torch.device) -> WarmStart:
    """Of `TRIMTAB_GPU_CACHE`, for CUDA; elsewhere nothing is kept, as nothing is compiled. Has
    Triton keep its kernels there, unless the user chose a place for it (`TRITON_CACHE_DIR`)."""
    if device.type != "cuda":
        return WarmStart(None, {})
    warm = WarmStart(gpu_cache_directory(), _versions(device.index or 0))
    use_for_kernels(warm)
    return warm


def use_for_kernels(warm: WarmStart) -> None:
    if "TRITON_CACHE_DIR" not in os.environ:  # the user's, or set by an executor before
        os.environ["TRITON_CACHE_DIR"] = str(warm.kernel_directory())


@functools.cache
def code_digest() -> str:
    """Of the source of this package: what a step takes follows from it."""
    found = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        found.update(path.name.encode() + b"\0" + path.read_bytes())
    return found.hexdigest()


def digest(value: Any) -> str:
    if isinstance(value, Mapping):
        value = dict(value)
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]


@functools.cache
def _versions(index: int) -> dict[str, str]:
    import triton

    properties = torch.cuda.get_device_properties(index)
    try:
        driver = Path("/proc/driver/nvidia/version").read_text().splitlines()[0]
    except (OSError, IndexError):
        driver = "unknown"
    return {
        "device": f"{properties.name} sm_{properties.major}{properties.minor}",
        "memory": str(properties.total_memory),
        "driver": driver,
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda),
        "triton": triton.__version__,
        "python": f"{platform.python_version()} {platform.machine()}",
    }


def _entries(kernels: Path) -> Iterator[Path]:
    """A directory a kernel."""
    with contextlib.suppress(OSError):
        yield from sorted(path for path in kernels.iterdir() if path.is_dir())


def _files(entry: Path) -> list[Path]:
    """Those that are complete: Triton renames them from a directory `tmp.` beside them."""
    return sorted(path for path in entry.iterdir() if path.is_file())


def _checksum(file: Path) -> list[int]:
    data = file.read_bytes()
    return [len(data), zlib.crc32(data)]


def _is_whole(entry: Path, sealed: Mapping[str, Any]) -> bool:
    """As sealed. Of what came later, compiled by somebody who still runs or was killed: no file is
    empty, and what is JSON can be read."""
    try:
        present = {f"{entry.name}/{file.name}": file for file in _files(entry)}
        for name, file in present.items():
            size, checksum = _checksum(file)
            if name in sealed:
                if sealed[name] != [size, checksum]:
                    return False
            elif not size or (file.suffix == ".json" and _read(file) is None):
                return False
    except OSError:
        return False
    wanted = [name for name in sealed if name.startswith(f"{entry.name}/")]
    return all(name in present for name in wanted)


def _remove_old(directory: Path, own: Path) -> None:
    now = time.time()
    with contextlib.suppress(OSError):
        os.utime(own)
        others = sorted(
            (path for path in directory.iterdir() if path.is_dir() and path != own),
            key=lambda path: path.stat().st_mtime,
            reverse=True,
        )
        for path in others[KEPT_KEYS:]:
            if now - path.stat().st_mtime > KEPT_SECONDS:
                shutil.rmtree(path, ignore_errors=True)


def _read(path: Path) -> Any:
    """None for what is not there or damaged."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None


def _write(path: Path, value: Any) -> None:
    """Whole or not at all. Raises OSError."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix="tmp.")
    try:
        with os.fdopen(descriptor, "w") as file:
            json.dump(value, file)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
