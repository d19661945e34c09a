"""Training batches: documents of several kinds in fixed shares, packed into rows."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from chat_samples import (
    GREETINGS,
    SYSTEM_PROMPTS,
    Knowledge,
    Turns,
    arithmetic,
    arithmetic_session,
    lookup,
)
from tokenizer import ASSISTANT_ID, BOS_ID, END_ID, SYSTEM_ID, USER_ID
from tokenizers import Tokenizer

# Shares of the training tokens, and the weight of an answer's tokens in the loss, by kind of
# document. The tokens of prompts are not learned. Answers are a few tokens among many, so
# those of the hard kinds weigh more than code, whose tokens all count once.
MIX = {
    "code": 0.57,
    "lookup": 0.13,
    "arithmetic": 0.11,
    "session": 0.06,
    "recall": 0.09,
    "write": 0.03,
    "greeting": 0.01,
}
DRAFT_MIX = {
    "code": 0.64,
    "lookup": 0.13,
    "arithmetic": 0.05,
    "session": 0.03,
    "recall": 0.12,
    "write": 0.02,
    "greeting": 0.01,
}
ANSWER_WEIGHTS = {
    "lookup": 2.0,
    "arithmetic": 3.0,
    "session": 3.0,
    "recall": 1.5,
    "write": 1.0,
    "greeting": 1.0,
}


@dataclass(frozen=True)
class Document:
    """Token ids, and for each the weight of its loss as a *target*."""

    token_ids: list[int]
    weights: list[float]
    is_code: bool = False


@dataclass(frozen=True)
class Batch:
    """Arrays [rows, time]; targets are the inputs shifted by one within a document."""

    inputs: np.ndarray
    targets: np.ndarray
    weights: np.ndarray
    document_ids: np.ndarray


class ChatEncoder:
    """Turns conversations into documents, token for token as the chat template renders them."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def chat(self, turns: Turns, weight: float, system: str | None = None) -> Document:
        ids = [BOS_ID]
        if system is not None:
            ids += [SYSTEM_ID, *self.encode(system), END_ID]
        weights = [0.0] * len(ids)
        for question, answer in turns:
            prompt = [USER_ID, *self.encode(question), END_ID, ASSISTANT_ID]
            reply = [*self.encode(answer), END_ID]
            ids += prompt + reply
            weights += [0.0] * len(prompt) + [weight] * len(reply)
        return Document(ids, weights)

    def session(self, lines: list[tuple[str, str]], weight: float) -> Document:
        ids, weights = [BOS_ID], [0.0]
        for shown, result in lines:
            prompt, reply = self.encode(shown), self.encode(result)
            ids += prompt + reply
            weights += [0.0] * len(prompt) + [weight] * len(reply)
        return Document([*ids, END_ID], [*weights, 1.0])


class CodeChunks:
    """The corpus in chunks of at most max_tokens, cut at top-level lines where one is near.

    Every epoch shuffles the documents' chunks anew and cuts them at other places.
    """

    def __init__(self, tokenizer: Tokenizer, texts: list[str], max_tokens: int, seed: int) -> None:
        encodings = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        self.documents = [np.array([*e.ids, END_ID], dtype=np.int32) for e in encodings]
        newlines = {
            token_id
            for token, token_id in tokenizer.get_vocab().items()
            if token and set(token) == {"\u010a"}  # the byte-level alphabet's newline
        }
        is_break = np.zeros(tokenizer.get_vocab_size(), dtype=bool)
        is_break[list(newlines)] = True
        self.starts = [np.flatnonzero(is_break[ids]) + 1 for ids in self.documents]
        self.max_tokens = max_tokens
        self.seed = seed
        self.epoch = 0
        self.index = 0
        self.order = self._cut()

    @property
    def num_tokens(self) -> int:
        return sum(map(len, self.documents))

    def state(self) -> dict[str, float]:
        return {"epoch": self.epoch, "done": self.index / len(self.order)}

    def restore(self, state: dict[str, float]) -> None:
        self.epoch = state["epoch"]
        self.order = self._cut()
        self.index = int(state["done"] * len(self.order))

    def lengthen(self, max_tokens: int) -> None:
        """Cut the rest of the epoch anew, into longer chunks."""
        done = self.index / len(self.order)
        self.max_tokens = max_tokens
        self.order = self._cut()
        self.index = int(done * len(self.order))

    def take(self) -> Document:
        if self.index == len(self.order):
            self.epoch, self.index = self.epoch + 1, 0
            self.order = self._cut()
        document, start, stop = self.order[self.index]
        self.index += 1
        ids = self.documents[document][start:stop].tolist()
        return Document([BOS_ID, *ids], [0.0] + [1.0] * len(ids), is_code=True)

    def _cut(self) -> list[tuple[int, int, int]]:
        rng = random.Random(f"{self.seed}/{self.epoch}")
        chunks = []
        for document, (ids, starts) in enumerate(zip(self.documents, self.starts, strict=True)):
            position = 0
            limit = rng.randint(self.max_tokens // 3, self.max_tokens - 1)
            while position < len(ids):
                stop = min(position + limit, len(ids))
                if stop < len(ids):
                    found = starts[np.searchsorted(starts, stop, side="right") - 1 :][:1]
                    if len(found) and position + limit // 2 < found[0] <= stop:
                        stop = int(found[0])
                chunks.append((document, position, stop))
                position, limit = stop, self.max_tokens - 1
        rng.shuffle(chunks)
        return chunks


class Mixture:
    """An endless, seeded stream of batches in which each kind keeps its share of the tokens."""

    def __init__(
        self,
        encoder: ChatEncoder,
        code: CodeChunks,
        knowledge: Knowledge,
        seed: int,
        mix: dict[str, float] = MIX,
    ) -> None:
        self.encoder, self.code, self.knowledge = encoder, code, knowledge
        self.seed, self.mix = seed, mix
        self.num_batches = 0
        self.given = dict.fromkeys(mix, 0)
        self.makers: dict[str, Callable[[random.Random], Document]] = {
            "code": lambda rng: self.code.take(),
            "lookup": lambda rng: self._chat(rng, "lookup", lookup(rng)),
            "arithmetic": lambda rng: self._chat(rng, "arithmetic", arithmetic(rng)),
            "session": lambda rng: self.encoder.session(
                arithmetic_session(rng), ANSWER_WEIGHTS["session"]
            ),
            "recall": lambda rng: self._chat(rng, "recall", self.knowledge.recall(rng)),
            "write": lambda rng: self._chat(rng, "write", self.knowledge.code(rng)),
            "greeting": lambda rng: self._chat(rng, "greeting", [rng.choice(GREETINGS)]),
        }

    def state(self) -> dict:
        return {
            "num_batches": self.num_batches,
            "code": self.code.state(),
        }

    def restore(self, state: dict) -> None:
        self.num_batches = state["num_batches"]
        self.given = dict.fromkeys(self.mix, 0)
        self.code.restore(state["code"])

    def batch(self, rows: int, time: int) -> Batch:
        """The next rows x time tokens, packed; only code is cut at a row's end.

        A conversation that does not fit into the rest of a row waits for the next one.
        """
        rng = random.Random(f"{self.seed}/{self.num_batches}")
        self.num_batches += 1
        shape = (rows, time + 1)
        ids = np.zeros(shape, dtype=np.int64)
        weights = np.zeros(shape, dtype=np.float32)
        documents = np.zeros(shape, dtype=np.int64)
        waiting: Document | None = None
        for row in range(rows):
            filled, number = 0, 0
            while filled <= time:
                document = waiting or self._next_document(rng)
                waiting = None
                room = min(len(document.token_ids), time + 1 - filled)
                if room < len(document.token_ids) and filled and not document.is_code:
                    waiting, document = document, self._count("code", self.code.take())
                    room = min(len(document.token_ids), time + 1 - filled)
                ids[row, filled : filled + room] = document.token_ids[:room]
                weights[row, filled : filled + room] = document.weights[:room]
                documents[row, filled : filled + room] = number
                filled, number = filled + room, number + 1
        return Batch(ids[:, :-1], ids[:, 1:], weights[:, 1:], documents[:, :-1])

    def _next_document(self, rng: random.Random) -> Document:
        total = sum(self.given.values()) + 1
        kind = max(self.mix, key=lambda kind: self.mix[kind] * total - self.given[kind])
        return self._count(kind, self.makers[kind](rng))

    def _count(self, kind: str, document: Document) -> Document:
        self.given[kind] += len(document.token_ids)
        return document

    def _chat(self, rng: random.Random, kind: str, turns: Turns) -> Document:
        system = rng.choice(SYSTEM_PROMPTS) if rng.random() < 0.05 else None
        return self.encoder.chat(turns, ANSWER_WEIGHTS[kind], system)
