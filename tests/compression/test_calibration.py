"""Calibration text: what is read, how it is cut, and what is said of text that will not do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from trimtab import builtin
from trimtab.compression.calibration import calibration_rows, read_documents
from trimtab.errors import ConfigError, UserError
from trimtab.tokenization import Tokenizer, load_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer(builtin.target_path())


def test_json_lines_and_plain_text(tokenizer: Tokenizer, tmp_path: Path) -> None:
    lines = '{"text": "import os"}\n\n{"messages": [{"role": "user", "content": "2 + 2?"}]}\n'
    (tmp_path / "a.jsonl").write_text(lines)
    text, chat = read_documents(tmp_path / "a.jsonl", tokenizer)
    assert tokenizer.decode(text) == "import os"
    assert tokenizer.decode(chat, skip_special_tokens=False) == "<|bos|><|user|>2 + 2?<|end|>"
    (tmp_path / "a.txt").write_text("import os")
    assert read_documents(tmp_path / "a.txt", tokenizer) == [text]


def test_rows_are_full_and_their_pieces_come_from_the_documents() -> None:
    documents = [[0, *range(100 * k, 100 * k + 30 * k)] for k in range(1, 9)]
    rows = calibration_rows(documents, 6, 64, [0], seed=3)
    assert rows.token_ids.shape == rows.segments.shape == (6, 64)
    assert (rows.segments > 0).all()
    for tokens, segments in zip(rows.token_ids, rows.segments, strict=True):
        for segment in np.unique(segments):
            piece = tokens[segments == segment]
            assert piece[0] == 0
            assert (np.diff(piece[1:]) == 1).all()
            assert piece[1:2] // 100 in range(1, 11)
    assert len(np.unique(rows.token_ids[rows.token_ids > 0])) > 250
    again = calibration_rows(documents, 6, 64, [0], seed=3)
    other = calibration_rows(documents, 6, 64, [0], seed=4)
    assert (rows.token_ids == again.token_ids).all()
    assert (rows.token_ids != other.token_ids).any()


def test_less_text_than_asked_for_gives_fewer_rows() -> None:
    rows = calibration_rows([list(range(1, 130))], 6, 32, [0], seed=0)
    assert rows.token_ids.shape == (4, 32)


def test_too_little_text() -> None:
    with pytest.raises(ConfigError, match="has 21 tokens: too few for a sequence of 32"):
        calibration_rows([list(range(1, 21))], 6, 32, [0], seed=0)
    with pytest.raises(ConfigError, match="has 0 tokens"):
        calibration_rows([], 6, 32, [], seed=0)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b'{"text": "a"}\nnonsense', "line 2: not JSON"),
        (b'{"prompt": "a"}', "line 1: neither"),
        (b'{"messages": []}', "line 1: neither"),
        (b'{"messages": [{"content": "a"}]}', "line 1: messages"),
        (b'["text"]', "line 1: neither"),
        (b'{"text": "\\ud800"}', "line 1: the text has a lone surrogate"),
        (b"[" * 100_000, "line 1: not JSON"),
        (b"\xff\xfe", "not UTF-8"),
    ],
)
def test_unreadable_files(tokenizer: Tokenizer, tmp_path: Path, content: bytes, named: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=named):
        read_documents(tmp_path / "a.jsonl", tokenizer)
    with pytest.raises(UserError, match="No such file"):
        read_documents(tmp_path / "b.jsonl", tokenizer)


def test_the_builtin_calibration_text_is_not_what_the_model_is_judged_by() -> None:
    """No line of some length of the held-out text, and no question of the tasks."""
    text = builtin.calibration_path().read_text(encoding="utf-8")
    heldout = builtin.heldout_path().read_text(encoding="utf-8")
    lines = {line.strip() for line in heldout.splitlines() if len(line.strip()) > 60}
    shared = [line for line in lines if line.replace('"', '\\"') in text]
    assert len(shared) < 0.01 * len(lines)  # a few lines stand in several modules
