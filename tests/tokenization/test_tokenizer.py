"""Tokenizer and its loading: the same ids as transformers, and a clear line for what is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from model_directories import CORPUS, KINDS, SPECIALS, make_backend, write_model
from transformers import AutoTokenizer

from trimtab.errors import CheckpointError, RequestError
from trimtab.tokenization import Tokenizer, load_tokenizer

TEXTS = [*CORPUS[:5], "", " ", "a<s>b<|im_end|>", "\x00\ud7ff\U0010ffff", "<tool> x <|im_start|>"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "config",
    [
        {},
        {"add_bos_token": True, "add_eos_token": True},
        {"add_bos_token": False, "bos_token": None},
    ],
)
def test_same_ids_as_transformers(tmp_path, kind, config) -> None:
    path = write_model(tmp_path, make_backend(kind), **config)
    ours, theirs = load_tokenizer(path), AutoTokenizer.from_pretrained(path)
    for text in TEXTS:
        for special in (True, False):
            ids = theirs.encode(text, add_special_tokens=special)
            assert ours.encode(text, add_special_tokens=special) == ids
            for skip in (True, False):
                assert ours.decode(ids, skip_special_tokens=skip) == theirs.decode(
                    ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False
                )
    assert ours.bos_token_id == theirs.bos_token_id
    assert ours.vocab_size == len(theirs)


def test_tokens_and_ids(tokenizer: Tokenizer) -> None:
    assert tokenizer.special_ids >= {tokenizer.token_to_id(text) for text in SPECIALS}
    assert tokenizer.token_to_id("<tool>") not in tokenizer.special_ids
    assert tokenizer.token_to_id("no such token") is None
    for token_id in range(tokenizer.vocab_size):
        piece = tokenizer.id_to_token(token_id)
        assert piece is not None
        assert tokenizer.token_to_id(piece) == token_id
    for beyond in (-1, tokenizer.vocab_size, 1 << 31):
        assert tokenizer.id_to_token(beyond) is None
        assert tokenizer.token_bytes(beyond) == b""


@pytest.mark.parametrize("kind", ["byte-level", "llama-2", "gemma", "metaspace"])
def test_token_bytes_add_up_to_the_text(tokenizers_by_kind, kind) -> None:
    tokenizer = tokenizers_by_kind[kind]
    for text in CORPUS[:5]:
        ids = tokenizer.encode(text, add_special_tokens=False)
        joined = b"".join(map(tokenizer.token_bytes, ids))
        decoded = tokenizer.decode(ids).encode()
        assert joined in (decoded, b" " + decoded)  # the space that the start of a text drops
    assert tokenizer.token_bytes(tokenizer.token_to_id("<|im_end|>")) == b"<|im_end|>"


def test_single_bytes_of_a_character(tokenizers_by_kind) -> None:
    byte_level, llama_2 = tokenizers_by_kind["byte-level"], tokenizers_by_kind["llama-2"]
    assert byte_level.token_bytes(byte_level.token_to_id("Ġ")) == b" "
    assert byte_level.token_bytes(byte_level.token_to_id("ÿ")) == b"\xff"
    assert llama_2.token_bytes(llama_2.token_to_id("<0xF0>")) == b"\xf0"
    assert llama_2.token_bytes(llama_2.token_to_id("▁")) == b" "


def test_text_that_is_not_unicode(tokenizer: Tokenizer) -> None:
    for text in ("\ud800", "ok \udfff", "x" * 1000 + "\udc00"):
        with pytest.raises(RequestError, match=f"surrogate at character {len(text) - 1}"):
            tokenizer.encode(text)


def test_ids_that_no_model_emits(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode([tokenizer.vocab_size, 1 << 30]) == ""
    for beyond in (-1, 1 << 31):
        with pytest.raises(RequestError, match="token id"):
            tokenizer.decode([beyond])


def test_end_of_text_tokens(tmp_path) -> None:
    backend = make_backend("byte-level")
    own, end = backend.token_to_id("</s>"), backend.token_to_id("<|im_end|>")
    path = write_model(tmp_path, backend)
    assert load_tokenizer(path).eos_token_ids == (own,)
    (path / "config.json").write_text(json.dumps({"eos_token_id": 7}))
    assert load_tokenizer(path).eos_token_ids == (7, own)
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": [end, own]}))
    assert load_tokenizer(path).eos_token_ids == (end, own)
    for wrong in ("x", [1.5], -1, True):
        (path / "generation_config.json").write_text(json.dumps({"eos_token_id": wrong}))
        with pytest.raises(CheckpointError, match=r"generation_config.json: eos_token_id"):
            load_tokenizer(path)


def test_special_tokens_map_fills_in(tmp_path) -> None:
    path = write_model(tmp_path, make_backend("byte-level"), bos_token=None)
    (path / "special_tokens_map.json").write_text(
        json.dumps({"bos_token": {"content": "<s>"}, "eos_token": "<|im_end|>"})
    )
    assert load_tokenizer(path).special_tokens == {"bos_token": "<s>", "eos_token": "</s>"}


def test_truncation_and_padding_of_the_file_are_not_for_us(tmp_path) -> None:
    backend = make_backend("byte-level")
    backend.enable_truncation(4)
    backend.enable_padding(length=16)
    tokenizer = load_tokenizer(write_model(tmp_path, backend))
    assert tokenizer.decode(tokenizer.encode(CORPUS[0])) == CORPUS[0]
    assert len(tokenizer.encode("a")) == 2


def test_added_tokens_that_only_the_config_knows(tmp_path) -> None:
    backend = make_backend("byte-level")
    size = backend.get_vocab_size()
    entries = {
        str(size): {"content": "<new>", "special": True, "normalized": False},
        "0": {"content": "!"},
    }
    tokenizer = load_tokenizer(write_model(tmp_path, backend, added_tokens_decoder=entries))
    assert tokenizer.encode("a<new>", False)[-1] == size
    assert size in tokenizer.special_ids
    entries = {str(size + 5): {"content": "<new>"}}
    with pytest.raises(CheckpointError, match="cannot have id"):
        load_tokenizer(write_model(tmp_path, backend, added_tokens_decoder=entries))
    with pytest.raises(CheckpointError, match="must map ids"):
        load_tokenizer(write_model(tmp_path, backend, added_tokens_decoder={"x": "y"}))


def test_clear_errors(tmp_path) -> None:
    def refused(match: str) -> None:
        with pytest.raises(CheckpointError, match=match) as caught:
            load_tokenizer(tmp_path)
        assert "\n" not in str(caught.value)

    with pytest.raises(CheckpointError, match="is not a model directory"):
        load_tokenizer(tmp_path / "missing")
    refused("tokenizer.json: no such file")
    (tmp_path / "tokenizer.model").write_bytes(b"\x0a\x0e")
    refused(r"no such file.*found tokenizer.model: convert it")
    whole = make_backend("byte-level").to_str()
    for text in ("", "{}", "[1]", whole[: len(whole) // 2], '{"model": {"type": "Nonsense"}}'):
        (tmp_path / "tokenizer.json").write_text(text)
        refused("tokenizer.json: is not a tokenizer")
    (tmp_path / "tokenizer.json").write_bytes(b"\xff\xfe")
    refused("tokenizer.json: is not UTF-8")
    (tmp_path / "tokenizer.json").write_text(whole)
    for name in ("tokenizer_config.json", "special_tokens_map.json", "generation_config.json"):
        for text in ("{", "[1]", "[" * 100_000):
            (tmp_path / name).write_text(text)
            refused(f"{name}: (is not valid JSON|must hold)")
        (tmp_path / name).unlink()
    (tmp_path / "tokenizer_config.json").mkdir()
    refused("tokenizer_config.json: Is a directory")


def test_nothing_heavy_is_imported_early() -> None:
    code = "import sys, trimtab.tokenization; print(*sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert not {"tokenizers", "jinja2", "transformers", "numpy"} & set(run.stdout.split())
