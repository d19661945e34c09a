"""Recorded traces without their texts: Azure's CSV and Mooncake's JSON lines."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimtab.workloads.file_lines import (
    BadLine,
    at_line,
    date_seconds,
    json_object,
    lines_of,
    seconds,
    whole_number,
)
from trimtab.workloads.requests import Piece
from trimtab.workloads.sessions import Turn

MOONCAKE_BLOCK = 512  # tokens that each of `hash_ids` stands for; of the last one, what is left
_AZURE_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")


@dataclass(frozen=True)
class Row:
    time: float  # seconds
    num_input: int
    num_output: int
    hash_ids: tuple[int, ...] | None = None

    def turn(self, prefix: str, number: int, scale: float) -> Turn:
        """The request with lengths times `scale`; `number` names what it shares with no other."""
        output = max(1, round(scale * self.num_output))
        if not self.hash_ids:
            piece = Piece(f"{prefix}/{number}", max(1, round(scale * self.num_input)))
            return Turn((piece,), output)
        block = max(1, round(scale * MOONCAKE_BLOCK))
        rest = self.num_input - MOONCAKE_BLOCK * (len(self.hash_ids) - 1)
        sizes = [block] * (len(self.hash_ids) - 1) + [min(block, max(1, round(scale * rest)))]
        pieces = (
            Piece(f"{prefix}/block {name}", size)
            for name, size in zip(self.hash_ids, sizes, strict=True)
        )
        return Turn(tuple(pieces), output)


def azure_rows(path: Path) -> Iterator[Row | None]:
    """AzurePublicDataset's LLM inference traces of 2023 and 2024: columns TIMESTAMP, ContextTokens,
    GeneratedTokens. None for a request that brought nothing (no tokens in or out).
    Raises UserError with the line's number."""
    lines = lines_of(path)
    first, header = next(lines)
    names = [name.strip() for name in next(csv.reader([header]))]
    places = [names.index(name) for name in _AZURE_COLUMNS if name in names]
    if len(places) < len(_AZURE_COLUMNS):
        missing = ", ".join(name for name in _AZURE_COLUMNS if name not in names)
        raise at_line(path, first, f"an Azure trace has a column {missing}, too")
    for number, line in lines:
        try:
            cells = next(csv.reader([line]))
            if len(cells) != len(names):
                raise BadLine(f"{len(cells)} cells, but the header has {len(names)}")
            time, num_input, num_output = (cells[place] for place in places)
            row = Row(
                date_seconds(time, "TIMESTAMP"),
                whole_number(num_input, "ContextTokens"),
                whole_number(num_output, "GeneratedTokens"),
            )
        except (BadLine, csv.Error) as problem:
            raise at_line(path, number, str(problem)) from None
        yield row if row.num_input and row.num_output else None


def mooncake_rows(path: Path) -> Iterator[Row | None]:
    """Mooncake's FAST'25 traces: `timestamp` in milliseconds, `input_length`, `output_length`, and
    `hash_ids`, one for each 512 tokens, equal where the prompt up to there is. None for a request
    that brought nothing. Raises UserError with the line's number."""
    for number, line in lines_of(path):
        try:
            row = _mooncake_row(json_object(line))
        except BadLine as problem:
            raise at_line(path, number, problem) from None
        yield row if row.num_input and row.num_output else None


def _mooncake_row(entry: dict[str, Any]) -> Row:
    for name in ("timestamp", "input_length", "output_length"):
        if name not in entry:
            raise BadLine(f"a line of a Mooncake trace has {name}, too")
    num_input = whole_number(entry["input_length"], "input_length")
    hash_ids = entry.get("hash_ids")
    if hash_ids is not None:
        if not isinstance(hash_ids, list) or not all(type(one) is int for one in hash_ids):
            raise BadLine("hash_ids must be a list of whole numbers")
        blocks = math.ceil(num_input / MOONCAKE_BLOCK)
        if len(hash_ids) != blocks:
            raise BadLine(
                f"{num_input} tokens are {blocks} blocks of {MOONCAKE_BLOCK}, but hash_ids has "
                f"{len(hash_ids)}"
            )
    return Row(
        seconds(entry["timestamp"], "timestamp") / 1000,
        num_input,
        whole_number(entry["output_length"], "output_length"),
        None if hash_ids is None else tuple(hash_ids),
    )
