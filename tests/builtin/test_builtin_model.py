"""The artifacts of the built-in model, as they are shipped."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from pathlib import Path

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment
from safetensors import safe_open
from tokenizers import Tokenizer

from trimtab import builtin

MAX_TOTAL_BYTES = 40 * 2**20
MODELS = {"target": builtin.target_path(), "draft": builtin.draft_path()}
SPECIAL_TOKENS = ["<|bos|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>", "<|pad|>"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(builtin.target_path() / "tokenizer.json"))


def read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def tensor_shapes(directory: Path) -> dict[str, list[int]]:
    with safe_open(directory / "model.safetensors", framework="numpy") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        assert {part.get_dtype() for part in slices.values()} == {"BF16"}
        return {name: part.get_shape() for name, part in slices.items()}


def test_everything_together_is_small() -> None:
    root = builtin.target_path().parent
    files = [path for path in root.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert sum(path.stat().st_size for path in files) <= MAX_TOTAL_BYTES


@pytest.mark.parametrize("role", MODELS)
def test_config_describes_the_weights(role: str) -> None:
    config = read_json(MODELS[role] / "config.json")
    shapes = tensor_shapes(MODELS[role])
    hidden, ffn = config["hidden_size"], config["intermediate_size"]
    kv_width = config["num_key_value_heads"] * config["head_dim"]
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["tie_word_embeddings"]
    assert "lm_head.weight" not in shapes
    assert shapes["model.embed_tokens.weight"] == [config["vocab_size"], hidden]
    assert len(shapes) == 2 + 9 * config["num_hidden_layers"]
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        assert shapes[prefix + "self_attn.k_proj.weight"] == [kv_width, hidden]
        assert shapes[prefix + "mlp.down_proj.weight"] == [hidden, ffn]
    # Quantization in groups, of the target in those of 128, must divide every reduction.
    group = 128 if role == "target" else 64
    assert all(size % group == 0 for size in (hidden, ffn, kv_width) if size > 64)


def test_draft_is_several_times_smaller_and_speaks_the_same_tokens() -> None:
    sizes = {
        role: sum(int.__mul__(*[*shape, 1][:2]) for shape in tensor_shapes(path).values())
        for role, path in MODELS.items()
    }
    assert sizes["draft"] * 3 < sizes["target"]
    tokenizers = [(path / "tokenizer.json").read_bytes() for path in MODELS.values()]
    assert tokenizers[0] == tokenizers[1]


@pytest.mark.parametrize("role", MODELS)
def test_special_tokens_agree_between_files(role: str, tokenizer: Tokenizer) -> None:
    config = read_json(MODELS[role] / "config.json")
    generation = read_json(MODELS[role] / "generation_config.json")
    settings = read_json(MODELS[role] / "tokenizer_config.json")
    assert [tokenizer.token_to_id(token) for token in SPECIAL_TOKENS] == list(range(6))
    assert tokenizer.get_vocab_size() == config["vocab_size"]
    for name in ("bos", "eos", "pad"):
        index = tokenizer.token_to_id(settings[f"{name}_token"])
        assert index == config[f"{name}_token_id"] == generation[f"{name}_token_id"]
    assert settings["eos_token"] == "<|end|>"


@pytest.mark.parametrize(
    "text",
    [
        "def f(x):\n\treturn x  # tab\r\n\r\n",
        "naïve café Ωmega 你好 🙂👩‍👩‍👧‍👦 \u202e\ufeff\x00\x7f",
        "\ufffd\ufffd\ud7ff\ue000\U0010ffff",
        "   leading and trailing   ",
        "1234567890 -12.5e+10",
        "",
    ],
)
def test_tokenizer_gives_text_back_unchanged(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_tokenizer_gives_random_text_back_unchanged(tokenizer: Tokenizer) -> None:
    rng = random.Random(0)
    for _ in range(200):
        raw = bytes(rng.randrange(256) for _ in range(rng.randrange(40)))
        for text in (raw.decode("latin-1"), raw.decode("utf-8", errors="replace")):
            ids = tokenizer.encode(text, add_special_tokens=False).ids
            assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_tokenizer_knows_every_byte(tokenizer: Tokenizer) -> None:
    vocabulary = tokenizer.get_vocab()
    assert sum(len(token) == 1 for token in vocabulary) == 256


def test_plain_text_starts_a_document(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("import os").ids[0] == tokenizer.token_to_id("<|bos|>")


def test_digits_are_single_tokens(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("x=1234").tokens[-4:] == ["1", "2", "3", "4"]


def test_chat_template_renders_one_token_a_mark(tokenizer: Tokenizer) -> None:
    settings = read_json(builtin.target_path() / "tokenizer_config.json")
    environment = ImmutableSandboxedEnvironment()
    messages = [
        {"role": "system", "content": "Answer briefly."},
        {"role": "user", "content": "Hi"},
    ]
    text = environment.from_string(settings["chat_template"]).render(
        messages=messages, bos_token=settings["bos_token"], add_generation_prompt=True
    )
    assert text == "<|bos|><|system|>Answer briefly.<|end|><|user|>Hi<|end|><|assistant|>"
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert ids[:2] == [0, 4]
    assert ids[-2:] == [1, 3]


def test_tasks_are_well_formed() -> None:
    lines = builtin.tasks_path().read_text(encoding="utf-8").splitlines()
    items = [json.loads(line) for line in lines]
    assert all(set(item) == {"prompt", "answer", "kind"} for item in items)
    assert all(isinstance(value, str) and value for item in items for value in item.values())
    counts = Counter(item["kind"] for item in items)
    assert len(counts) >= 3
    assert all(90 <= count <= 200 for count in counts.values())
    assert len({item["prompt"] for item in items}) == len(items)


def test_tasks_cannot_be_guessed() -> None:
    """Neither the most frequent answer of a kind nor any one pair of a context scores 5 %."""
    lines = builtin.tasks_path().read_text(encoding="utf-8").splitlines()
    answers: dict[str, Counter[str]] = {}
    for item in map(json.loads, lines):
        answers.setdefault(item["kind"], Counter())[item["answer"]] += 1
        if item["kind"] == "lookup":
            assert item["answer"] in item["prompt"]
            assert len(re.findall(r"\w[\"']?[:=]", item["prompt"])) > 20
    for counts in answers.values():
        assert counts.most_common(1)[0][1] < 0.05 * counts.total()


def test_held_out_text_is_long_enough_for_perplexity() -> None:
    text = builtin.heldout_path().read_text(encoding="utf-8")
    assert 100_000 <= len(text.encode()) <= 350_000
    assert text.isascii() or "\ufffd" not in text
