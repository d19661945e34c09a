"""A Tokenizer from a model directory in Hugging Face layout, or from a GGUF file."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

from trimtab.errors import CheckpointError, UserError
from trimtab.tokenization.chat_template import ChatTemplate
from trimtab.tokenization.tokenizer import Tokenizer

MAX_TOKENIZER_BYTES = 256 << 20
MAX_CONFIG_BYTES = 16 << 20
SPECIAL_TOKEN_NAMES = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
# Vocabularies in other formats, which would have to be converted first.
FOREIGN_FILES = ("tokenizer.model", "spiece.model", "tekken.json", "tiktoken.model", "vocab.json")


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Read `tokenizer.json` and, where present, `tokenizer_config.json`, `special_tokens_map.json`,
    `generation_config.json`, `config.json` and the chat template in any of its forms.

    What is put around a text (BOS) is the post-processor of `tokenizer.json`, as in transformers:
    `add_bos_token` and `add_eos_token` in `tokenizer_config.json` are for vocabularies without one.

    Of a GGUF file (or a directory with nothing but one), the tokenizer of its metadata; where it
    has none, the tokenizer.json beside it.

    Raises CheckpointError, one line naming the file, for anything missing, damaged or unknown, and
    UserError where the package tokenizers is not installed.
    """
    from trimtab.checkpoints.gguf_parts import gguf_of

    if importlib.util.find_spec("tokenizers") is None:
        raise UserError(
            "the package tokenizers is not installed: there is no text without it (pip install "
            "tokenizers); an Engine takes and gives token ids"
        )
    directory = Path(path)
    gguf = gguf_of(directory)
    if gguf is not None:
        from trimtab.tokenization.gguf import read_gguf_tokenizer

        tokenizer = read_gguf_tokenizer(gguf)
        if tokenizer is not None:
            return tokenizer
        directory = gguf.parent
        if not (directory / "tokenizer.json").exists():
            raise CheckpointError(f"{gguf}: has no vocabulary, and no tokenizer.json is beside it")
    if not directory.is_dir():
        raise CheckpointError(f"{directory}: is not a model directory")
    config = _read_json(directory / "tokenizer_config.json")
    backend = _read_backend(directory)
    _add_missing_tokens(backend, config, directory)
    special_tokens = _special_tokens(config, _read_json(directory / "special_tokens_map.json"))
    return Tokenizer(
        backend,
        special_tokens,
        _eos_token_ids(directory, backend, special_tokens),
        _chat_template(directory, config, special_tokens),
    )


def _read_text(path: Path, limit: int) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
        if len(data) > limit:
            raise CheckpointError(f"{path}: is larger than {limit >> 20} MiB")
        return data.decode()
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or 'cannot be read'}") from None
    except UnicodeDecodeError:
        raise CheckpointError(f"{path}: is not UTF-8 text") from None


def _read_json(path: Path) -> dict[str, Any]:
    """The object in the file; empty if there is no such file."""
    if not path.exists():
        return {}
    try:
        value = json.loads(_read_text(path, MAX_CONFIG_BYTES))
    except (ValueError, RecursionError):
        raise CheckpointError(f"{path}: is not valid JSON") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: must hold a JSON object")
    return value


def _read_backend(directory: Path) -> Any:
    import tokenizers

    path = directory / "tokenizer.json"
    if not path.exists():
        foreign = [name for name in FOREIGN_FILES if (directory / name).exists()]
        foreign += sorted(file.name for file in directory.glob("*.tiktoken"))
        found = f" (found {foreign[0]}: convert it with transformers first)" if foreign else ""
        raise CheckpointError(f"{path}: no such file, and no other vocabulary can be read{found}")
    text = _read_text(path, MAX_TOKENIZER_BYTES)
    try:
        backend = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the library raises bare Exception for whatever is wrong
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{path}: is not a tokenizer: {reason}") from None
    backend.no_truncation()
    backend.no_padding()
    return backend


def _token_text(value: Any) -> str | None:
    """A token as a config file writes it: its text, or an object around it."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _special_tokens(*configs: dict[str, Any]) -> dict[str, str]:
    """By name; the first config that has one wins."""
    tokens: dict[str, str] = {}
    for config in configs:
        for name in SPECIAL_TOKEN_NAMES:
            text = _token_text(config.get(name))
            if text is not None:
                tokens.setdefault(name, text)
    return tokens


def _add_missing_tokens(backend: Any, config: dict[str, Any], directory: Path) -> None:
    """Added tokens that only `tokenizer_config.json` knows."""
    import tokenizers

    entries = config.get("added_tokens_decoder") or {}
    if not isinstance(entries, dict) or not all(str(key).isdecimal() for key in entries):
        raise CheckpointError(
            f"{directory / 'tokenizer_config.json'}: added_tokens_decoder must map ids to tokens"
        )
    for key, entry in sorted(entries.items(), key=lambda item: int(item[0])):
        text = _token_text(entry)
        if not text or backend.token_to_id(text) is not None:
            continue
        flags = entry if isinstance(entry, dict) else {}
        names = ("lstrip", "rstrip", "single_word", "normalized", "special")
        options = {name: bool(flags[name]) for name in names if name in flags}
        backend.add_tokens([tokenizers.AddedToken(text, **options)])
        if backend.token_to_id(text) != int(key):
            raise CheckpointError(
                f"{directory / 'tokenizer_config.json'}: added token {text!r} cannot have id {key}"
            )


def _eos_token_ids(
    directory: Path, backend: Any, special_tokens: dict[str, str]
) -> tuple[int, ...]:
    """Those of `generation_config.json` (else of `config.json`), and the tokenizer's own."""
    ids: list[int] = []
    for name in ("generation_config.json", "config.json"):
        value = _read_json(directory / name).get("eos_token_id")
        if value is None:
            continue
        values = value if isinstance(value, list) else [value]
        if not all(type(token_id) is int and token_id >= 0 for token_id in values):
            raise CheckpointError(f"{directory / name}: eos_token_id must be a token id or a list")
        ids += values
        break
    own = backend.token_to_id(special_tokens.get("eos_token", ""))
    if own is not None:
        ids.append(own)
    return tuple(dict.fromkeys(ids))


def _chat_template(
    directory: Path, config: dict[str, Any], special_tokens: dict[str, str]
) -> ChatTemplate | None:
    """`chat_template.jinja` first, then `tokenizer_config.json`: a string, or a list of
    {"name", "template"} of which "default" is used, and "tool_use" for requests with tools."""
    path = directory / "chat_template.jinja"
    if path.exists():
        tools_path = directory / "additional_chat_templates" / "tool_use.jinja"
        for_tools = _read_text(tools_path, MAX_CONFIG_BYTES) if tools_path.exists() else None
        return ChatTemplate(_read_text(path, MAX_CONFIG_BYTES), special_tokens, for_tools)
    value = config.get("chat_template")
    if value is None:
        value = _read_json(directory / "chat_template.json").get("chat_template")
    if value is None:
        return None
    if isinstance(value, str):
        return ChatTemplate(value, special_tokens)
    where = directory / "tokenizer_config.json"
    try:
        named = {entry["name"]: entry["template"] for entry in value}
    except (TypeError, KeyError):
        named = {}
    if not named or not all(isinstance(v, str) for kv in named.items() for v in kv):
        raise CheckpointError(f"{where}: chat_template must be a string or a list of named ones")
    if "default" not in named:
        raise CheckpointError(f"{where}: chat_template has no template named default")
    return ChatTemplate(named["default"], special_tokens, named.get("tool_use"))
