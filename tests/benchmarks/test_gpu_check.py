"""`make gpu-check` on a CPU, in small: the whole way from a section to the table; and that one part
that fails, hangs or cannot run is a result and not the end."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from test_bare_machine import ABSENT

pytest.importorskip("torch")

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a module of benchmarks/gpu."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return lambda name: importlib.import_module(f"gpu.{name}")


def gpu_check(*arguments: str | Path, path: str = "") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, BENCHMARKS / "gpu_check.py", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
        env=environment,
    )


def run_tiny(out: Path, *arguments: str, path: str = "") -> dict[str, Any]:
    results = out / "results.json"
    done = gpu_check("--device", "cpu", "--tiny", "--json", results, *arguments, path=path)
    document: dict[str, Any] = json.loads(results.read_text()) if results.exists() else {}
    sections = document.get("sections", {})
    logs = {name: entry for name, entry in sections.items() if entry["status"] == "failed"}
    assert done.returncode == 0, (done.stdout, done.stderr, logs)
    return document


def test_on_a_bare_machine(tmp_path: Path) -> None:
    """Without the native core and without any package of the server's, in the sections' own
    processes too."""
    (tmp_path / "sitecustomize.py").write_text(
        f"import sys\nfor name in {ABSENT!r}: sys.modules[name] = None\n"
    )
    docs = tmp_path / "performance.md"
    docs.write_text((ROOT / "docs" / "performance.md").read_text())
    document = run_tiny(
        tmp_path,
        *(
            "--docs",
            str(docs),
            "--only",
            "roofline,model,law,qwen3-0.6b bf16,transformers,starts,torch.compile",
        ),
        path=str(tmp_path),
    )
    sections = document["sections"]
    assert not document["machine"]["native core"]
    assert set(sections["roofline"]["results"]) == {"copy", "read", "bf16", "fp8"}
    for name, least in (("model", 12), ("law", 10)):
        passed = [one["passed"] for one in sections[name]["results"].values()]
        assert len(passed) >= least
        assert all(passed)
    served = sections["qwen3-0.6b bf16"]["results"]
    assert served["1 x 16+6"]["decode_tokens_per_s"] > 0
    assert served["4 x 16+6"]["of_limit"] > 0
    assert served["open loop"]["ended"] >= 4
    assert served["open loop"]["ttft_p99_s"] > 0
    assert served["prefill 96"]["tokens_per_s"] > 0
    first, second = sections["starts"]["results"].values()
    assert first["passed"]
    assert second["passed"]
    assert second["start_s"] > second["first_token_s"] > 0
    for one in sections["torch.compile"]["results"].values():
        assert one["same_bits"]
        assert one["rows_invariant"]
    assert len(sections["torch.compile"]["results"]) == 4
    peer = sections["qwen3-0.6b transformers"]
    assert peer["status"] == "skipped"
    assert "transformers" in peer["error"]
    text = docs.read_text()
    assert "Nothing has been measured" not in text
    assert "| 4 streams, 16+6 | **" in text
    assert "nothing here says anything of speed" in text
    assert "## What serving costs" in text
    assert "| second start |" in text
    assert "| penalties, 3 rows |" in text


def test_beside_transformers(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    document = run_tiny(tmp_path, "--only", "qwen3-0.6b transformers")
    results = document["sections"]["qwen3-0.6b transformers"]["results"]
    assert "continuous batching" in results["load"]["about"]
    assert results["4 x 16+6"]["tokens_per_s"] > 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--device", "cpu"], "--device cpu needs --tiny"),
        (["--device", "cpu", "--tiny", "--only", "nothing"], "no such section"),
        pytest.param(
            [],
            "torch finds no CUDA device here",
            marks=pytest.mark.skipif(
                importlib.import_module("torch").cuda.is_available(), reason="there is one"
            ),
        ),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], words: str) -> None:
    done = gpu_check(*arguments)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert words in done.stderr


SECTIONS = {
    "crashing": "import os\ndef run(context):\n"
    "    context.plan(['one', 'two'])\n    context.result('one', value=1)\n    os._exit(139)\n",
    "raising": "def run(context):\n    raise RuntimeError('CUDA error: illegal access')\n",
    "hanging": "import time\ndef run(context):\n    context.plan(['one', 'two', 'three'])\n"
    "    context.leave_out('two', 'for a reason')\n    context.result('one', passed=True)\n"
    "    time.sleep(600)\n",
    "wrong": "def run(context):\n    context.plan(['a', 'b'])\n"
    "    def fail(): raise ValueError('two\\nlines')\n"
    "    context.attempt('a', fail)\n    context.attempt('b', lambda: {'passed': True})\n",
    "lost": "def run(context):\n    context.plan(['a', 'b'])\n"
    "    def fail(): raise RuntimeError('CUDA error: misaligned address')\n"
    "    context.attempt('a', fail)\n    context.attempt('b', lambda: {'passed': True})\n",
    "hasty": "def run(context):\n    context.plan(['long', 'short'])\n"
    "    context.has_time('long', 1e6)\n    context.result('short', passed=True)\n",
    "absent": "def run(context):\n    context.skip('nothing to run')\n",
}


def test_every_way_to_fail_is_a_result(
    gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gpu").mkdir()  # a second part of the namespace package
    for name, code in SECTIONS.items():
        (tmp_path / "gpu" / f"{name}.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    running = gpu("running")
    section = gpu("sections").Section
    monkeypatch.setattr(running, "GRACE_SECONDS", 0.5)
    said: list[str] = []
    results = tmp_path / "out" / "results.json"
    runner = running.Runner(
        gpu("context").Settings("cpu", True), 500, results, tmp_path, {}, said.append
    )
    runner.run(
        [
            section(name, name, 1, "check", in_tiny_seconds=2.5 if name == "hanging" else 60)
            for name in SECTIONS
        ]
    )
    found = json.loads(results.read_text())["sections"]
    assert {name: entry["status"] for name, entry in found.items()} == {
        "crashing": "failed",
        "raising": "failed",
        "hanging": "timed out",
        "wrong": "failed",
        "lost": "failed",
        "hasty": "ok",
        "absent": "skipped",
    }
    ended = {"case": "two", "why": "the section ended before it"}
    assert found["crashing"]["results"] == {"one": {"value": 1}}
    assert found["crashing"]["left_out"] == [ended]
    assert found["raising"]["error"] == "RuntimeError: CUDA error: illegal access"
    assert found["hanging"]["left_out"][0] == {"case": "two", "why": "for a reason"}
    assert [one["case"] for one in found["hanging"]["left_out"]] == ["two", "three"]
    assert found["wrong"]["results"]["a"] == {"passed": False, "error": "ValueError: two lines"}
    assert found["wrong"]["results"]["b"] == {"passed": True}
    assert "b" not in found["lost"]["results"]  # its device is of no use any more
    assert found["hasty"]["left_out"][0]["why"].startswith("no time: about 1000000.0 s")
    assert found["absent"]["error"] == "nothing to run"
    assert len(said) == len(SECTIONS)
    assert not list(results.parent.glob("*.part"))


def test_no_time_is_said(gpu: Any, tmp_path: Path) -> None:
    section = gpu("sections").Section("late", "roofline", 1)
    runner = gpu("running").Runner(
        gpu("context").Settings("cpu", True), 1, tmp_path / "r.json", tmp_path, {}, print
    )
    runner.run([section])
    found = json.loads((tmp_path / "r.json").read_text())["sections"]["late"]
    assert (found["status"], found["error"]) == ("not run", "no time left")


def test_limits_of_a_known_model(gpu: Any) -> None:
    """Llama-3.1-8B: 8.03 B parameters, of which 0.525 B are the table that is only looked up."""
    limits, spec = gpu("limits"), gpu("shapes").spec_of("llama-3.1-8b", False)
    assert limits.layer_elements(spec) == 6_979_321_856
    assert limits.weight_bytes(spec, "bf16", 128) == 2 * (6_979_321_856 + 128_256 * 4096)
    assert limits.kv_bytes_per_token(spec) == 131_072
    rates = limits.Rates(copy=4e12, bf16=8e14, fp8=1.6e15)
    one = limits.decode_cost(spec, "bf16", 128, 1, 128)
    assert one.seconds(rates, "bf16") == pytest.approx((15_009_316_864 + 129 * 131_072) / 4e12)
    assert limits.weight_bytes(spec, "int4", 128) < 0.32 * limits.weight_bytes(spec, "bf16", 128)
    prompt = limits.prefill_cost(spec, "bf16", 128, 8192)
    matrices = 2 * 8192 * 6_979_321_856
    scores = 4 * 32 * 4096 * (8192 * 8193 // 2)
    assert prompt.layer_operations == matrices
    assert prompt.other_operations == scores + 2 * 128_256 * 4096
    assert prompt.seconds(rates, "fp8") < prompt.seconds(rates, "bf16")
    assert one.seconds(limits.Rates(None, 1.0, None), "bf16") is None
    assert limits.causal_pairs(5, 2) == 1 + 2 + 2 + 2 + 2


def test_random_checkpoints(gpu: Any) -> None:
    """Reproducible, of the right formats, and scaled so that logits are about 1."""
    import numpy as np

    from trimtab.numerics.stored import Fp8Matrix, GroupedMatrix

    make, spec = gpu("checkpoints").RandomCheckpoint, gpu("shapes").spec_of("llama-3.1-8b", True)
    for weights, kind in (("bf16", None), ("fp8", Fp8Matrix), ("int4", GroupedMatrix)):
        checkpoint = make(spec, weights, seed=3, group_size=32)
        stored = checkpoint.matrix("layers.1.down")
        assert kind is None or isinstance(stored, kind)
        assert kind is None or stored.format == checkpoint.format("layers.1.down")
        values = checkpoint.tensor("layers.1.down").to_float32()
        assert values.shape == (64, 128)
        assert values.std() * 128**0.5 == pytest.approx(1, abs=0.1)
        again = make(spec, weights, seed=3, group_size=32)
        other = make(spec, weights, seed=4, group_size=32)
        assert again.identity == checkpoint.identity != other.identity
        assert np.array_equal(again.tensor("layers.1.down").to_float32(), values)
        assert not np.array_equal(other.tensor("layers.1.down").to_float32(), values)
        assert not np.array_equal(checkpoint.tensor("layers.0.down").to_float32(), values)
    many = make(gpu("shapes").spec_of("qwen3-0.6b", False), "bf16", distinct_layers=2)
    assert len(list(many.names())) == 28 * 11 + 2  # tied: no head
    with pytest.raises(ValueError, match="must be bf16, fp8 or int4"):
        make(spec, "int3")


def test_decode_is_what_all_streams_do(gpu: Any) -> None:
    streams = gpu("streams")
    first = streams.Stream(0.0, [1.0, 2.0, 3.0, 3.5, 4.0, 4.5])
    second = streams.Stream(0.0, [3.0, 3.5, 4.0, 4.5, 5.0, 5.5])
    steps = [(1.0, 1), (2.0, 1), (3.0, 2), (3.5, 2), (4.0, 2), (4.5, 2), (5.0, 1), (5.5, 1)]
    run = streams.Run([first, second], steps, 5.5)
    case = gpu("shapes").Case(2, 10, 6)
    decode = streams.decode_of(run, case)
    assert decode.step_seconds == [0.5, 0.5, 0.5]
    assert decode.tokens_per_s == pytest.approx(4.0)
    assert decode.context == 10 + (3 + 1) / 2 + 1.5
    assert streams.latencies(run)["ttft"] == [1.0, 3.0]
    late = streams.Stream(0.0, [9.0])
    assert streams.decode_of(streams.Run([first, late], steps, 9.0), case) is None


def test_busy_is_the_union_of_what_ran(gpu: Any) -> None:
    spans = [(0, 10), (5, 10), (20, 5), (21, 1), (30, 10)]
    events = [{"cat": "kernel", "ts": ts, "dur": dur} for ts, dur in spans]
    events.append({"cat": "cuda_runtime", "ts": 0, "dur": 100})
    found = gpu("busy").busy_of({"traceEvents": [*events, {"cat": "kernel", "ph": "i"}]})
    assert found == {"share": (15 + 5 + 10) / 40, "num_kernels": 5}
    with pytest.raises(RuntimeError, match="saw no work"):
        gpu("busy").busy_of({"traceEvents": events[-1:]})


OPERATIONS = {
    "rms_norm": "norms",
    "add_rms_norm": "norms",
    "quantize_rows": "norms",
    "gated": "gated",
    "linear": "bf16 product",
    "linear_quantized": "fp8 product",
    "qk_norm_rope_write": "rope and write, int8",
    "attention": "attention, window",
    "sample": "sampling, everything",
}


@pytest.mark.parametrize("broken", [None, *OPERATIONS])
def test_the_kernel_checks_see_what_is_wrong(gpu: Any, broken: str | None) -> None:
    """The references pass against themselves; an operation that is a little off is found in the
    checks that are for it."""
    import torch

    from trimtab.executors.gpu.reference import ReferenceOps

    ops = ReferenceOps()

    def off(*arguments: Any) -> Any:
        found = getattr(ReferenceOps, str(broken))(ops, *arguments)
        if broken == "qk_norm_rope_write":
            arguments[-1].keys.copy_(arguments[-1].keys.roll(1, dims=1))
        elif broken == "sample":
            found.tokens[5] += 1
        elif isinstance(found, tuple):
            return (*found[:-1], found[-1] * 1.05)
        else:
            found[-1, 1:] = found[-1, :-1].clone()
        return found

    if broken is not None:
        setattr(ops, broken, off)
    check = gpu("kernels").KernelCheck(ops, ReferenceOps(), "cpu", 0, True)
    wanted = OPERATIONS.get(str(broken), "")
    with torch.inference_mode():
        cases = gpu("kernels").all_cases(check)
        found = {name: work() for name, work in cases.items() if wanted in name}
    passed = [one["passed"] for one in found.values()]
    if broken is None:
        assert len(passed) > 25
        assert all(passed), found
    else:
        assert passed
        assert not any(passed), found


def test_a_document_without_marks_is_left_alone(gpu: Any, tmp_path: Path) -> None:
    path = tmp_path / "some.md"
    path.write_text("# Title\n")
    with pytest.raises(ValueError, match="the marks of gpu-check are missing"):
        gpu("tables").put_table(path, {"sections": {}}, path)
    assert path.read_text() == "# Title\n"


def test_the_repository_claims_nothing_unmeasured(gpu: Any) -> None:
    """The table has a results file, or says that there is none."""
    tables: ModuleType = gpu("tables")
    text = (ROOT / "docs" / "performance.md").read_text()
    between = text.partition(tables.BEGIN)[2].partition(tables.END)[0]
    results = list((BENCHMARKS / "results" / "gpu").glob("*.json"))
    if not results:
        assert "Nothing has been measured on a GPU yet" in between
    else:
        assert any(path.name in between for path in results)
