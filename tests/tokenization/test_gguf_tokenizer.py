"""Tokenizers of GGUF files: the ids of the original, of transformers, of llama.cpp."""

from __future__ import annotations

import json
import os
import subprocess
import unicodedata
from pathlib import Path

import gguf_vocabularies
import model_directories
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model_directories import CORPUS, make_backend
from tokenizers import AddedToken, Tokenizer, pre_tokenizers
from transformers import AutoTokenizer

from trimtab import builtin
from trimtab.errors import CheckpointError
from trimtab.tokenization import load_tokenizer
from trimtab.tokenization.gguf_splits import SPLITS

MIXED = "Don't SHOUT'LL 12345 678,9 HTTPServer camelCase x=1;\r\n\n  if(a!=b)/**/ é ÀB\u00a0½ ٣٤ Ⅷ "
TEXTS = [
    *CORPUS[:5],
    MIXED,
    "",
    " ",
    "   ",
    "\n",
    "a<s>b<|im_end|> c",
    "x  <tool>  y",
    "\x00\U0010ffff",
]
LLAMA_PYTHON = os.environ.get("TRIMTAB_LLAMA_PYTHON")


def bpe() -> Tokenizer:
    """A byte-level vocabulary that merges across the borders of every split, so that each shows."""
    backend = Tokenizer(model_directories.models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = model_directories.decoders.ByteLevel()
    trainer = model_directories.BpeTrainer(
        vocab_size=700,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        max_token_length=6,
    )
    backend.train_from_iterator([*CORPUS, *[MIXED] * 4], trainer)
    backend.add_special_tokens(
        [AddedToken(text, special=True, normalized=False) for text in model_directories.SPECIALS]
    )
    backend.add_tokens([AddedToken("<tool>", special=False, normalized=False)])
    return backend


@pytest.fixture(scope="module")
def backend() -> Tokenizer:
    return bpe()


@pytest.fixture(scope="module")
def builtin_pair(tmp_path_factory: pytest.TempPathFactory):
    """The built-in model's tokenizer, from its own file and from a GGUF file."""
    source = Path(builtin.target_path())
    path = tmp_path_factory.mktemp("builtin") / "x.gguf"
    writer = gguf_vocabularies.gguf.GGUFWriter(path, "llama")
    gguf_vocabularies.add_builtin(writer, source)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return load_tokenizer(path), load_tokenizer(source)


def test_the_built_in_models_tokenizer(builtin_pair) -> None:
    found, original = builtin_pair
    for text in [*TEXTS, Path(__file__).read_text(), "<|user|>hi<|end|>"]:
        for special in (True, False):
            ids = original.encode(text, add_special_tokens=special)
            assert found.encode(text, add_special_tokens=special) == ids
            for skip in (True, False):
                assert found.decode(ids, skip) == original.decode(ids, skip)
    assert found.special_tokens == original.special_tokens
    assert found.special_ids == original.special_ids
    assert found.eos_token_ids == original.eos_token_ids
    assert found.vocab_size == original.vocab_size
    for token_id in range(original.vocab_size):
        assert found.token_bytes(token_id) == original.token_bytes(token_id)
    messages = [{"role": "user", "content": "what does sorted do?"}]
    assert found.encode_chat(messages) == original.encode_chat(messages)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=40))
def test_any_text(builtin_pair, text: str) -> None:
    found, original = builtin_pair
    assert found.encode(text) == original.encode(text)


def test_the_names_that_are_promised() -> None:
    promised = {"llama-bpe", "qwen2", "gpt-2", "default", "smollm", "tekken"}
    assert promised <= SPLITS.keys()


@pytest.mark.parametrize("pre", ["llama-bpe", "qwen2", "tekken", "gpt-4o", "dbrx", "gpt-2"])
def test_byte_level_as_transformers(pre: str, backend: Tokenizer, tmp_path: Path) -> None:
    path = gguf_vocabularies.write(tmp_path / "x.gguf", backend, pre=pre)
    ours = load_tokenizer(path)
    theirs = AutoTokenizer.from_pretrained(tmp_path, gguf_file="x.gguf")
    theirs.backend_tokenizer.model.ignore_merges = SPLITS[pre].whole_words
    for text in TEXTS:
        text = unicodedata.normalize("NFC", text)  # transformers forgets what Qwen 2 does first
        ids = theirs.encode(text, add_special_tokens=False)
        assert ours.encode(text, add_special_tokens=False) == ids
        assert ours.decode(ids, False) == theirs.decode(ids, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "starcoder"])
def test_splits_of_the_library_itself(pre: str, backend: Tokenizer, tmp_path: Path) -> None:
    ours = load_tokenizer(gguf_vocabularies.write(tmp_path / "x.gguf", backend, pre=pre))
    original = Tokenizer.from_str(backend.to_str())
    steps = [pre_tokenizers.Digits(individual_digits=True)] if pre != "gpt-2" else []
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True))
    original.pre_tokenizer = pre_tokenizers.Sequence(steps)
    for text in TEXTS:
        assert ours.encode(text, add_special_tokens=False) == original.encode(text).ids


def test_qwen_2_composes(backend: Tokenizer, tmp_path: Path) -> None:
    ours = load_tokenizer(gguf_vocabularies.write(tmp_path / "x.gguf", backend, pre="qwen2"))
    assert ours.encode("e\u0301") == ours.encode("\u00e9")


def sentencepiece(kind: str) -> Tokenizer:
    """A vocabulary whose scores fall with the ids, as SentencePiece makes them."""
    return make_backend("llama-2" if kind == "phi3" else "gemma", bos=False)


@pytest.mark.parametrize("arch", ["phi3", "gemma2", "gemma3"])
def test_sentencepiece_as_transformers(arch: str, tmp_path: Path) -> None:
    path = gguf_vocabularies.write(tmp_path / "x.gguf", sentencepiece(arch), arch=arch)
    ours = load_tokenizer(path)
    theirs = AutoTokenizer.from_pretrained(tmp_path, gguf_file="x.gguf")
    for text in TEXTS:
        if arch == "phi3" and ("<|im_end|> c" in text or "<tool>  y" in text):
            continue  # there llama.cpp strips spaces and transformers does not
        ids = theirs.encode(text, add_special_tokens=False)
        assert ours.encode(text, add_special_tokens=False) == ids
        assert ours.decode(ids, False) == theirs.decode(ids, clean_up_tokenization_spaces=False)
    assert ours.encode("x")[0] == ours.bos_token_id


@pytest.mark.parametrize("kind", ["llama-2", "gemma"])
def test_sentencepiece_as_the_original(kind: str, tmp_path: Path) -> None:
    """The merges are found again: the original was trained, and its ids are in their order."""
    original = make_backend(kind, bos=False)
    arch = "gemma2" if kind == "gemma" else "llama"
    ours = load_tokenizer(gguf_vocabularies.write(tmp_path / "x.gguf", original, arch=arch))
    for text in TEXTS:
        ids = original.encode(text).ids
        assert ours.encode(text, add_special_tokens=False) == ids
        assert ours.decode(ids, False) == original.decode(ids, skip_special_tokens=False)


def test_gemmas_runs_of_spaces_are_stored_as_spaces(tmp_path: Path) -> None:
    original = make_backend("gemma", bos=False)
    original.add_tokens([AddedToken("  ", special=False, normalized=False)])
    tokens = gguf_vocabularies.tokens_of(original)
    found = load_tokenizer(gguf_vocabularies.write(tmp_path / "x.gguf", original, arch="gemma3"))
    run = tokens.index("  ")
    assert found.id_to_token(run) == "▁▁"
    ids = found.encode("x  y", add_special_tokens=False)
    assert found.decode(ids) == "x  y"


def test_phi_3_strips_behind_special_tokens(tmp_path: Path) -> None:
    path = gguf_vocabularies.write(tmp_path / "x.gguf", sentencepiece("phi3"), arch="phi3")
    found = load_tokenizer(path)
    assert found.encode("<|im_start|>\nx") == found.encode("<|im_start|>x")
    assert found.encode("<s>\nx") != found.encode("<s>x")


@pytest.mark.parametrize("bos", [None, True, False])
@pytest.mark.parametrize("eos", [None, True, False])
@pytest.mark.parametrize("pre", ["llama-bpe", "gpt-2", ""])
def test_ends(
    bos: bool | None, eos: bool | None, pre: str, backend: Tokenizer, tmp_path: Path
) -> None:
    flags = {"add_bos_token": bos, "add_eos_token": eos}
    made = backend if pre else make_backend("llama-2", bos=False)
    keys = {key: value for key, value in flags.items() if value is not None}
    found = load_tokenizer(gguf_vocabularies.write(tmp_path / "x.gguf", made, pre=pre, **keys))
    inner = found.encode("hello", add_special_tokens=False)
    adds_bos = pre != "gpt-2" if bos is None else bos
    start = [found.token_to_id("<s>")] if adds_bos else []
    end = [found.token_to_id("</s>")] if eos else []
    assert found.encode("hello") == start + inner + end


def test_end_tokens_are_named_or_known_by_their_text(backend: Tokenizer, tmp_path: Path) -> None:
    tool = backend.token_to_id("<tool>")
    path = gguf_vocabularies.write(tmp_path / "x.gguf", backend, pre="gpt-2", eot_token_id=tool)
    found = load_tokenizer(path)
    known = [found.token_to_id(text) for text in ("</s>", "<tool>", "<|im_end|>")]
    assert found.eos_token_ids == tuple(known)


def test_filling_at_the_end_is_no_token(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(["a", "b", "ab", "[PAD3]", "[PAD4]"])
    writer.add_token_types([1, 1, 1, 5, 5])
    writer.add_token_merges(["a b"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = load_tokenizer(tmp_path / "x.gguf")
    assert found.vocab_size == 3
    assert found.encode("abba") == [2, 1, 0]
    assert found.chat_template is None


def test_a_file_without_a_vocabulary_takes_the_one_beside_it(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_tokenizer_model("no_vocab")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(CheckpointError, match="has no vocabulary"):
        load_tokenizer(tmp_path / "x.gguf")
    model_directories.write_model(tmp_path, make_backend("llama-2"))
    found = load_tokenizer(tmp_path / "x.gguf")
    assert found.encode("hello") == load_tokenizer(tmp_path).encode("hello")


LLAMA = """
import json, sys
import llama_cpp
texts, files = json.load(sys.stdin)
found = []
for file in files:
    model = llama_cpp.Llama(file, vocab_only=True, verbose=False)
    found.append([model.tokenize(t.encode(), add_bos=False, special=True) for t in texts])
print(json.dumps(found))
"""


@pytest.mark.skipif(not LLAMA_PYTHON, reason="TRIMTAB_LLAMA_PYTHON names no Python with llama.cpp")
def test_the_ids_of_llama_cpp(backend: Tokenizer, tmp_path: Path) -> None:
    paths = {
        pre: gguf_vocabularies.write(tmp_path / f"{pre}.gguf", backend, pre=pre)
        for pre in ("llama-bpe", "qwen2", "gpt-2", "default", "smollm", "tekken", "gpt-4o", "dbrx")
    }
    spaced = make_backend("llama-2", bos=False)
    paths["spm"] = gguf_vocabularies.write(tmp_path / "spm.gguf", spaced)
    # llama.cpp composes nothing, and takes NUL for the end.
    texts = [unicodedata.normalize("NFC", text) for text in TEXTS if "\x00" not in text]
    assert LLAMA_PYTHON is not None
    answer = subprocess.run(
        [LLAMA_PYTHON, "-c", LLAMA],
        input=json.dumps([texts, [str(path) for path in paths.values()]]),
        capture_output=True,
        text=True,
        check=True,
    )
    for (name, path), ids in zip(paths.items(), json.loads(answer.stdout), strict=True):
        ours = load_tokenizer(path)
        for text, expected in zip(texts, ids, strict=True):
            if name in ("tekken", "gpt-4o") and not text.isascii():
                continue  # of letters beyond ASCII, llama.cpp knows no case here, nor marks
            assert ours.encode(text, add_special_tokens=False) == expected, (name, text)
