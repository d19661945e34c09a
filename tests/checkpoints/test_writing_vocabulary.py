"""Tokenizers in GGUF files: llama.cpp makes the tokens of tokenizer.json, or it is refused."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import tiny_models
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, trainers
from tokenizers import pre_tokenizers as pre

from trimtab.builtin import heldout_path
from trimtab.checkpoints import open_checkpoint
from trimtab.checkpoints.gguf_vocabulary import describe_vocabulary
from trimtab.checkpoints.writing import write_gguf
from trimtab.errors import CheckpointError
from trimtab.tokenization import load_tokenizer

PYTHON = os.environ.get("TRIMTAB_LLAMA_PYTHON")
VOCABULARY = 700

# As the published files of these families have them.
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace("{1,3}", "")
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEXTS = [
    heldout_path().read_text()[:6000],
    "It's 12345 o'clock, WE'LL see 3.14159\u00a0\u2014 na\u00efve caf\u00e9 \u4f60\u597d\uff01 "
    "\U0001f600\r\n\r\n\tx  =   1\n",
    "  leading, trailing   ",
    "a<s>b</s>c <|im_start|>user\n",
]


def split(pattern: str, behavior: str = "isolated", invert: bool = False) -> Any:
    level = pre.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre.Sequence([pre.Split(Regex(pattern), behavior, invert), level])


def byte_level(splitter: Any, *, ignore_merges: bool = False, normal_form: bool = False) -> Any:
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.ByteLevel()
    if normal_form:
        tokenizer.normalizer = normalizers.NFC()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 2,
        initial_alphabet=pre.ByteLevel.alphabet(),
        special_tokens=["<s>", "</s>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS[:2], trainer)
    tokenizer.add_special_tokens(["<|im_start|>"])
    return tokenizer


def sentence_piece(*, prefix: bool) -> Any:
    """A vocabulary in the order of its scores, and every merge that follows from it."""
    words = heldout_path().read_text()[:20000].replace(" ", "\u2581")
    counts: dict[str, int] = {}
    for length in range(2, 7):
        for i in range(len(words) - length):
            piece = words[i : i + length]
            counts[piece] = counts.get(piece, 0) + 1
    pieces = sorted(counts, key=lambda p: (-counts[p] * len(p), p))
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2}
    vocabulary.update({f"<0x{i:02X}>": 3 + i for i in range(256)})
    letters = [*sorted(set(words)), "\u2581"]
    known = set(letters)
    made = []
    for _ in range(4):
        for piece in pieces[:600]:
            halves = any(piece[:k] in known and piece[k:] in known for k in range(1, len(piece)))
            if halves and piece not in known and len(made) < 300:
                made.append(piece)
                known.add(piece)
    for piece in [*made, *dict.fromkeys(letters)]:
        vocabulary.setdefault(piece, len(vocabulary))
    merges = [
        (piece[:k], piece[k:])
        for piece in made
        for k in range(1, len(piece))
        if piece[:k] in known and piece[k:] in known
    ]
    runs = [] if prefix else ["\n\n", "\n\n\n", "\u2581\u2581", "\u2581\u2581\u2581"]
    for run in runs:  # as Gemma has them: found whole in a text, and yet in the list of merges
        vocabulary.setdefault(run, len(vocabulary))
    merges = [pair for pair in merges if "".join(pair) not in runs]
    merges = [(run[:k], run[k:]) for k in (2, 1) for run in runs if k < len(run)] + merges
    tokenizer = Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    steps = [normalizers.Prepend("\u2581")] if prefix else []
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "\u2581")])
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.add_tokens([AddedToken(run, normalized=True) for run in runs])
    tokenizer.add_tokens([AddedToken("<|im_start|>", special=True, normalized=False)])
    return tokenizer


TOKENIZERS: dict[str, tuple[Any, str]] = {
    "gpt-2": (lambda: byte_level(pre.ByteLevel(add_prefix_space=False)), "gpt-2"),
    "smollm": (
        lambda: byte_level(pre.Sequence([pre.Digits(True), pre.ByteLevel(add_prefix_space=False)])),
        "smollm",
    ),
    "llama-3": (lambda: byte_level(split(LLAMA3), ignore_merges=True), "llama-bpe"),
    "llama-3 with merges": (lambda: byte_level(split(LLAMA3)), "dbrx"),
    "qwen2": (lambda: byte_level(split(QWEN2), normal_form=True), "qwen2"),
    "tekken": (lambda: byte_level(split(TEKKEN), ignore_merges=True), "tekken"),
    "gpt-4o": (lambda: byte_level(split(GPT4O, "removed", True)), "gpt-4o"),
    "llama": (lambda: sentence_piece(prefix=True), "default"),
    "gemma": (lambda: sentence_piece(prefix=False), "default"),
}

TOKENIZE = """
import json, sys
import llama_cpp
job = json.load(open(sys.argv[1]))
result = {}
for path in job["files"]:
    model = llama_cpp.Llama(path, vocab_only=True, verbose=False)
    result[path] = [
        model.tokenize(text.encode(), add_bos=False, special=True) for text in job["texts"]
    ]
json.dump(result, open(sys.argv[2], "w"))
"""


def save(tokenizer: Any, directory: Path, **changes: Any) -> Path:
    """A model with this tokenizer."""
    model = tiny_models.build("llama", vocab_size=VOCABULARY, **changes)
    tiny_models.save(model, directory)
    tokenizer.save(str(directory / "tokenizer.json"))
    return directory


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_kind_is_found(name: str, tmp_path: Path) -> None:
    make, kind = TOKENIZERS[name]
    make().save(str(tmp_path / "tokenizer.json"))
    found = describe_vocabulary(tmp_path, VOCABULARY)
    assert found.metadata["tokenizer.ggml.pre"].value == kind
    assert len(found.metadata["tokenizer.ggml.tokens"].value) == VOCABULARY  # type: ignore[arg-type]
    assert bool(found.notes) == (name == "qwen2")


@pytest.mark.parametrize("name", TOKENIZERS)
def test_our_own_reader_makes_the_same_tokens(name: str, tmp_path: Path) -> None:
    tokenizer = TOKENIZERS[name][0]()
    source = open_checkpoint(save(tokenizer, tmp_path / "source"))
    write_gguf(source, tmp_path / "out.gguf", "F16")
    ours = load_tokenizer(tmp_path / "out.gguf")
    for text in TEXTS:
        expected = tokenizer.encode(text, add_special_tokens=False).ids
        assert ours.encode(text, add_special_tokens=False) == expected


@pytest.mark.skipif(not PYTHON, reason="TRIMTAB_LLAMA_PYTHON is not set")
def test_llama_cpp_makes_the_same_tokens(tmp_path: Path) -> None:
    files, expected = {}, {}
    for name, (make, _) in TOKENIZERS.items():
        tokenizer = make()
        source = open_checkpoint(save(tokenizer, tmp_path / name))
        files[name] = str(tmp_path / f"{name}.gguf")
        write_gguf(source, Path(files[name]), "F16")
        expected[name] = [tokenizer.encode(text, add_special_tokens=False).ids for text in TEXTS]
    job = {"files": list(files.values()), "texts": TEXTS}
    (tmp_path / "job.json").write_text(json.dumps(job))
    assert PYTHON is not None
    subprocess.run(
        [PYTHON, "-c", TOKENIZE, str(tmp_path / "job.json"), str(tmp_path / "out.json")],
        check=True,
        capture_output=True,
        timeout=300,
    )
    found = json.loads((tmp_path / "out.json").read_text())
    for name, path in files.items():
        assert found[path] == expected[name], name


def refused(tmp_path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        describe_vocabulary(tmp_path, VOCABULARY)
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "tokenizer.json") in str(caught.value)
    return str(caught.value)


def test_other_splits_are_refused(tmp_path: Path) -> None:
    for splitter in (
        split(LLAMA3.replace("{1,3}", "{1,2}")),
        split(LLAMA3, "merged_with_next"),
        pre.Sequence([pre.Digits(False), pre.ByteLevel(add_prefix_space=False)]),
        pre.Sequence([pre.Punctuation(), pre.ByteLevel(add_prefix_space=False)]),
        pre.ByteLevel(add_prefix_space=True),
    ):
        byte_level(splitter).save(str(tmp_path / "tokenizer.json"))
        assert "no pre-tokenizer that splits text as this one" in refused(tmp_path)
    tokenizer = byte_level(split(QWEN2))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert "no such normalizer" in refused(tmp_path)


def test_merges_that_are_not_those_of_scores_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    sentence_piece(prefix=True).save(str(path))
    tokenizer = json.loads(path.read_text())
    merges = tokenizer["model"]["merges"]
    pairs: dict[str, list[list[str]]] = {}
    for left, right in merges:
        pairs.setdefault(left + right, []).append([left, right])
    one = next(found for found in pairs.values() if len(found) > 1)[0]
    others = [pair for pair in merges if pair != one]
    for changed in (others, [*others, one]):
        tokenizer["model"]["merges"] = changed
        path.write_text(json.dumps(tokenizer))
        assert "do not follow from scores" in refused(tmp_path)


def test_other_kinds_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, "[UNK]")).save(str(path))
    assert "only BPE" in refused(tmp_path)
    path.write_text('{"model": {"type": "BPE", "merges": 3, "vocab": {}}}')
    assert "not a tokenizer that is understood" in refused(tmp_path)
    byte_level(pre.ByteLevel(add_prefix_space=False)).save(str(path))
    with pytest.raises(CheckpointError, match="699 tokens, the model has 600"):
        describe_vocabulary(tmp_path, 600)


def test_without_a_tokenizer_the_file_says_so(tmp_path: Path) -> None:
    found = describe_vocabulary(tmp_path, 10)
    assert found.metadata["tokenizer.ggml.model"].value == "no_vocab"
    assert found.notes == ["without tokenizer.json, the file has no tokenizer"]
