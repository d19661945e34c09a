"""Cores and memory, as an invented /proc and /sys say."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from trimtab.executors.resources import available_cpus, available_memory

MEMINFO = "MemTotal: 16000 kB\nMemFree: 1000 kB\nMemAvailable: 8000 kB\n"


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.fixture
def many_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)))


@pytest.mark.usefixtures("many_cores")
def test_no_cgroups(tmp_path: Path) -> None:
    assert available_cpus(tmp_path) == 12


@pytest.mark.usefixtures("many_cores")
@pytest.mark.parametrize(
    ("quota", "expected"),
    [
        ("max 100000", 12),
        ("200000 100000", 2),
        ("150000 100000", 2),
        ("50000 100000", 1),
        ("400000", 4),
        ("9999999 100000", 12),
        ("", 12),
        ("nonsense", 12),
        ("100 0", 12),
        ("-1 100000", 12),
    ],
)
def test_quota_of_version_2(tmp_path: Path, quota: str, expected: int) -> None:
    write(tmp_path, {"sys/fs/cgroup/cpu.max": quota, "proc/self/cgroup": "0::/\n"})
    assert available_cpus(tmp_path) == expected


@pytest.mark.usefixtures("many_cores")
def test_the_tightest_cgroup_above_counts(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/pod/box\n",
        "sys/fs/cgroup/cpu.max": "max 100000",
        "sys/fs/cgroup/pod/cpu.max": "300000 100000",
        "sys/fs/cgroup/pod/box/cpu.max": "800000 100000",
        "sys/fs/cgroup/other/cpu.max": "100000 100000",
    }
    assert available_cpus(write(tmp_path, files)) == 3


@pytest.mark.usefixtures("many_cores")
@pytest.mark.parametrize(("quota", "expected"), [("-1", 12), ("250000", 3), ("x", 12)])
def test_quota_of_version_1(tmp_path: Path, quota: str, expected: int) -> None:
    files = {
        # The path of the host, which does not exist below the container's own mount.
        "proc/self/cgroup": "4:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n",
        "sys/fs/cgroup/cpu/cpu.cfs_quota_us": quota,
        "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
    }
    assert available_cpus(write(tmp_path, files)) == expected


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="Linux only")
def test_affinity_limits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3})
    write(tmp_path, {"sys/fs/cgroup/cpu.max": "800000 100000"})
    assert available_cpus(tmp_path) == 1


def test_memory(tmp_path: Path) -> None:
    assert available_memory(tmp_path) is None
    write(tmp_path, {"proc/meminfo": MEMINFO})
    assert available_memory(tmp_path) == 8000 << 10


def test_memory_limit_of_version_2(tmp_path: Path) -> None:
    files = {
        "proc/meminfo": MEMINFO,
        "proc/self/cgroup": "0::/box\n",
        "sys/fs/cgroup/box/memory.max": "5000000\n",
        "sys/fs/cgroup/box/memory.current": "4500000\n",
        "sys/fs/cgroup/box/memory.stat": "anon 1\ninactive_file 300000\nslab 5\n",
    }
    assert available_memory(write(tmp_path, files)) == 800_000
    write(tmp_path, {"sys/fs/cgroup/box/memory.max": "max\n"})
    assert available_memory(tmp_path) == 8000 << 10


def test_memory_limit_of_version_1(tmp_path: Path) -> None:
    files = {
        "proc/meminfo": MEMINFO,
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "6000000\n",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": "7000000\n",
        "sys/fs/cgroup/memory/memory.stat": "total_inactive_file 500000\n",
    }
    assert available_memory(write(tmp_path, files)) == 0
    write(tmp_path, {"sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n"})
    assert available_memory(tmp_path) == 8000 << 10


def test_this_machine() -> None:
    assert 1 <= available_cpus() <= (os.cpu_count() or 1)
