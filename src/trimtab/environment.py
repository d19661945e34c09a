"""Every environment variable that trimtab reads, in one typed place."""

from __future__ import annotations

import os
from typing import Literal

from trimtab.errors import ConfigError

Isa = Literal["avx512", "avx2", "portable"]
ISAS: tuple[Isa, ...] = ("avx512", "avx2", "portable")


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
