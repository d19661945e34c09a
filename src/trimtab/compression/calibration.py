"""Calibration text as rows of tokens of equal length, several documents in a row."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trimtab.errors import ConfigError, RequestError, UserError
from trimtab.tokenization import Tokenizer

MAX_BYTES = 1 << 30  # of a calibration file


@dataclass(frozen=True)
class CalibrationRows:
    """Rows of tokens. Positions of one document have the same number in `segments`, and attend
    only to each other."""

    token_ids: npt.NDArray[np.int64]  # [rows, length]
    segments: npt.NDArray[np.int64]  # likewise

    @property
    def num_tokens(self) -> int:
        return int(self.token_ids.size)


def read_documents(path: Path, tokenizer: Tokenizer) -> list[list[int]]:
    """Token ids of each document of a file: of JSON lines, each line is one, {"text": ...} or
    {"messages": [...]}, the latter rendered by the model's chat template; any other file is one
    document of plain text.

    Raises UserError for a file that cannot be read as that, naming the line.
    """
    text = _read(path)
    if path.suffix not in (".jsonl", ".json", ".ndjson"):
        return [tokenizer.encode(text)] if text.strip() else []
    documents = []
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            try:
                documents.append(_tokens_of_line(line, tokenizer))
            except RequestError as error:
                raise UserError(f"{path}, line {number}: {error}") from None
    return documents


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"{path}: larger than {MAX_BYTES >> 30} GiB: use a part of it")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8") from None


def _tokens_of_line(line: str, tokenizer: Tokenizer) -> list[int]:
    try:
        value: Any = json.loads(line)
    except (ValueError, RecursionError):
        raise RequestError("not JSON") from None
    if isinstance(value, dict) and isinstance(value.get("text"), str):
        return tokenizer.encode(value["text"])
    if isinstance(value, dict) and isinstance(value.get("messages"), list) and value["messages"]:
        return tokenizer.encode_chat(value["messages"], add_generation_prompt=False)
    raise RequestError('neither {"text": "..."} nor {"messages": [...]}')


def calibration_rows(
    documents: Sequence[Sequence[int]],
    num_rows: int,
    length: int,
    opening: Sequence[int],
    seed: int,
) -> CalibrationRows:
    """Up to `num_rows` rows of `length` tokens, every position a token.

    Documents are cut into pieces of at most `length`, each beginning as texts of this tokenizer do
    (`opening`, usually a BOS token), shuffled by the seed and put one after the other; what does
    not fit into a row is dropped. Raises ConfigError if there is not enough text for one row.
    """
    pieces = [piece for document in documents for piece in _pieces(document, length, opening)]
    order = np.random.default_rng(seed).permutation(len(pieces))
    token_ids = np.zeros((num_rows, length), np.int64)
    segments = np.zeros((num_rows, length), np.int64)
    row = filled = 0
    for segment, index in enumerate(order, start=1):
        piece = pieces[index][: length - filled]
        token_ids[row, filled : filled + len(piece)] = piece
        segments[row, filled : filled + len(piece)] = segment
        filled += len(piece)
        if filled == length:
            row, filled = row + 1, 0
            if row == num_rows:
                break
    if row == 0:
        total = sum(map(len, pieces))
        raise ConfigError(
            f"the calibration text has {total} tokens: too few for a sequence of {length}; "
            "use more text, or a smaller --sequence-length"
        )
    return CalibrationRows(token_ids[:row], segments[:row])


def _pieces(document: Sequence[int], length: int, opening: Sequence[int]) -> Iterator[list[int]]:
    head = list(opening)[: length - 1]
    ids = list(document)
    if ids[: len(head)] == head:
        ids = ids[len(head) :]
    step = length - len(head)
    for start in range(0, len(ids), step):
        yield head + ids[start : start + step]
