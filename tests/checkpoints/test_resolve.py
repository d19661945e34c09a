"""From what a user types to a path, with one clear line for everything else."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import errors as hub_errors

from trimtab.checkpoints import resolve_model
from trimtab.checkpoints.resolve import DOWNLOAD_PATTERNS, SKIP_PATTERNS
from trimtab.errors import CheckpointError


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Stands in for the network: a call gives or raises the item put here."""
    answers: list[Any] = []

    def snapshot_download(repo_id: str, **options: Any) -> str:
        assert options == {"allow_patterns": DOWNLOAD_PATTERNS, "ignore_patterns": SKIP_PATTERNS}
        answer = answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return f"{answer}/{repo_id}"

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return answers


def refusal(name: str) -> str:
    with pytest.raises(CheckpointError) as caught:
        resolve_model(name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_local_paths_need_no_network(
    hub: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "owner" / "model").mkdir(parents=True)
    (tmp_path / "x.safetensors").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve_model(str(tmp_path)) == tmp_path
    assert resolve_model("owner/model") == Path("owner/model")
    assert resolve_model("x.safetensors") == Path("x.safetensors")
    assert resolve_model("~/owner") == tmp_path / "owner"


@pytest.mark.parametrize(
    "name",
    ["/no/such/model", "./model", "../a/model", "a/b/c", "model.gguf", "a/b.gguf", "~/x", "a b"],
)
def test_a_mistyped_path_says_so_without_asking_the_network(hub: list[Any], name: str) -> None:
    assert "no such file or directory" in refusal(name)


def test_a_bare_name_is_told_what_exists(hub: list[Any]) -> None:
    message = refusal("buildin")
    assert "'buildin': no such file or directory" in message
    assert "OWNER/NAME" in message


@pytest.mark.parametrize("name", ["", "a\0b", "x" * 5000, "a/b\n"])
def test_impossible_names(hub: list[Any], name: str) -> None:
    assert len(refusal(name)) < 300


def test_a_repo_is_downloaded(hub: list[Any]) -> None:
    hub.append("/cache")
    assert resolve_model("Qwen/Qwen3-0.6B") == Path("/cache/Qwen/Qwen3-0.6B")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (hub_errors.LocalEntryNotFoundError("x\ny"), "cannot be reached, and not downloaded"),
        (hub_errors.OfflineModeIsEnabled("x"), "offline mode"),
        (ConnectionError("no route\nto host"), "ConnectionError: no route"),
        (ImportError("huggingface_hub"), "not installed"),
        (OSError(28, "No space left on device"), "No space left on device"),
    ],
)
def test_a_failed_download_is_one_line(hub: list[Any], error: Exception, reason: str) -> None:
    hub.append(error)
    message = refusal("owner/model")
    assert "'owner/model': no such local directory, and not available from Hugging Face" in message
    assert reason in message


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("RepositoryNotFoundError", "no such repository"), ("GatedRepoError", "accept its terms")],
)
def test_refused_by_the_hub(hub: list[Any], kind: str, reason: str) -> None:
    error = getattr(hub_errors, kind).__new__(getattr(hub_errors, kind))
    hub.append(error)
    assert reason in refusal("owner/model")


def test_builtin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("trimtab.builtin")
    monkeypatch.setitem(sys.modules, "trimtab.builtin", module)
    assert "no built-in model" in refusal("builtin")
    module.target_path = lambda: tmp_path  # type: ignore[attr-defined]
    assert "installation is incomplete" in refusal("builtin")
    (tmp_path / "config.json").write_text("{}")
    assert resolve_model("builtin") == tmp_path
