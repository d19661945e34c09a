"""`trimtab inspect` and `trimtab bench`, as a user types them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trimtab.cli.main import main


def test_inspect_says_what_the_model_is_and_what_limits_it(
    capsys: pytest.CaptureFixture[str], model: Path
) -> None:
    assert main(["inspect", str(model), "--weights", "int8", "--kv-cache", "int8"]) == 0
    printed = capsys.readouterr().out
    for part in ("parameters", "output head", "KV cache (int8)", "decode at context", "GB/s"):
        assert part in printed


def test_inspect_json(capsys: pytest.CaptureFixture[str], model: Path) -> None:
    assert main(["inspect", str(model), "--json", "--threads", "1"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["machine"]["threads"] == 1
    assert data["machine"]["read_bytes_per_s"] > 0
    assert data["bytes"]["weights"] == sum(data["bytes"]["by_part"].values())
    assert min(data["ceilings"]["decode_tokens_per_s"].values()) > 0


def test_bench_compares_formats_beside_their_ceilings(
    capsys: pytest.CaptureFixture[str], model: Path
) -> None:
    arguments = ["bench", str(model), "--formats", "bf16,int4-g32", "--prefill", "16"]
    assert main([*arguments, "--streams", "2", "--rounds", "1", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert [entry["weights"] for entry in data["results"]] == ["bf16", "int4-g32"]
    for entry in data["results"]:
        measures = [row["measure"] for row in entry["rows"]]
        assert measures == ["decode", "prefill 16", "2 streams"]
        assert all(row["percent_of_ceiling"] > 0 for row in entry["rows"])


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["inspect", "/nowhere/at/all"], "/nowhere/at/all"),
        (["inspect", "MODEL", "--weights", "int3"], "int3"),
        (["bench", "MODEL", "--formats", "int4-g48"], "48"),
        (["bench", "MODEL", "--formats", "bf16-g64"], "bf16-g64"),
        (["bench", "MODEL", "--prefill", "12,x"], "12,x"),
        (["bench", "MODEL", "--streams", "0"], "--streams"),
        (["bench", "MODEL", "--prefill", "100000"], "100000"),
    ],
)
def test_mistakes_are_one_line_and_status_2(
    capsys: pytest.CaptureFixture[str], model: Path, arguments: list[str], named: str
) -> None:
    assert main([str(model) if word == "MODEL" else word for word in arguments]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("trimtab: error: ")
    assert named in error
