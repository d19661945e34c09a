"""The tests of tests/executors/gpu, which run on the card where there is one, if pytest is here.

Without the project's own pytest settings, which name plugins that a bare machine does not have.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from gpu.context import Context

ROOT = Path(__file__).resolve().parents[2]
TESTS = "tests/executors/gpu"


def run(context: Context) -> None:
    if importlib.util.find_spec("pytest") is None:
        context.skip("pytest is not installed; the section kernels does not need it")
        return
    files = sorted((ROOT / TESTS).glob("test_*.py"))
    context.plan([file.stem for file in files])
    for file in files:
        if context.has_time(file.stem, 3.0):
            run_file(context, file)


def run_file(context: Context, file: Path) -> None:
    with tempfile.TemporaryDirectory() as directory:
        report = Path(directory) / "report.xml"
        settings = Path(directory) / "pytest.ini"
        settings.write_text("[pytest]\n")
        command = [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"),
            *("-c", str(settings), "--rootdir", str(ROOT), f"--junit-xml={report}", str(file)),
        ]
        try:
            done = subprocess.run(
                command,
                cwd=ROOT,
                capture_output=True,
                text=True,
                timeout=max(1.0, context.left()),
                check=False,
            )
        except subprocess.TimeoutExpired:
            context.leave_out(file.stem, "no time: it was ended unfinished")
            return
        if not report.is_file():
            words = (done.stderr or done.stdout).strip().splitlines()
            context.result(file.stem, passed=False, error=(words or ["no report"])[-1][:300])
            return
        suite = ElementTree.parse(report).getroot().find("testsuite")
        assert suite is not None
        counts = {
            name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")
        }
        broken = [
            case.get("name", "?")
            for case in suite.iter("testcase")
            if case.find("failure") is not None or case.find("error") is not None
        ]
        context.result(file.stem, passed=done.returncode in (0, 5), **counts, broken=broken[:10])
