"""`trimtab bench http://...`, as a user types it."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from trimtab.bench.mock_schedule import MockConfig
from trimtab.bench.mock_server import running_mock
from trimtab.cli.main import main

QUICK = ["--no-self-check", "--warm-up", "2", "--scale", "0.02", "--duration", "2"]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running_mock(MockConfig(step_ms=5, max_batch=64)) as found:
        yield found


def test_a_load_at_a_rate_in_full(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, url: str
) -> None:
    path = tmp_path / "requests.csv"
    arguments = ["bench", url, "--workload", "chat", "--rate", "20", "--repeats", "2", *QUICK]
    status = main([*arguments, "--slo", "ttft:p95<20s", "--csv", str(path), "--json"])
    data = json.loads(capsys.readouterr().out)
    assert status == (1 if data["void"] else 0)  # a client that had to wait may void its run
    assert data["model"] == "mock"
    assert data["workload"]["rate"] == 20
    assert len(data["runs"]) == 2
    assert data["pooled"]["errors"] == {}
    assert data["pooled"]["slo"]["met"]
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert {row["repeat"] for row in rows} == {"1", "2"}
    assert all(float(row["ttft"]) >= 0.004 for row in rows)


def test_lines_for_people(capsys: pytest.CaptureFixture[str], url: str) -> None:
    # A closed loop ends after its time.
    main(["bench", f"{url}/v1/", "--workload", "chat", "--concurrency", "3", *QUICK])
    printed = capsys.readouterr().out
    for part in ("closed loop", "ttft", "tpot_inclusive", "tokens counted by", "client: sent"):
        assert part in printed


def test_the_highest_rate_that_meets_the_slo_is_found(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One at a time, 50 ms each: nothing above 20 a second can hold for long."""
    monkeypatch.setattr("trimtab.bench.load_plan.MAX_PROBES", 4)
    monkeypatch.setattr("trimtab.bench.load_plan.VOID_TRIES", 1)
    with running_mock(MockConfig(service_ms=50)) as url:
        arguments = ["bench", url, "--workload", "chat", "--find-rate", "--duration", "1"]
        more = [
            "--slo",
            "e2e:p90<150ms",
            "--scale",
            "0.02",
            "--burstiness",
            "0",
            "--no-self-check",
            "--json",
        ]
        assert main([*arguments, *more]) in (0, 1)
    data = json.loads(capsys.readouterr().out)
    assert len(data["capacity"]["probes"]) > 1
    assert data["capacity"]["rate"] is None or 2 < data["capacity"]["rate"] < 35


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["URL", "--prefill", "12"], "--prefill"),
        (["URL", "--weights", "int8"], "--weights"),
        (["URL", "--speculative", "auto"], "--speculative"),
        (["builtin", "--rate", "3"], "--rate"),
        (["builtin", "--find-rate"], "--find-rate"),
        (["builtin", "--no-self-check"], "elf-check"),
        (["builtin", "--workload", "chat"], "--speculative"),
        (["URL"], "--workload"),
        (["URL", "--workload", "chat"], "rate"),
        (["URL", "--workload", "chat", "--rate", "2", "--concurrency", "2"], "rate"),
        (["URL", "--workload", "tea", "--rate", "2"], "tea"),
        (["URL", "--workload", "chat", "--rate", "2", "--slo", "ttft<1s"], "SLO"),
        (["URL", "--workload", "chat", "--rate", "2", "--route", "tcp"], "--route"),
        (["URL", "--workload", "chat", "--find-rate"], "--slo"),
        (["URL", "--workload", "chat", "--rate", "2", "--csv", "/no/such/x.csv"], "--csv"),
        (["URL", "--workload", "chat", "--rate", "2", "--tokenizer", "/no/such"], "/no/such"),
        (["http://127.0.0.1:9", "--workload", "chat", "--rate", "2"], "nobody answers"),
    ],
)
def test_mistakes_are_one_line_and_status_2(
    capsys: pytest.CaptureFixture[str], url: str, arguments: list[str], named: str
) -> None:
    words = [url if word == "URL" else word for word in arguments]
    assert main(["bench", *words]) == 2
    error = capsys.readouterr().err.strip()
    assert "\n" not in error
    assert named in error


def test_the_key_reaches_the_server_and_no_output(
    capsys: pytest.CaptureFixture[str], url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRIMTAB_API_KEY", "sesame")
    main(["bench", url, "--workload", "chat", "--concurrency", "1", "--requests", "2", *QUICK[:-2]])
    captured = capsys.readouterr()
    assert "sesame" not in captured.out + captured.err
