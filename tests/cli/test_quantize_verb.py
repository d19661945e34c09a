"""`trimtab quantize`, as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trimtab import builtin
from trimtab.checkpoints import open_checkpoint
from trimtab.cli.main import main
from trimtab.numerics.stored import GroupedMatrix

DRAFT = str(builtin.draft_path())
G64 = ["--group-size", "64"]  # 128 do not divide the draft's 192 columns
SMALL = ["--group-size", "32", "--samples", "4", "--sequence-length", "64"]
CALIBRATION = ["--calibration", str(builtin.calibration_path())]


def test_a_quantized_checkpoint(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    arguments = ["quantize", DRAFT, "--method", "gptq", *SMALL, *CALIBRATION]
    assert main([*arguments, "--out", str(tmp_path / "a")]) == 0
    shown = capsys.readouterr()
    assert "21 matrices by gptq: 21 as int4-g32; 4.500 bits a weight" in shown.out
    assert "embed left as it is: not asked for" in shown.out
    assert "layer 3 of 3" in shown.err
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "compressed-tensors"
    assert main([*arguments, "--out", str(tmp_path / "b"), "--format", "gptq", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["calibration_tokens"] == 256
    assert 0 < report["kl"] < 0.5
    assert len(report["matrices"]) == 21
    assert report["total_bytes"] == sum(Path(file).stat().st_size for file in report["files"])
    config = json.loads((tmp_path / "b" / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "gptq"


def test_rounding_needs_no_calibration(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    arguments = ["quantize", DRAFT, "--method", "rtn", "--bits", "8", "--group-size", "0"]
    assert main([*arguments, "--out", str(tmp_path / "a")]) == 0
    assert "21 as int8" in capsys.readouterr().out
    arguments = ["quantize", DRAFT, "--method", "rtn", "--group-size", "32", "--format", "gguf"]
    assert main([*arguments, "--out", str(tmp_path / "a.gguf")]) == 0
    matrix = open_checkpoint(tmp_path / "a.gguf").matrix("layers.0.down")
    assert isinstance(matrix, GroupedMatrix)
    assert (matrix.bits, matrix.group_size) == (4, 32)
    assert "21 as int4-g32" in capsys.readouterr().out


def test_a_type_of_gguf(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    first, second = str(tmp_path / "a.gguf"), str(tmp_path / "b.gguf")
    arguments = ["quantize", DRAFT, "--format", "gguf", "--type", "Q8_0", "--out", first]
    assert main(arguments) == 0
    shown = capsys.readouterr()
    assert "22 matrices quantized" in shown.out
    assert "of 29 tensors" in shown.err
    arguments = ["quantize", first, "--format", "gguf", "--type", "q4_0", "--out", second, "--json"]
    assert main(arguments) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["total_bytes"] == Path(second).stat().st_size < Path(first).stat().st_size
    third = [
        "quantize",
        DRAFT,
        "--format",
        "gguf",
        "--type",
        "Q4_0",
        "--out",
        str(tmp_path / "c.gguf"),
    ]
    assert main([*third, *CALIBRATION, "--samples", "4", "--sequence-length", "64"]) == 0
    assert "activations of layer 3 of 3" in capsys.readouterr().err
    plain, calibrated = open_checkpoint(second), open_checkpoint(tmp_path / "c.gguf")
    assert plain.format("layers.0.q") == calibrated.format("layers.0.q")
    ours, theirs = plain.tensor("layers.0.q").data, calibrated.tensor("layers.0.q").data
    assert (ours != theirs).any()
    assert main([*arguments[:-1], "--json"]) == 2
    assert "exists already" in capsys.readouterr().err
    assert main(["quantize", DRAFT, "--format", "gguf", "--type", "Q9", "--out", first + "x"]) == 2
    assert "unknown GGUF type 'Q9'" in capsys.readouterr().err
    assert main(["quantize", DRAFT, "--type", "Q8_0", "--out", first + "x"]) == 2
    assert "use it with --format gguf" in capsys.readouterr().err


def test_what_is_quantized_already_can_be_quantized(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    first, second = str(tmp_path / "a"), str(tmp_path / "b")
    options = ["--group-size", "32", "--out"]
    assert main(["quantize", DRAFT, "--method", "rtn", "--bits", "8", *options, first]) == 0
    assert "quantized already" not in capsys.readouterr().out
    arguments = ["quantize", first, *SMALL, *CALIBRATION, "--format", "gptq"]
    assert main([*arguments, "--out", second]) == 0
    assert "the model was quantized already: its errors stay" in capsys.readouterr().out
    matrix = open_checkpoint(second).matrix("layers.0.down")
    assert isinstance(matrix, GroupedMatrix)
    assert matrix.bits == 4


def test_a_budget_of_bits(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    arguments = ["quantize", DRAFT, "--method", "rtn", "--bits-per-weight", "5", *SMALL]
    assert main([*arguments, *CALIBRATION, "--out", str(tmp_path / "a"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    matrices = report["matrices"]
    assert len({entry["format"] for entry in matrices}) > 1
    assert 4.5 < report["bits_per_weight"] <= 5
    assert set(report["sensitivity"]) < {entry["name"] for entry in matrices}


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--method", "gptq"], "--calibration FILE"),
        (["--method", "best"], "method 'best'"),
        (["--method", "rtn", "--bits", "5"], "5 bits"),
        (["--method", "rtn", "--group-size", "100"], "group size 100"),
        (["--method", "rtn", "--bits-per-weight", "2"], "bits_per_weight=2"),
        (["--method", "rtn", "--bits-per-weight", "5"], "--calibration FILE"),
        (["--method", "rtn", "--format", "gguf"], "symmetric groups of 32"),
        (["--method", "rtn", "--format", "awq", "--bits", "3"], "awq files hold 4 bits only"),
        (["--method", "smoothquant", "--format", "gptq", *CALIBRATION], "activations"),
        (["--method", "rtn", "--format", "zip"], "format 'zip'"),
        (["--method", "smoothquant", "--bits", "4", *CALIBRATION], "--bits 8"),
        ([*G64, "--calibration", "/nowhere"], "/nowhere: No such file"),
        ([*G64, "--calibration", "SHORT"], "too few for a sequence of 512"),
        ([*G64, "--calibration", "EMPTY"], "has 0 tokens"),
        ([*G64, *CALIBRATION, "--sequence-length", "5000"], "beyond the model's context"),
        ([*G64, "--method", "rtn", "--device", "abacus"], "device 'abacus'"),
        ([*G64, "--method", "rtn", "--out", "EMPTY"], "EMPTY"),
    ],
)
def test_mistakes_are_one_line_and_status_2(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: list[str], named: str
) -> None:
    for name, content in {"SHORT": "import os\n", "EMPTY": ""}.items():
        (tmp_path / name).write_text(content)
    given = [str(tmp_path / word) if word in ("SHORT", "EMPTY") else word for word in arguments]
    out = [] if "--out" in arguments else ["--out", str(tmp_path / "new")]
    assert main(["quantize", DRAFT, *given, *out]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("trimtab: error: ")
    assert named in error
    assert {path.name for path in tmp_path.iterdir()} == {"SHORT", "EMPTY"}
