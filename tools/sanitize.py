"""Build the native core with sanitizers, and run the kernel, thread and executor tests on it.

    python tools/sanitize.py [address] [thread] [-- PYTEST_ARGUMENTS]      both by default

`address` is the address and the undefined-behaviour sanitizer, `thread` the one for data races;
each has a build folder of its own, and the usual module stays. Exits with 1 if a test fails
or a sanitizer finds something, with 2 if it cannot begin.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Without the tests that compare with torch: it has no place in a process that is watched so.
EXECUTOR_TESTS = (
    "tests/executors/test_cpu_executor.py",
    "tests/executors/test_cpu_schedules.py",
    "tests/executors/test_packed_cache.py",
    "tests/executors/test_packed_company.py",
    "tests/executors/test_packed_damage.py",
    "tests/executors/test_packed_obstacles.py",
    "tests/executors/test_step_times.py",
    "tests/executors/test_stored_formats.py",
)


@dataclass(frozen=True)
class Sanitizer:
    flags: str  # of -fsanitize
    runtimes: tuple[str, ...]  # have to be loaded before Python
    tests: tuple[str, ...]
    options: dict[str, str]  # variable: its settings


SANITIZERS = {
    "address": Sanitizer(
        "address,undefined",
        ("libasan.so", "libubsan.so"),
        ("tests/native", *EXECUTOR_TESTS),
        # The interpreter keeps memory until it ends: what is left then says nothing.
        {"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"},
    ),
    "thread": Sanitizer(
        "thread",
        ("libtsan.so",),
        ("tests/native/test_attention.py", *EXECUTOR_TESTS),
        {"TSAN_OPTIONS": "halt_on_error=0"},
    ),
}


class CannotBeginError(Exception):
    """One line for whoever asked."""


def compiler() -> str:
    name = os.environ.get("CXX") or next(filter(shutil.which, ("c++", "g++", "clang++")), None)
    if name is None:
        raise CannotBeginError("no C++ compiler")
    return name


def runtime(name: str) -> str:
    """Path of a sanitizer's shared runtime. Raises CannotBeginError if the compiler has none."""
    command = [*compiler().split(), f"-print-file-name={name}"]
    found = Path(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip())
    if not found.is_absolute() or not found.exists():
        raise CannotBeginError(f"{compiler()} has no {name}; use GCC with its sanitizer libraries")
    return str(found.resolve())


def build(sanitizer: Sanitizer, folder: Path) -> Path:
    """The extension module. Raises CannotBeginError, or CalledProcessError if something fails."""
    if not shutil.which("cmake") or not shutil.which("ninja"):
        raise CannotBeginError("cmake and ninja have to be on the path; `make sanitize` sees to it")
    configure = ["cmake", "-S", ROOT, "-B", folder, "-G", "Ninja"]
    configure += [f"-DTRIMTAB_SANITIZE={sanitizer.flags}", f"-DPython_EXECUTABLE={sys.executable}"]
    subprocess.run(configure, check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["cmake", "--build", folder], check=True)
    return next(folder.glob("_native*.so"))


def check(name: str, arguments: list[str]) -> bool:
    """Whether all is well. Raises CannotBeginError, or CalledProcessError if the build fails."""
    sanitizer = SANITIZERS[name]
    preloaded = [runtime(library) for library in sanitizer.runtimes]
    folder = ROOT / "build" / f"sanitize-{name}"
    print(f"{sanitizer.flags}: building", flush=True)
    module = build(sanitizer, folder)
    for old in folder.glob("report.*"):
        old.unlink()
    environment = os.environ | {
        # Into files: pytest would keep what a process says as it dies.
        variable: f"{options}:log_path={folder / 'report'}"
        for variable, options in sanitizer.options.items()
    }
    environment |= {"LD_PRELOAD": " ".join(preloaded), "TRIMTAB_TEST_NATIVE": str(module)}
    command = [sys.executable, "-m", "pytest", *sanitizer.tests, *arguments]
    status = subprocess.run(command, cwd=ROOT, env=environment).returncode
    reports = sorted(folder.glob("report.*"))
    for report in reports:
        print(report.read_text(errors="replace"))
    findings = f"{len(reports)} reports in {folder}" if reports else "nothing found"
    print(f"{sanitizer.flags}: tests ended with status {status}, {findings}", flush=True)
    return status == 0 and not reports


def main(arguments: list[str]) -> int:
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    names = arguments[:cut] or list(SANITIZERS)
    try:
        unknown = set(names) - set(SANITIZERS)
        if unknown:
            raise CannotBeginError(f"no such sanitizer: {', '.join(sorted(unknown))}")
        failed = [name for name in names if not check(name, arguments[cut + 1 :])]
    except CannotBeginError as error:
        print(f"sanitize: {error}", file=sys.stderr)
        return 2
    except subprocess.CalledProcessError as error:
        print(f"sanitize: {error.cmd[0]} failed with status {error.returncode}", file=sys.stderr)
        return 1
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
