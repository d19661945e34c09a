"""GGUF models that are wrong: one line each, whatever is wrong, and no memory to speak of."""

from __future__ import annotations

import math
import os
import re
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf_handmade as handmade
import numpy as np
import pytest
from command_line import refused_line
from gguf_handmade import METADATA, TOKENS, tensors, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trimtab.checkpoints import open_checkpoint
from trimtab.errors import CheckpointError, UserError
from trimtab.tokenization import gguf, load_tokenizer


def read_all(path: Path) -> None:
    checkpoint = open_checkpoint(path)
    for name in checkpoint.names():
        checkpoint.format(name)
        checkpoint.tensor(name)
    load_tokenizer(path)


def test_the_undamaged_model_is_read(tmp_path: Path) -> None:
    path = write(tmp_path, handmade.model())
    checkpoint, tokenizer = open_checkpoint(path), load_tokenizer(path)
    read_all(path)
    assert checkpoint.spec.vocab_size == 12
    assert tokenizer.encode("ab a") == [5, 7]


def changed(**keys: Any) -> dict[str, Any]:
    """Metadata with some keys changed or (None) left out; __ stands for a dot; keys without a
    room are the architecture's."""
    rooms = ("general", "tokenizer", "split", "llama")
    names = {key: key.replace("__", ".") for key in keys}
    full = {k: n if n.split(".")[0] in rooms else f"llama.{n}" for k, n in names.items()}
    return {**METADATA, **{full[key]: value for key, value in keys.items()}}


def vocabulary(**keys: Any) -> dict[str, Any]:
    return changed(**{f"tokenizer__ggml__{key}": value for key, value in keys.items()})


def sentencepiece(**keys: Any) -> dict[str, Any]:
    return vocabulary(model="llama", **keys)


NAN_BLOCK = np.array([math.nan], "<f2").tobytes() + bytes(32)
FLOATS = struct.pack("<4f", 1.0, 2.0, -1.0, 4.0)
Q = "blk.0.attn_q.weight"

METADATA_DAMAGE: dict[str, tuple[dict[str, Any], str]] = {
    "no architecture": (changed(general__architecture=None), "general.architecture is missing"),
    "an unknown architecture": (changed(general__architecture="mamba"), "'mamba' .supported: "),
    "a number as architecture": (changed(general__architecture=7), "unknown architecture 7"),
    "a list as architecture": (changed(general__architecture=["llama"]), "unknown architecture"),
    "an adapter": (changed(general__type="adapter"), "'adapter': not a model"),
    "other blocks": (changed(general__quantization_version=3), "quantization_version = 3"),
    "no context": (changed(context_length=None), "llama.context_length is missing"),
    "no width": (changed(embedding_length=None), "llama.embedding_length is missing"),
    "no layers": (changed(block_count=None), "llama.block_count is missing"),
    "no mlp": (changed(feed_forward_length=None), "feed_forward_length is missing"),
    "no heads": (changed(attention__head_count=None), "head_count is missing"),
    "no epsilon": (changed(attention__layer_norm_rms_epsilon=None), "rms_norm_eps is missing"),
    "a text as layers": (changed(block_count="2"), "block_count = '2': must be an integer"),
    "a fraction of a layer": (changed(block_count=2.5), "must be an integer"),
    "fewer than no layers": (changed(block_count=-2), "block_count = -2: must be in"),
    "zero layers": (changed(block_count=0), "block_count = 0: must be in"),
    "endless layers": (changed(block_count=1 << 40), "block_count = 1099511627776: must be in"),
    "too many layers": (changed(block_count=1 << 20), "num_hidden_layers = 1048576: must be in"),
    "layers that are not there": (changed(block_count=3), "blk.2.attn_norm.weight is missing"),
    "a layer more": (changed(block_count=1), "and 8 more: LlamaForCausalLM .* no place for it"),
    "layers that differ": (changed(feed_forward_length=[64, 32]), "differs between layers"),
    "an empty list": (changed(feed_forward_length=[]), "differs between layers"),
    "zero heads": (changed(attention__head_count=0), "head_count = 0: must be in"),
    "more kv heads": (changed(attention__head_count_kv=8), "num_key_value_heads = 8"),
    "uneven kv heads": (changed(attention__head_count_kv=3), "not a multiple"),
    "an odd head": (changed(attention__key_length=7, attention__value_length=7), "head_dim = 7|7"),
    "another value head": (changed(attention__value_length=16), "different lengths"),
    "another head": (
        changed(attention__key_length=16, attention__value_length=16, rope__dimension_count=16),
        r"attn_q.weight has shape \[32, 32\], the metadata asks for \[64, 32\]",
    ),
    "a rope beyond the head": (changed(rope__dimension_count=10), "a rope of 10 dimensions"),
    "no rope": (changed(rope__dimension_count=0), "dimension_count = 0: must be in"),
    "part of a rope": (changed(rope__dimension_count=4), "not supported by this family"),
    "a base of zero": (changed(rope__freq_base=0.0), "must be a finite number above 0"),
    "a base that is no number": (changed(rope__freq_base=math.nan), "must be a finite number"),
    "an endless base": (changed(rope__freq_base=math.inf), "must be a finite number"),
    "a text as base": (changed(rope__freq_base="big"), "must be a number"),
    "an epsilon of zero": (
        changed(attention__layer_norm_rms_epsilon=0.0),
        "must be a finite number above 0",
    ),
    "experts": (changed(expert_count=8), "mixture-of-experts"),
    "attention both ways": (changed(attention__causal=False), "only causal attention"),
    "an unknown key": (changed(logit_scale=0.5), "llama.logit_scale' = 0.5 is not understood"),
    "an unknown rope": (changed(rope__scaling__type="spiral"), "'spiral' is not supported"),
    "a rope type that is a number": (changed(rope__scaling__type=3), "must be a string"),
    "linear without a factor": (changed(rope__scaling__type="linear"), "without its numbers"),
    "yarn without a factor": (changed(rope__scaling__type="yarn"), "without its numbers"),
    "an odd yarn": (
        changed(
            rope__scaling__type="yarn",
            rope__scaling__factor=4.0,
            rope__scaling__yarn_ext_factor=0.5,
        ),
        "yarn_ext_factor of 0.5",
    ),
    "an amplitude of nothing": (changed(rope__scaling__attn_factor=2.0), "attn_factor = 2.0"),
    "a context beyond counting": (changed(context_length=1 << 35), "context_length = .*must be in"),
    "a wrong alignment": (changed(general__alignment=0), "general.alignment = 0"),
    "too many tokens": (vocabulary(tokens=[f"t{i}" for i in range(13)]), "13 tokens, but"),
}
VOCABULARY_DAMAGE: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown tokenizer": (vocabulary(model="rwkv"), "model = 'rwkv' is not supported"),
    "a number as tokenizer": (vocabulary(model=1), "model = 1 is not supported"),
    "a list as tokenizer": (vocabulary(model=["gpt2"]), "is not supported"),
    "an unknown split": (vocabulary(pre="chameleon"), "'chameleon': this way to split"),
    "a list as split": (vocabulary(pre=["x"]), "this way to split"),
    "no tokens": (vocabulary(tokens=None), "ggml.tokens: must be a list of strings"),
    "numbers as tokens": (vocabulary(tokens=[1, 2]), "tokens: must be a list of strings"),
    "an empty vocabulary": (vocabulary(tokens=[]), "tokens: must be a list of strings"),
    "a token twice": (vocabulary(tokens=[*TOKENS[:-1], "a"]), "has a token twice"),
    "few types": (vocabulary(token_type=[1, 1]), "token_type: must be a finite number for each"),
    "texts as types": (vocabulary(token_type=["x"] * 10), "token_type: must be"),
    "no merges": (vocabulary(merges=None), "merges: must be a list of strings"),
    "a merge of one": (vocabulary(merges=["ab"]), "'ab' is not two tokens"),
    "a merge of strangers": (vocabulary(merges=["a zz"]), "is no tokenizer: .*zz"),
    "a merge to a stranger": (vocabulary(merges=["b a"]), "is no tokenizer: "),
    "a bos beyond": (vocabulary(bos_token_id=10), "bos_token_id = 10: must be the id"),
    "a negative bos": (vocabulary(bos_token_id=-1), "bos_token_id = -1: must be the id"),
    "a text as bos": (vocabulary(bos_token_id="<s>"), "bos_token_id = '<s>': must be a token id"),
    "a text as flag": (vocabulary(add_bos_token="yes"), "must be true or false"),
    "a bos that is not there": (
        vocabulary(add_bos_token=True, bos_token_id=None),
        "add_bos_token is true without such a token",
    ),
    "a template that is none": (
        changed(tokenizer__chat_template=7),
        "chat_template: must be a string",
    ),
    "nothing but filling": (
        vocabulary(tokens=["[PAD0]", "[PAD1]"], token_type=[5, 5], merges=["a b"]),
        "has no tokens",
    ),
    "no scores": (sentencepiece(scores=None), "scores: must be a finite number"),
    "few scores": (sentencepiece(scores=[1.0]), "scores: must be a finite number"),
    "a score that is no number": (
        sentencepiece(scores=[math.nan] * 10),
        "scores: must be a finite number",
    ),
    "an endless piece": (
        sentencepiece(tokens=[*TOKENS[:-1], "x" * 100_000]),
        "is too long for a token",
    ),
}
TENSOR_DAMAGE: dict[str, tuple[dict[str, Any], dict[str, bytes], str]] = {
    "no embedding": ({"token_embd.weight": None}, {}, "token_embd.weight is missing"),
    "no norm": ({"output_norm.weight": None}, {}, "output_norm.weight is missing"),
    "no gate": ({"blk.1.ffn_gate.weight": None}, {}, "blk.1.ffn_gate.weight is missing"),
    "a stranger": ({"blk.0.attn_sinks.weight": ((4,), 0)}, {}, "attn_sinks.* no place for it"),
    "one bias of three": ({"blk.0.attn_q.bias": ((32,), 0)}, {}, "blk.0.attn_k.bias is missing"),
    "a bias of a later layer": ({"blk.1.attn_q.bias": ((32,), 0)}, {}, "no place for it"),
    "a turned matrix": (
        {"blk.0.ffn_down.weight": ((32, 64), 0)},
        {},
        r"shape \[64, 32\], the metadata asks for \[32, 64\]",
    ),
    "a cube": ({"blk.0.ffn_up.weight": ((32, 8, 8), 0)}, {}, r"shape \[8, 8, 32\]"),
    "a flat matrix": ({"output.weight": ((384,), 0)}, {}, r"shape \[384\]"),
    "an embedding of one": ({"token_embd.weight": ((32,), 0)}, {}, "shape|tokens, but"),
    "a quantized norm": (
        {"blk.0.attn_norm.weight": ((32,), 8)},
        {},
        "stored as Q8_0: vectors must be",
    ),
    "a type of integers": ({"blk.0.ffn_up.weight": ((32, 64), 26)}, {}, "type I32"),
    "a type of two bits": ({"blk.0.ffn_up.weight": ((256, 64), 16)}, {}, "type IQ2_XXS"),
    "a type that nobody knows": ({"blk.0.ffn_up.weight": ((32, 64), 999)}, {}, "type 999"),
    "few rope factors": ({"rope_freqs.weight": ((3,), 0)}, {}, "3 entries: must have 4"),
    "rope factors in halves": ({"rope_freqs.weight": ((4,), 1)}, {}, "must be F32"),
    "rope factors below zero": (
        {"rope_freqs.weight": ((4,), 0)},
        {"rope_freqs.weight": FLOATS},
        "must be a finite number above 0",
    ),
    "long rope factors alone": (
        {"rope_factors_long.weight": ((4,), 0)},
        {},
        "rope_factors_short.weight is missing",
    ),
    "a scale that is no number": ({}, {Q: NAN_BLOCK * 32}, "a scale that is not a finite number"),
}


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_all(path)
    message = str(caught.value)
    assert str(path.parent) in message
    assert "\n" not in message
    assert len(message) < 400 + len(str(path))
    assert refused_line(path, "generate")
    return message


def check(path: Path, expected: str) -> None:
    message = refusal(path)
    assert re.search(expected, message), message


@pytest.mark.parametrize("kind", METADATA_DAMAGE)
def test_metadata(kind: str, tmp_path: Path) -> None:
    metadata, expected = METADATA_DAMAGE[kind]
    check(write(tmp_path, handmade.model(metadata)), expected)


@pytest.mark.parametrize("kind", VOCABULARY_DAMAGE)
def test_vocabulary(kind: str, tmp_path: Path) -> None:
    metadata, expected = VOCABULARY_DAMAGE[kind]
    check(write(tmp_path, handmade.model(metadata)), expected)


@pytest.mark.parametrize("kind", TENSOR_DAMAGE)
def test_tensors(kind: str, tmp_path: Path) -> None:
    changes, data, expected = TENSOR_DAMAGE[kind]
    check(write(tmp_path, handmade.model(changed=changes, data_of=data)), expected)


# ---- parts

FIRST, SECOND = "model-00001-of-00002.gguf", "model-00002-of-00002.gguf"


def write_parts(
    directory: Path,
    first: dict[str, Any] | None = None,
    second: dict[str, Any] | None = None,
    names: tuple[str, str] = (FIRST, SECOND),
    repeated: str = "",
) -> Path:
    """Two parts; `first` and `second` change what they say of the split."""
    split = {"split.no": 0, "split.count": 2, "split.tensors.count": 21}
    every = list(tensors())
    halves = every[:9], [*every[9:], *([repeated] if repeated else [])]
    metadata = {**METADATA, **split, **(first or {})}
    write(directory, handmade.model(metadata, only=halves[0]), names[0])
    metadata = {**split, "split.no": 1, **(second or {})}
    write(directory, handmade.model(metadata, only=halves[1]), names[1])
    return directory / names[0]


def test_parts_are_one_model(tmp_path: Path) -> None:
    whole = open_checkpoint(write(tmp_path, handmade.model(), "whole.gguf"))
    (tmp_path / "parts").mkdir()
    parts = open_checkpoint(write_parts(tmp_path / "parts"))
    for name in whole.names():
        assert (parts.tensor(name).data == whole.tensor(name).data).all()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"first": {"split.count": 3}}, "its name must end in -00001-of-00003.gguf"),
        ({"first": {"split.count": "2"}}, "split.count = '2': must be a number of parts"),
        ({"first": {"split.count": -2}}, "split.count = -2: must be a number"),
        ({"first": {"split.count": 1 << 60}}, "its name must end in"),
        ({"first": {"split.no": 1}}, "does not say that it is part 1 of 2"),
        ({"second": {"split.no": 0}}, "does not say that it is part 2 of 2"),
        ({"second": {"split.count": 5}}, "does not say that it is part 2 of 2"),
        ({"second": {"split.count": None}}, "does not say that it is part 2 of 2"),
        ({"first": {"split.tensors.count": 20}}, "hold 21 tensors, not 20"),
        ({"repeated": "token_embd.weight"}, "is in another part too"),
        ({"names": ("a.gguf", SECOND)}, "its name must end in"),
        ({"names": (FIRST, "other-00002-of-00002.gguf")}, "part 2 of 2 is missing"),
        ({"names": ("..-00001-of-00002.gguf", "x.gguf")}, "part 2 of 2 is missing"),
    ],
)
def test_parts_that_do_not_fit(changes: dict[str, Any], expected: str, tmp_path: Path) -> None:
    check(write_parts(tmp_path, **changes), expected)


def test_a_later_part_is_not_the_model(tmp_path: Path) -> None:
    write_parts(tmp_path)
    check(tmp_path / SECOND, "not the first part")


def test_nothing_in_a_file_leads_to_another_place(tmp_path: Path) -> None:
    """Parts are looked for beside the first, under its own name, whatever the metadata say."""
    (tmp_path / "inside").mkdir()
    write(tmp_path, handmade.model(), SECOND)
    names = {"split.name": "../model", "split.files": ["../" + FIRST, "../" + SECOND]}
    path = write_parts(tmp_path / "inside", first=names)
    (tmp_path / "inside" / SECOND).unlink()
    check(path, f"inside/{SECOND}: part 2 of 2 is missing")


def test_directories(tmp_path: Path) -> None:
    path = write(tmp_path, handmade.model())
    read_all(tmp_path)
    write(tmp_path, handmade.model(), "second.gguf")
    with pytest.raises(CheckpointError, match="name the one to open"):
        open_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="2 GGUF files"):
        load_tokenizer(tmp_path)
    read_all(path)


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    (tmp_path / "loop.gguf").symlink_to("loop.gguf")
    (tmp_path / "empty.gguf").touch()
    (tmp_path / "directory.gguf").mkdir()
    for name in ("pipe", "loop", "empty", "directory", "absent"):
        with pytest.raises(CheckpointError):
            open_checkpoint(tmp_path / f"{name}.gguf")
        with pytest.raises(CheckpointError):
            load_tokenizer(tmp_path / f"{name}.gguf")


# ---- truncation and chance

WHOLE = handmade.model()


def test_truncated(tmp_path: Path) -> None:
    for length in [*range(0, 2600, 17), *range(2600, len(WHOLE), 997), len(WHOLE) - 1]:
        refusal(write(tmp_path, WHOLE[:length]))


@settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_mutated_bytes_are_read_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(WHOLE)
    header = 2600  # most of the meaning
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, header) | st.integers(0, len(content) - 1))
        kind = data.draw(st.sampled_from(["byte", "word", "cut", "insert"]))
        if kind == "byte":
            content[place] = data.draw(st.integers(0, 255))
        elif kind == "word":
            value = data.draw(st.sampled_from([0, 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1]))
            content[place : place + 8] = value.to_bytes(8, "little")
        elif kind == "cut":
            del content[place : place + data.draw(st.integers(1, 64))]
        else:
            content[place:place] = data.draw(st.binary(min_size=1, max_size=16))
        if not content:
            break
    path = write(tmp_path, bytes(content))
    message = ""
    try:
        read_all(path)
    except UserError as error:
        message = str(error)
    assert "\n" not in message


def test_too_many_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf, "MAX_WORDS", 9)
    check(write(tmp_path, WHOLE), "tokens: 10 are too many")
    monkeypatch.setattr(gguf, "MAX_WORDS", 10)
    monkeypatch.setattr(gguf, "MAX_CHARACTERS", 7)
    check(write(tmp_path, handmade.model(sentencepiece())), "too many characters")


CHILD = """
import resource, sys
from pathlib import Path
from trimtab.checkpoints import open_checkpoint
from trimtab.errors import CheckpointError
from trimtab.tokenization import load_tokenizer
import numpy, tokenizers
page = resource.getpagesize()
now = int(Path("/proc/self/statm").read_text().split()[0]) * page
resource.setrlimit(resource.RLIMIT_AS, (now + (512 << 20),) * 2)
for path in sorted(Path(sys.argv[1]).iterdir()):
    for read in (open_checkpoint, load_tokenizer):
        try:
            read(path)
        except CheckpointError:
            continue
        raise SystemExit(f"{path}: read")
"""


def test_what_claims_to_be_huge_takes_no_memory(tmp_path: Path) -> None:
    count = struct.pack("<Q", 1 << 40)
    # Sparse: large enough for what it claims, without being so.
    files = {
        "tensors": b"GGUF" + struct.pack("<IQQ", 3, 1 << 20, 0),
        "keys": b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 16),
        "text": b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + handmade.pair("k", 8, count),
        "numbers": b"GGUF"
        + struct.pack("<IQQ", 3, 0, 1)
        + handmade.pair("k", 9, struct.pack("<IQ", 10, 1 << 21)),
        "texts": b"GGUF"
        + struct.pack("<IQQ", 3, 0, 1)
        + handmade.pair("k", 9, struct.pack("<IQ", 8, 1 << 21)),
        "many texts": b"GGUF"
        + struct.pack("<IQQ", 3, 0, 100)
        + handmade.pair("k", 9, struct.pack("<IQ", 8, 1 << 40)),
    }
    for name, content in files.items():
        path = write(tmp_path, content, f"{name}.gguf")
        os.truncate(path, 1 << 42)
    # As many texts as an array can have, all of them there.
    texts = struct.pack("<IQ", 8, 1 << 21) + handmade.text("xy") * (1 << 21)
    write(tmp_path, handmade.container([handmade.pair("k", 9, texts)], []), "all there.gguf")
    subprocess.run([sys.executable, "-c", CHILD, str(tmp_path)], check=True)
