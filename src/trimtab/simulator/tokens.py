"""Token ids of simulated prompts and answers: equal where a real load's would be equal.

They only ever meet the prefix cache, which asks nothing but whether tokens are the same. So a piece
is random ids drawn from its key and length, and an answer ids drawn from its request.
"""

from __future__ import annotations

import functools
import hashlib
import json
from array import array
from collections.abc import Sequence

import numpy as np

from trimtab.workloads.requests import Piece, PlannedRequest

VOCAB_SIZE = 1 << 15
CHARACTERS_A_TOKEN = 4.0  # of a user's own text, if nobody has counted its tokens


def prompt_ids(planned: PlannedRequest, before: Sequence[int]) -> array[int]:
    """The whole prompt; `before`: prompt and answer of the turn that it follows."""
    ids = array("i", before)
    for piece in pieces_of(planned, len(before)):
        ids.frombytes(_ids(piece.key, piece.length))
    return ids


def answer_ids(workload_seed: int, index: int, count: int) -> list[int]:
    return array("i", _draw(f"answer {workload_seed} {index}", count)).tolist()


def pieces_of(planned: PlannedRequest, num_before: int) -> tuple[Piece, ...]:
    """Its pieces; of a user's own text or messages, about as many tokens as they probably are."""
    if planned.pieces:
        return planned.pieces
    if planned.messages is not None:
        texts = [json.dumps(message, sort_keys=True) for message in planned.messages]
    else:
        texts = [planned.text or " "]
    characters = sum(map(len, texts))
    tokens = planned.num_prompt_tokens - num_before
    if tokens < len(texts):
        tokens = round(characters / CHARACTERS_A_TOKEN)
    return tuple(Piece(text, max(1, round(tokens * len(text) / characters))) for text in texts)


@functools.lru_cache(maxsize=512)
def _ids(key: str, length: int) -> bytes:
    return _draw(f"piece {length} {key}", length)


def _draw(name: str, count: int) -> bytes:
    seed = int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()[:8], "big")
    return np.random.default_rng(seed).integers(0, VOCAB_SIZE, count, np.int32).tobytes()
