"""Which kernel path runs, and what is said when a forced one cannot."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from trimtab import _native
from trimtab.environment import ISAS


def test_the_best_available_path_is_the_default() -> None:
    available = _native.available_isas()
    assert available == [isa for isa in ISAS if isa in available]
    assert available[-1] == "portable"
    assert _native.select_isa() == available[0]


@pytest.mark.parametrize("isa", ISAS)
def test_a_path_is_available_exactly_when_nothing_is_missing(isa: str) -> None:
    missing = _native.missing_features(isa)
    assert (isa in _native.available_isas()) == (missing == [])
    if missing:
        with pytest.raises(ValueError, match=f"'{isa}' cannot run on this machine") as error:
            _native.select_isa(isa)
        assert all(feature in str(error.value) for feature in missing)
        assert "\n" not in str(error.value)
    else:
        assert _native.select_isa(isa) == isa


def test_an_unknown_path_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="unknown kernel path 'sse2'"):
        _native.select_isa("sse2")
    with pytest.raises(ValueError, match="unknown kernel path 'sse2'"):
        _native.missing_features("sse2")


@pytest.mark.skipif(
    platform.machine() != "x86_64" or not Path("/proc/cpuinfo").exists(), reason="x86 Linux"
)
def test_missing_features_agree_with_the_kernel() -> None:
    flags = set(Path("/proc/cpuinfo").read_text().split())
    if {"avx2", "fma", "f16c"} <= flags:
        assert "avx2" in _native.available_isas()
    missing = _native.missing_features("avx2")
    assert ("AVX2" in missing) == ("avx2" not in flags)
    assert ("FMA" in missing) == ("fma" not in flags)
    for feature in _native.missing_features("avx512"):
        flag = {"AVX512VNNI": "avx512_vnni", "AVX512BF16": "avx512_bf16"}.get(feature)
        assert (flag or feature.lower()) not in flags


def arm_features() -> set[str] | None:
    """What the kernel says; None where it says nothing (not Arm, not Linux, or an emulator)."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return None
    words = next((line.split() for line in lines if line.startswith("Features")), None)
    return set(words) if words else None


@pytest.mark.skipif(arm_features() is None, reason="Arm Linux")
def test_missing_arm_features_agree_with_the_kernel() -> None:
    flags = arm_features()
    assert flags is not None
    missing = [name for name in ("ATOMICS", "ASIMDDP") if name.lower() not in flags]
    assert _native.missing_features("neon") == missing
