"""What runs on a machine that has torch and numpy and nothing else of ours: no native core, no
packages of the server. Each test is a process in which those cannot be imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ABSENT = (
    *("trimtab._native", "pydantic", "fastapi", "starlette", "uvicorn", "msgspec", "zmq"),
    *("uvloop", "httptools", "safetensors", "tokenizers", "huggingface_hub", "jinja2"),
    *("prometheus_client", "typer", "rich", "yaml", "llguidance", "opentelemetry", "hypothesis"),
    *("pytest", "transformers", "psutil", "scipy"),
)
PACKAGES = ("config", "environment", "errors", "models", "numerics", "workloads", "checkpoints")
# The load generator talks HTTP and reads JSON streams: it needs httptools and msgspec.
OVER_HTTP = ("http_stream", "load", "mock_server", "self_check")


def run(code: str) -> subprocess.CompletedProcess[str]:
    """`code` in a process without what is ABSENT."""
    blocked = f"import sys\nfor name in {ABSENT!r}: sys.modules[name] = None\n"
    return subprocess.run(
        [sys.executable, "-c", blocked + code],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    )


def output_of(code: str) -> str:
    done = run(code)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_everything_below_the_server_can_be_imported() -> None:
    names = [f"trimtab.{name}" for name in (*PACKAGES, "executors", "engine", "bench")]
    code = f"""
import importlib, pkgutil
failed = []
for name in {names!r}:
    package = importlib.import_module(name)
    for module in pkgutil.walk_packages(getattr(package, "__path__", []), name + "."):
        if module.name.startswith(tuple("trimtab.bench." + one for one in {OVER_HTTP!r})):
            continue
        try:
            importlib.import_module(module.name)
        except ImportError as error:
            if error.name != "triton":  # only where there is none for the platform
                failed.append(f"{{module.name}}: {{error}}")
print(*failed, sep="\\n")
"""
    assert output_of(code).strip() == ""


def test_an_engine_runs() -> None:
    """Scheduler, prefix cache, sampling parameters, aborts, statistics: all of it in Python."""
    code = """
from trimtab.config import SchedulerConfig
from trimtab.engine.client import EngineRequest
from trimtab.engine.engine import Engine
from trimtab.engine.sampling_params import SamplingParams
from trimtab.executors.toy import ToyExecutor

engine = Engine(ToyExecutor(num_blocks=64), SchedulerConfig(max_batch_tokens=8), debug=True)
params = SamplingParams(max_tokens=9, temperature=0.7, seed=3, logprobs=2)
for name in ("a", "b", "c"):
    engine.add_request(EngineRequest(name, list(range(1, 12)), params))
tokens = {"a": [], "b": [], "c": []}
engine.step()
assert engine.abort("c").finish_reason == "abort"
while engine.num_live_requests:
    for output in engine.step():
        assert f"request_id={output.request_id!r}" in repr(output)
        tokens[output.request_id] += output.token_ids
assert tokens["a"] == tokens["b"] and len(tokens["a"]) == 9, tokens
assert engine.stats().num_generated_tokens == 18
engine.close()
print("done")
"""
    assert output_of(code) == "done\n"


def test_an_engine_streams_to_asyncio() -> None:
    """Outputs that a slow consumer missed are merged: `replace` of the struct."""
    code = """
import asyncio
from trimtab.engine.async_engine import AsyncEngine, merge_outputs
from trimtab.engine.client import EngineRequest, TokenOutput
from trimtab.engine.engine import Engine
from trimtab.engine.sampling_params import SamplingParams
from trimtab.executors.toy import ToyExecutor

merged = merge_outputs(TokenOutput("a", [1]), TokenOutput("a", [2], finish_reason="stop"))
assert merged == TokenOutput("a", [1, 2], finish_reason="stop")

async def main():
    client = AsyncEngine(Engine(ToyExecutor()))
    ids = []
    request = EngineRequest("a", [1, 2, 3], SamplingParams(max_tokens=12, temperature=0))
    async for output in client.generate(request):
        ids += output.token_ids
        await asyncio.sleep(0.01)
    await client.close()
    print(len(ids))

asyncio.run(main())
"""
    assert output_of(code) == "12\n"


@pytest.mark.parametrize(
    ("code", "line"),
    [
        (
            "from trimtab.tokenization import load_tokenizer\nload_tokenizer(target_path())",
            "the package tokenizers is not installed: there is no text without it",
        ),
        (
            "from trimtab.tokenization.chat_template import ChatTemplate\n"
            "ChatTemplate('{{ messages }}').render([{'role': 'user', 'content': 'x'}])",
            "the package jinja2 is not installed: chat needs it",
        ),
        (
            "from trimtab.engine.speculation.lookup import LookupProposer\nLookupProposer()",
            "speculative=lookup needs the native core, which is not built here",
        ),
        (
            "from trimtab.checkpoints import resolve_model\nresolve_model('nobody/nothing')",
            "the package huggingface_hub is not installed",
        ),
    ],
)
def test_what_is_missing_is_said_in_one_line(code: str, line: str) -> None:
    done = run(
        "from trimtab.builtin import target_path\nfrom trimtab.errors import UserError\n"
        "try:\n    "
        + code.replace("\n", "\n    ")
        + "\nexcept UserError as error:\n    print(error)\n"
    )
    assert done.stdout.count("\n") == 1, done.stderr
    assert line in done.stdout


def test_a_checkpoint_is_read() -> None:
    """The built-in model's weights, by trimtab's own reader of safetensors."""
    code = """
from trimtab.builtin import target_path
from trimtab.checkpoints import open_checkpoint

checkpoint = open_checkpoint(target_path())
name = next(iter(checkpoint.names()))
print(checkpoint.tensor(name).to_float32().std() > 0, len(checkpoint.identity) >= 32)
"""
    assert output_of(code) == "True True\n"
