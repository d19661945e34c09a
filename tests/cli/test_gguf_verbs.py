"""GGUF files as MODEL: the built-in draft as one file, opened by every verb that runs a model."""

from __future__ import annotations

import json
from pathlib import Path

import gguf_handmade
import gguf_models
import gguf_vocabularies
import pytest
import test_gguf_damaged as damaged
import torch
import transformers

from trimtab import LLM, SamplingParams, builtin
from trimtab.cli.main import main
from trimtab.server.loading import find_model
from trimtab.tokenization import load_tokenizer

GREEDY = SamplingParams(max_tokens=24, temperature=0)
PROMPTS = ["def quicksort(a):", "import os", "class Stack:"]


def make(path: Path, kind: str) -> Path:
    directory = builtin.draft_path()
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    return gguf_models.write(
        model,
        path,
        kind,
        add_vocabulary=lambda writer, _: gguf_vocabularies.add_builtin(writer, directory),
    )


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("bf16") / "draft.gguf", "BF16").parent


@pytest.mark.parametrize("weights", ["bf16", "int8"])
def test_the_same_text_as_the_original_checkpoint(directory: Path, weights: str) -> None:
    def texts(model: Path) -> list[str]:
        with LLM(str(model), weights=weights) as llm:
            return [result.outputs[0].text for result in llm.generate(PROMPTS, GREEDY)]

    expected = texts(builtin.draft_path())
    assert texts(directory / "draft.gguf") == expected
    assert texts(directory) == expected


def test_verbs(directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(directory / "draft.gguf")
    assert main(["generate", path, "def f(", "--temperature", "0", "--max-tokens", "4"]) == 0
    assert main(["inspect", path, "--json"]) == 0
    assert main(["bench", path, "--prefill", "16", "--streams", "1", "--rounds", "1"]) == 0
    text = tmp_path / "text.txt"
    text.write_text("import os\nprint(os.getcwd())\n" * 20)
    capsys.readouterr()
    arguments = ["--weights", "bf16", "--kv-cache", "bf16", "--baseline", str(builtin.draft_path())]
    assert main(["eval", path, "--text", str(text), *arguments, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["text"]["distance"]["kl_max_nats"] == 0
    assert main(["generate", path.replace("draft", "absent"), "x"]) == 2


def test_the_server_finds_it(directory: Path) -> None:
    found = find_model(str(directory / "draft.gguf"), None)
    assert found.name == "draft.gguf"
    assert load_tokenizer(found.path).chat_template is not None


def test_damaged_files_are_one_line_and_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {
        **{kind: gguf_handmade.model(keys) for kind, (keys, _) in damaged.METADATA_DAMAGE.items()},
        **{
            kind: gguf_handmade.model(keys) for kind, (keys, _) in damaged.VOCABULARY_DAMAGE.items()
        },
        **{
            kind: gguf_handmade.model(changed=changes, data_of=data)
            for kind, (changes, data, _) in damaged.TENSOR_DAMAGE.items()
        },
        **{f"truncated at {n}": damaged.WHOLE[:n] for n in range(0, len(damaged.WHOLE), 997)},
    }
    assert len(files) > 100
    for kind, content in files.items():
        path = gguf_handmade.write(tmp_path, content)
        assert main(["generate", str(path), "a", "--max-tokens", "1"]) == 2, kind
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("trimtab: error: "), kind
        assert "model.gguf" in line
