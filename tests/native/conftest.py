"""Kernel tests on another build of the native core.

`TRIMTAB_TEST_NATIVE=path/to/_native*.so pytest tests/native` runs them on that file. So the avx512
path is tested on any x86 machine, emulated:

    cmake -S . -B build/emulate -G Ninja -DTRIMTAB_EMULATE_AVX512=ON
    cmake --build build/emulate
    TRIMTAB_TEST_NATIVE=$(echo build/emulate/_native*.so) pytest tests/native
"""

from __future__ import annotations

import importlib.util
import os
import sys

import trimtab

_path = os.environ.get("TRIMTAB_TEST_NATIVE")
if _path:
    _spec = importlib.util.spec_from_file_location("trimtab._native", _path)
    assert _spec is not None
    assert _spec.loader is not None
    _module = importlib.util.module_from_spec(_spec)
    sys.modules["trimtab._native"] = _module
    trimtab._native = _module  # type: ignore[attr-defined]
    _spec.loader.exec_module(_module)
