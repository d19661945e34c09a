"""Tests on another build of the native core.

`TRIMTAB_TEST_NATIVE=path/to/_native*.so pytest tests/native` runs them on that file: in
`tools/sanitize.py`, and for the avx512 path, which is so tested on any x86 machine, emulated:

    cmake -S . -B build/emulate -G Ninja -DTRIMTAB_EMULATE_AVX512=ON
    cmake --build build/emulate
    TRIMTAB_TEST_NATIVE=$(echo build/emulate/_native*.so) pytest tests/native

Only the tests' own process runs it; those that a test starts run the installed one.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

# Triton looks at it once, when whoever comes first imports it: without a card its kernels are
# interpreted.
if not Path("/dev/nvidiactl").exists():
    os.environ["TRITON_INTERPRET"] = "1"

# No test, and no process that a test starts, may touch the user's own cache.
os.environ["TRIMTAB_PACKED_CACHE"] = "off"
os.environ["TRIMTAB_OPTIMIZER_CACHE"] = "off"

# Several processes run tests at once: threads of torch and numpy that spin for one another on cores
# that are taken cost more than they bring.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

_path = os.environ.get("TRIMTAB_TEST_NATIVE")
if _path:
    import trimtab

    _spec = importlib.util.spec_from_file_location("trimtab._native", _path)
    assert _spec is not None
    assert _spec.loader is not None
    _module = importlib.util.module_from_spec(_spec)
    sys.modules["trimtab._native"] = _module
    trimtab._native = _module  # type: ignore[attr-defined]
    _spec.loader.exec_module(_module)
    os.environ.pop("LD_PRELOAD", None)  # a sanitizer's, which is for that file alone
