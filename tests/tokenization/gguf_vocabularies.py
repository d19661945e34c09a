"""Vocabularies as GGUF files, written by the gguf package as llama.cpp's converter does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
from tokenizers import Tokenizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6


def tokens_of(backend: Tokenizer) -> list[str]:
    vocabulary = backend.get_vocab(with_added_tokens=True)
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    assert [vocabulary[token] for token in tokens] == list(range(len(tokens)))
    return tokens


def types_of(backend: Tokenizer, tokens: list[str]) -> list[int]:
    added = backend.get_added_tokens_decoder()
    types = [BYTE if t.startswith("<0x") and len(t) == 6 else NORMAL for t in tokens]
    for i, token in added.items():
        types[i] = CONTROL if token.special else USER_DEFINED
    if "<unk>" in tokens:
        types[tokens.index("<unk>")] = UNKNOWN
    return types


def write(
    path: Path, backend: Tokenizer, *, pre: str = "", arch: str = "llama", **keys: Any
) -> Path:
    """A file with nothing but a vocabulary; see `add`."""
    writer = gguf.GGUFWriter(path, arch)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(32)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(32)
    add(writer, backend, pre, **keys)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add(writer: gguf.GGUFWriter, backend: Tokenizer, pre: str, **keys: Any) -> None:
    """Byte-level with `pre`, SentencePiece without. `keys`: further ones of `tokenizer.ggml`, and
    `chat_template`. <s> and </s> are the ends unless they say otherwise."""
    tokens = tokens_of(backend)
    writer.add_tokenizer_model("gpt2" if pre else "llama")
    writer.add_token_list(tokens)
    writer.add_token_types(types_of(backend, tokens))
    if pre:
        writer.add_tokenizer_pre(pre)
        merges = json.loads(backend.to_str())["model"]["merges"]
        writer.add_token_merges([" ".join(pair) for pair in merges])
    else:
        writer.add_token_scores([float(-i) for i in range(len(tokens))])
    for name, token in (("bos_token_id", "<s>"), ("eos_token_id", "</s>")):
        if token in tokens:
            keys.setdefault(name, tokens.index(token))
    template = keys.pop("chat_template", None)
    if template is not None:
        writer.add_chat_template(template)
    for key, value in keys.items():
        if isinstance(value, bool):
            writer.add_bool(f"tokenizer.ggml.{key}", value)
        else:
            writer.add_uint32(f"tokenizer.ggml.{key}", value)


def add_builtin(writer: gguf.GGUFWriter, directory: Path) -> None:
    """The vocabulary of the built-in models."""
    backend = Tokenizer.from_file(str(directory / "tokenizer.json"))
    config = json.loads((directory / "tokenizer_config.json").read_text())
    ids = {
        "bos_token_id": backend.token_to_id(config["bos_token"]),
        "eos_token_id": backend.token_to_id(config["eos_token"]),
        "padding_token_id": backend.token_to_id(config["pad_token"]),
    }
    add(writer, backend, "smollm", add_bos_token=True, chat_template=config["chat_template"], **ids)
