"""Quantized checkpoints: built once, found again, never half made."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from trimtab import builtin
from trimtab.checkpoints import open_checkpoint
from trimtab.config import SchedulerConfig
from trimtab.errors import ConfigError, UserError
from trimtab.optimizer import artifacts
from trimtab.optimizer import cache as cache_module
from trimtab.optimizer.artifacts import Artifact, find_or_build, scheduler_for
from trimtab.optimizer.content import content_hash
from trimtab.optimizer.variants import Variant, stores_integers

DRAFT = str(builtin.draft_path())
WORDS = "Small models are quickly built, and what they say does not matter here. "


@pytest.fixture
def text(tmp_path: Path) -> str:
    """A little text to calibrate on."""
    path = tmp_path / "text.txt"
    path.write_text(WORDS * 150)  # a token a byte
    return str(path)


def gptq(text: str) -> Variant:
    return Variant("int4", 64, "gptq", calibration=text)


def test_what_needs_no_building_is_the_model_itself(cache: Path) -> None:
    found = find_or_build(DRAFT, Variant("int4"))
    assert found.path == builtin.draft_path()
    assert not found.is_built
    assert found.hash == content_hash(open_checkpoint(builtin.draft_path()))
    assert not (cache / "artifacts").exists()


def test_built_once_and_found_again(model: Path, text: str, cache: Path) -> None:
    said: list[str] = []
    found = find_or_build(str(model), gptq(text), said.append)
    assert found.is_built
    assert stores_integers(open_checkpoint(found.path))
    assert any("building gptq int4-g64" in line for line in said)
    said.clear()
    # How the head and the cache are held is not the checkpoint's business.
    again = find_or_build(
        str(model), Variant("int4", 64, "gptq", None, "bf16", "int8", text), said.append
    )
    assert again == found
    assert said == []
    weights = next(found.path.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x55")
    repaired = find_or_build(str(model), gptq(text), said.append)
    assert repaired.hash == found.hash  # the same bits again
    assert said
    assert sorted(path.name[:1] for path in (cache / "artifacts").iterdir()) == sorted(
        [found.path.parent.name[:1]] * 2
    )


def test_a_killed_build_leaves_nothing_half_made(model: Path, text: str, cache: Path) -> None:
    code = (
        "from trimtab.optimizer.artifacts import find_or_build\n"
        "from trimtab.optimizer.variants import Variant\n"
        f"find_or_build({str(model)!r}, Variant('int4', 64, 'gptq', calibration={text!r}),"
        " lambda line: print(line, flush=True))"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if b"layer 1" in line:
                break
        process.kill()
    place = cache / "artifacts"
    left = [path for path in place.iterdir() if path.is_dir()]
    assert [path.name.startswith(".building-") for path in left] == [True]
    found = find_or_build(str(model), gptq(text))
    assert found.is_built
    assert [path for path in place.iterdir() if path.is_dir()] == [found.path.parent]


def test_two_at_once_build_it_once(model: Path, text: str) -> None:
    said: list[str] = []
    found: list[Artifact] = []

    def one() -> None:
        found.append(find_or_build(str(model), gptq(text), said.append))

    threads = [threading.Thread(target=one) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found[0] == found[1]
    assert sum("building" in line for line in said) == 1


def test_a_full_disk_is_one_line(model: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "free_bytes", lambda place: 1 << 20)
    with pytest.raises(ConfigError, match=r"only 0\.00 GiB are free there: make room") as caught:
        find_or_build(str(model), gptq(text))
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    monkeypatch.setenv("TRIMTAB_OPTIMIZER_CACHE", "off")
    with pytest.raises(ConfigError, match="set TRIMTAB_OPTIMIZER_CACHE"):
        find_or_build(str(model), gptq(text))


def test_what_fails_is_one_line_and_leaves_nothing(
    model: Path, text: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path(text).write_text("too short")
    with pytest.raises(UserError, match="gptq int4-g64 cannot be built: ") as caught:
        find_or_build(str(model), gptq(text))
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="no such calibration text"):
        find_or_build(str(model), gptq("/none.txt"))
    with pytest.raises(ConfigError, match="name a file"):
        find_or_build(str(model), gptq(""))
    with pytest.raises(ConfigError, match="does not divide"):
        find_or_build(str(model), Variant("int4", 128, "gptq", calibration=text))
    assert [path for path in (cache / "artifacts").iterdir() if path.is_dir()] == []


def test_another_text_or_model_is_another_artifact(text: str) -> None:
    key = artifacts.artifact_key("m", gptq(text), "a")
    assert key == artifacts.artifact_key("m", gptq("other name"), "a")
    assert key != artifacts.artifact_key("m", gptq(text), "b")
    assert key != artifacts.artifact_key("n", gptq(text), "a")
    assert key != artifacts.artifact_key("m", Variant("int4", 32, "gptq"), "a")


def test_the_content_hash_follows_the_content(tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(builtin.draft_path(), model)
    first = content_hash(open_checkpoint(model))
    assert first == content_hash(open_checkpoint(builtin.draft_path()))  # not of the place
    weights = model / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2 + 1] ^= 1
    time.sleep(0.01)
    weights.write_bytes(data)
    assert content_hash(open_checkpoint(model)) != first
    shutil.copy(builtin.draft_path() / "model.safetensors", weights)
    assert content_hash(open_checkpoint(model)) == first
    tokenizer = model / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text() + " ")
    assert content_hash(open_checkpoint(model)) != first


def test_what_guesses_for_the_builtin_model_does_for_what_is_built_of_it() -> None:
    built = Artifact(Path("/x"), "hash", is_built=True)
    draft, heads = str(builtin.draft_path()), str(builtin.heads_path())
    auto = scheduler_for("builtin", built, SchedulerConfig())
    assert (auto.draft_model, auto.draft_heads) == (draft, None)
    both = scheduler_for("builtin", built, SchedulerConfig(speculative="draft+heads"))
    assert (both.draft_model, both.draft_heads) == (draft, heads)
    lookup = SchedulerConfig(speculative="lookup")
    assert scheduler_for("builtin", built, lookup) == lookup
    assert scheduler_for("builtin", Artifact(Path("/x"), "h", False), SchedulerConfig()) == (
        SchedulerConfig()
    )
    assert scheduler_for(DRAFT, built, SchedulerConfig()) == SchedulerConfig()
