"""Every environment variable that trimtab reads, in one typed place."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from trimtab.errors import ConfigError

Isa = Literal["avx512", "avx2", "neon", "portable"]
ISAS: tuple[Isa, ...] = ("avx512", "avx2", "neon", "portable")


def forced_isa() -> Isa | None:
    """`TRIMTAB_ISA`: the kernel path to use instead of the best one that this CPU has.

    Raises ConfigError for a name that does not exist. Whether this CPU can run the path is
    checked by the native core, which refuses loudly.
    """
    value = os.environ.get("TRIMTAB_ISA", "")
    if not value:
        return None
    if value not in ISAS:
        raise ConfigError(f"TRIMTAB_ISA={value!r}: must be one of {', '.join(ISAS)}")
    return value


def debug_checks() -> bool:
    """`TRIMTAB_DEBUG=1`: run every invariant check after each engine step."""
    return os.environ.get("TRIMTAB_DEBUG", "") not in ("", "0")


def api_key() -> str | None:
    """`TRIMTAB_API_KEY`: the server's key, for those who do not want it in a process list."""
    return os.environ.get("TRIMTAB_API_KEY") or None


def admin_key() -> str | None:
    """`TRIMTAB_ADMIN_KEY`: the key of /v1/admin."""
    return os.environ.get("TRIMTAB_ADMIN_KEY") or None


def packed_cache_directory() -> Path | None:
    """`TRIMTAB_PACKED_CACHE`: where packed models are kept, or `off`; see docs/models.md.

    By default `trimtab/packed` in `XDG_CACHE_HOME`, or in `~/.cache`. None: keep none. Raises
    ConfigError for a path that is not absolute.
    """
    return _cache_directory("TRIMTAB_PACKED_CACHE", "packed")


def optimizer_cache_directory() -> Path | None:
    """`TRIMTAB_OPTIMIZER_CACHE`: where quantized checkpoints and what was measured of them are
    kept, or `off`; see docs/plan.md. By default `trimtab/optimizer` beside the packed models."""
    return _cache_directory("TRIMTAB_OPTIMIZER_CACHE", "optimizer")


def gpu_cache_directory() -> Path | None:
    """`TRIMTAB_GPU_CACHE`: where compiled kernels and what steps took of a GPU's memory are kept
    for the next start, or `off`; see docs/gpu.md. By default `trimtab/gpu` beside the others."""
    return _cache_directory("TRIMTAB_GPU_CACHE", "gpu")


def _cache_directory(variable: str, name: str) -> Path | None:
    value = os.environ.get(variable, "")
    if value == "off":
        return None
    if value:
        directory = Path(value).expanduser()
        if not directory.is_absolute():
            raise ConfigError(f"{variable}={value!r}: must be an absolute path, or off")
        return directory
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not base.is_absolute():  # the specification: such a value is to be ignored
        home = os.environ.get("HOME", "")
        if not Path(home).is_absolute():
            return None
        base = Path(home) / ".cache"
    return base / "trimtab" / name


DEFAULT_PACKED_CACHE_GIB = 32.0
DEFAULT_OPTIMIZER_CACHE_GIB = 64.0


def packed_cache_bytes() -> int:
    """`TRIMTAB_PACKED_CACHE_GIB`: the most that packed models may take on disk together."""
    return _gib("TRIMTAB_PACKED_CACHE_GIB", DEFAULT_PACKED_CACHE_GIB)


def optimizer_cache_bytes() -> int:
    """`TRIMTAB_OPTIMIZER_CACHE_GIB`: the most that the optimizer's cache may take on disk."""
    return _gib("TRIMTAB_OPTIMIZER_CACHE_GIB", DEFAULT_OPTIMIZER_CACHE_GIB)


def _gib(variable: str, default: float) -> int:
    value = os.environ.get(variable, "") or str(default)
    try:
        gib = float(value)
    except ValueError:
        gib = -1.0
    if not 0 <= gib < 1 << 30:
        raise ConfigError(f"{variable}={value!r}: must be a number of GiB, 0 or more")
    return int(gib * (1 << 30))


def prepare_process() -> None:
    """For processes that are trimtab's own, before numpy is imported: numpy's BLAS, which serving
    never calls, is not to start a thread for each core. Child processes inherit it."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
