"""Small tokenizers of every kind, trained here, written out as model directories."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer, UnigramTrainer, WordPieceTrainer

CORPUS = [
    "def quicksort(items): return sorted(items)  # the quick brown fox",
    "Hello, world! It's a test of the tokenizer, isn't it?",
    "日本語のテキストと中文文本。 Ünïcödé naïve café",
    "emoji 👩‍👩‍👧 👍🏽 🇩🇪 and e\u0301 combining; नमस्ते สวัสดี",
    "    indented\n\tlines\r\n  and   spaces  ",
] * 4
SPECIALS = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
KINDS = ["byte-level", "llama-2", "gemma", "metaspace", "wordpiece"]


def _special_tokens() -> list[AddedToken]:
    return [AddedToken(text, special=True, normalized=False) for text in SPECIALS]


def byte_level() -> Tokenizer:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=500,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    return backend


def _with_bytes(backend: Tokenizer) -> Tokenizer:
    """The same model with the 256 byte-fallback tokens, as SentencePiece makes them."""
    state = json.loads(backend.to_str())
    model = state["model"]
    model["byte_fallback"] = True
    pieces = [f"<0x{byte:02X}>" for byte in range(256)]
    if model["type"] == "BPE":
        model["vocab"].update({piece: len(model["vocab"]) + i for i, piece in enumerate(pieces)})
    else:
        model["vocab"] += [[piece, -20.0] for piece in pieces]
    return Tokenizer.from_str(json.dumps(state))


def llama_2() -> Tokenizer:
    """BPE with byte fallback; a space is put before the text and taken off again."""
    backend = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    trainer = BpeTrainer(vocab_size=260, special_tokens=["<unk>"], show_progress=False)
    backend.train_from_iterator(CORPUS[:2], trainer)  # ASCII: the rest must fall back to bytes
    backend = _with_bytes(backend)
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return backend


def gemma() -> Tokenizer:
    """BPE with byte fallback; leading spaces are part of the text."""
    backend = llama_2()
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return backend


def metaspace() -> Tokenizer:
    """Unigram; the pre-tokenizer and the decoder know about the leading space."""
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = UnigramTrainer(
        vocab_size=200, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    backend.decoder = decoders.Metaspace()
    return backend


def wordpiece() -> Tokenizer:
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = WordPieceTrainer(vocab_size=300, special_tokens=["[UNK]"], show_progress=False)
    backend.train_from_iterator(CORPUS, trainer)
    backend.decoder = decoders.WordPiece()
    return backend


def make_backend(kind: str, bos: bool = True) -> Tokenizer:
    backend = {
        "byte-level": byte_level,
        "llama-2": llama_2,
        "gemma": gemma,
        "metaspace": metaspace,
        "wordpiece": wordpiece,
    }[kind]()
    backend.add_special_tokens(_special_tokens())
    backend.add_tokens([AddedToken("<tool>", special=False, normalized=False)])
    if bos:
        backend.post_processor = TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", backend.token_to_id("<s>"))]
        )
    return backend


def write_model(path: Path, backend: Tokenizer, **config: Any) -> Path:
    """`config` is `tokenizer_config.json`; BOS and EOS are filled in."""
    path.mkdir(parents=True, exist_ok=True)
    backend.save(str(path / "tokenizer.json"))
    values = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": {"__type": "AddedToken", "content": "</s>", "special": True},
        **config,
    }
    (path / "tokenizer_config.json").write_text(json.dumps(values))
    return path
