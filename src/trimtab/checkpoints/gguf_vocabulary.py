"""tokenizer.json as llama.cpp knows tokenizers: a kind, a pre-tokenizer by name, tokens, merges.

Two kinds are written:

    gpt2     byte-level BPE; how text is split before it is one of the splits that llama.cpp has by
             name, and the name is chosen by what tokenizer.json itself says
    llama    BPE as SentencePiece does it: the merges of tokenizer.json must be just those that
             follow from one score for each token

Anything else is refused: a tokenizer that is nearly the same gives other answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trimtab.checkpoints.gguf_writer import Value
from trimtab.checkpoints.json_file import read_json_object
from trimtab.errors import CheckpointError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
SPECIAL_NAMES = {"bos": "bos", "eos": "eos", "unk": "unknown", "sep": "seperator", "pad": "padding"}

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = r"[^\r\n\p{L}\p{N}]?"
_SLASHED_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"

# A regex that splits, and whether merges are ignored for whole tokens -> llama.cpp's name.
_SPLITS = {
    (f"{_CONTRACTIONS}|{_WORDS}|" + r"\p{N}{1,3}|" + _TAIL, True): "llama-bpe",
    (f"{_CONTRACTIONS}|{_WORDS}|" + r"\p{N}{1,3}|" + _TAIL, False): "dbrx",
    (f"{_CONTRACTIONS}|{_WORDS}|" + r"\p{N}|" + _TAIL, False): "qwen2",
    (
        f"{_CASED}{_UPPER}*{_LOWER}+|{_CASED}{_UPPER}+{_LOWER}*|" + r"\p{N}|" + _SLASHED_TAIL,
        True,
    ): "tekken",
    (
        f"{_CASED}{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|{_CASED}{_UPPER}+{_LOWER}*{_CONTRACTIONS}?|"
        + r"\p{N}{1,3}|"
        + _SLASHED_TAIL,
        False,
    ): "gpt-4o",
}


@dataclass
class Vocabulary:
    metadata: dict[str, Value] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def describe_vocabulary(directory: Path, vocab_size: int) -> Vocabulary:
    """The tokenizer of a model directory. Without a tokenizer.json: none, and a note that says so.

    Raises CheckpointError, one line naming the file, for a tokenizer that llama.cpp does not have.
    """
    path = directory / "tokenizer.json"
    if not path.exists():
        values = {"tokenizer.ggml.model": Value("string", "no_vocab")}
        return Vocabulary(values, ["without tokenizer.json, the file has no tokenizer"])
    tokenizer = read_json_object(path)
    model = tokenizer.get("model")
    if not isinstance(model, dict) or model.get("type") != "BPE":
        raise CheckpointError(f"{path}: only BPE tokenizers can be written to GGUF")
    try:
        result = _described(tokenizer, model, vocab_size, path)
        _add_special_tokens(result, tokenizer, directory)
    except (KeyError, TypeError, AttributeError, IndexError, ValueError, OSError):
        raise CheckpointError(f"{path}: is not a tokenizer that is understood here") from None
    return result


def _described(
    tokenizer: Mapping[str, Any], model: Mapping[str, Any], vocab_size: int, path: Path
) -> Vocabulary:
    result = Vocabulary()
    sentence_piece = bool(model.get("byte_fallback"))
    merges = [_pair(merge) for merge in model["merges"]]
    texts, types = _tokens(tokenizer, model, vocab_size, sentence_piece)
    if len(texts) > vocab_size:
        raise CheckpointError(f"{path}: {len(texts)} tokens, the model has {vocab_size}")
    put = result.metadata
    put["tokenizer.ggml.model"] = Value("string", "llama" if sentence_piece else "gpt2")
    put["tokenizer.ggml.pre"] = Value(
        "string", "default" if sentence_piece else _split_name(tokenizer, model, path)
    )
    put["tokenizer.ggml.tokens"] = Value("string", texts)
    put["tokenizer.ggml.token_type"] = Value("i32", types)
    if sentence_piece:
        put["tokenizer.ggml.scores"] = Value("f32", _scores(texts, types, merges, path))
        put["tokenizer.ggml.add_space_prefix"] = Value("bool", _space_prefix(tokenizer, path))
    else:
        put["tokenizer.ggml.merges"] = Value("string", [" ".join(pair) for pair in merges])
        if tokenizer.get("normalizer") is not None:
            result.notes.append("llama.cpp does not bring text into the normal form NFC")
    return result


def _pair(merge: Any) -> tuple[str, str]:
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right


def _tokens(
    tokenizer: Mapping[str, Any], model: Mapping[str, Any], vocab_size: int, sentence_piece: bool
) -> tuple[list[str], list[int]]:
    """Text and type of every id; ids that no token has are filled up."""
    added = {entry["id"]: entry for entry in tokenizer.get("added_tokens") or []}
    by_id = {number: text for text, number in model["vocab"].items()}
    texts, types = [], []
    for number in range(max([vocab_size, *(i + 1 for i in by_id), *(i + 1 for i in added)])):
        text, kind = by_id.get(number, f"[PAD{number}]"), NORMAL
        if number in added:
            text = added[number]["content"]
            kind = CONTROL if added[number]["special"] else USER_DEFINED
            if sentence_piece and text == model.get("unk_token"):
                kind = UNKNOWN
            if sentence_piece and kind == USER_DEFINED:
                text = text.replace("\u2581", " ")  # it is looked for before spaces are marked
        elif number not in by_id:
            kind = UNUSED
        elif sentence_piece and len(text) == 6 and text.startswith("<0x") and text[-1] == ">":
            kind = BYTE
        elif sentence_piece and text == model.get("unk_token"):
            kind = UNKNOWN
        texts.append(text)
        types.append(kind)
    return texts, types


def _split_name(tokenizer: Mapping[str, Any], model: Mapping[str, Any], path: Path) -> str:
    """llama.cpp's name of how text is split before byte-level BPE."""
    if (tokenizer.get("normalizer") or {"type": "NFC"}) != {"type": "NFC"}:
        raise CheckpointError(f"{path}: llama.cpp has no such normalizer")
    steps = tokenizer["pre_tokenizer"]
    steps = steps["pretokenizers"] if steps["type"] == "Sequence" else [steps]
    *splits, level = steps
    ignores = bool(model.get("ignore_merges"))
    if level["type"] == "ByteLevel" and not level.get("add_prefix_space"):
        if level.get("use_regex", True):
            name = {"[]": "gpt-2", "['Digits']": "smollm"}.get(str([s["type"] for s in splits]))
            digits = all(split.get("individual_digits") for split in splits)
            if name is not None and digits and not ignores:
                return name
        elif len(splits) == 1 and splits[0]["type"] == "Split" and _isolates(splits[0]):
            name = _SPLITS.get((splits[0]["pattern"]["Regex"], ignores))
            if name is not None:
                return name
    raise CheckpointError(f"{path}: llama.cpp has no pre-tokenizer that splits text as this one")


def _isolates(split: Mapping[str, Any]) -> bool:
    """Every match is a piece; what is between matches too. (Both spellings cover all text.)"""
    return (split["behavior"], split.get("invert")) in (("Isolated", False), ("Removed", True))


def _scores(
    texts: list[str], types: list[int], merges: list[tuple[str, str]], path: Path
) -> list[float]:
    """Less than that of any token that is merged before it; and the proof that merging by scores
    is merging by the list: tokens come in the order of their first merge, and every two tokens
    that make a third are in the list. Added tokens are found in a text before anything is merged,
    so that how they would be merged does not matter."""
    normal = {text for text, kind in zip(texts, types, strict=True) if kind == NORMAL}
    first: dict[str, int] = {}
    rank = -1
    for left, right in merges:
        if left + right in normal:
            found = first.setdefault(left + right, len(first))
            if found < rank:
                raise CheckpointError(f"{path}: its merges do not follow from scores of tokens")
            rank = found
    listed = set(merges)
    for text in first:
        for cut in range(1, len(text)):
            pair = (text[:cut], text[cut:])
            if pair[0] in normal and pair[1] in normal and pair not in listed:
                raise CheckpointError(f"{path}: its merges do not follow from scores of tokens")
    return [
        -float(first.get(text, len(first))) if kind == NORMAL else 0.0
        for text, kind in zip(texts, types, strict=True)
    ]


def _space_prefix(tokenizer: Mapping[str, Any], path: Path) -> bool:
    """Whether a text is begun by a space; refuses what is done to it besides."""
    steps = tokenizer.get("normalizer") or {"type": "Sequence", "normalizers": []}
    steps = steps["normalizers"] if steps["type"] == "Sequence" else [steps]
    kinds = [(step["type"], step.get("prepend"), step.get("content")) for step in steps]
    prefix = ("Prepend", "\u2581", None) in kinds
    rest = [kind for kind in kinds if kind != ("Prepend", "\u2581", None)]
    before = tokenizer.get("pre_tokenizer")
    if before is not None and before["type"] == "Metaspace" and not kinds:
        scheme = before.get(
            "prepend_scheme", "always" if before.get("add_prefix_space") else "never"
        )
        if before.get("split", True) is False or scheme == "never":
            return bool(scheme != "never")
    elif rest == [("Replace", None, "\u2581")] and (
        before is None or (before["type"], before.get("pattern")) == ("Split", {"String": " "})
    ):
        return prefix
    raise CheckpointError(f"{path}: llama.cpp has no SentencePiece tokenizer that treats text so")


def _add_special_tokens(result: Vocabulary, tokenizer: Mapping[str, Any], directory: Path) -> None:
    """Ids by name, what is put around a text, and the chat template."""
    ids = dict(tokenizer["model"]["vocab"])
    ids.update({entry["content"]: entry["id"] for entry in tokenizer.get("added_tokens") or []})
    configs = [
        read_json_object(directory / name)
        for name in ("tokenizer_config.json", "special_tokens_map.json")
        if (directory / name).exists()
    ]
    for name, key in SPECIAL_NAMES.items():
        for config in configs:
            value = config.get(f"{name}_token")
            text = value.get("content") if isinstance(value, dict) else value
            if text in ids:
                result.metadata[f"tokenizer.ggml.{key}_token_id"] = Value("u32", ids[text])
                break
    begin, end = _surroundings(tokenizer.get("post_processor"))
    result.metadata["tokenizer.ggml.add_bos_token"] = Value("bool", begin)
    result.metadata["tokenizer.ggml.add_eos_token"] = Value("bool", end)
    template = _chat_template(directory, configs)
    if template is not None:
        result.metadata["tokenizer.chat_template"] = Value("string", template)


def _surroundings(processor: Any) -> tuple[bool, bool]:
    """Whether a special token is put before, and one behind, a text."""
    steps = [processor] if processor else []
    if processor and processor["type"] == "Sequence":
        steps = processor["processors"]
    for step in steps:
        if step["type"] == "TemplateProcessing":
            parts = ["SpecialToken" in part for part in step["single"]]
            text = parts.index(False)
            return any(parts[:text]), any(parts[text:])
    return False, False


def _chat_template(directory: Path, configs: list[dict[str, Any]]) -> str | None:
    path = directory / "chat_template.jinja"
    if path.exists():
        return path.read_text(encoding="utf-8")
    value = configs[0].get("chat_template") if configs else None
    if isinstance(value, list):
        named = {entry["name"]: entry["template"] for entry in value}
        value = named.get("default")
    return value if isinstance(value, str) else None
