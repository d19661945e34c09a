"""Train the draft of the built-in model to guess what the target says.

    python generate.py --work DIR --builtin ../../src/trimtab/builtin --count 9216
    python train_draft.py train --work DIR --builtin ../../src/trimtab/builtin --minutes 45
    python train_draft.py export --work DIR --builtin ../../src/trimtab/builtin

DIR is that of train.py, with its corpus.json and knowledge.json. The draft learns the target's own
distribution: of most rows over what the target itself wrote, of the others over its training text.
See README.md beside this file.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from data import DRAFT_MIX
from export import export_model
from induction import seed_induction
from model import PRESETS, Llama
from muon import Muon
from torch import Tensor
from train import Recipe, attention_norms, limit_attention, load_mixture, load_model
from train_heads import load_target

ROWS, TIME = 4, 512
MIXED_ROWS = 1  # of each batch; the others are what the target wrote
LONG_TIME, LONG_FRACTION = 2048, 0.06  # every other step of the last part: one row of mixture
CANDIDATES = 32  # of the target's distribution that are told apart; the rest is one event
PROMPT_WEIGHT = 0.5  # of the tokens that the target did not write
ARGMAX_SHARE = 0.3  # of the loss: the target's most likely token; the rest is divergence
MUON_LR, EMBEDDING_LR, NORM_LR, FINAL_NORM_LR = 0.015, 0.01, 0.002, 0.0004
WARMUP_STEPS, DECAY_FRACTION = 60, 0.8


class Lesson(NamedTuple):
    """What the target thinks of a text: [time, CANDIDATES] each, and a weight of each position."""

    token_ids: Tensor  # [time]
    candidates: Tensor  # int16, most likely first
    probabilities: Tensor  # float16
    weights: Tensor  # [time]


class Batch(NamedTuple):
    """[rows, time], and [rows, time, CANDIDATES]."""

    token_ids: Tensor
    documents: Tensor
    weights: Tensor
    candidates: Tensor
    probabilities: Tensor


def initial_draft(target: Llama) -> Llama:
    """A draft that knows nothing but the target's embeddings, as far as its width can hold them."""
    shape = replace(PRESETS["draft"], vocab_size=target.shape.vocab_size)
    draft = Llama(shape)
    embedding = target.model.embed_tokens.weight
    centred = embedding - embedding.mean(0)
    directions = torch.linalg.svd(centred, full_matrices=False).Vh[: shape.hidden_size]
    turned = torch.linalg.qr(torch.randn(shape.hidden_size, shape.hidden_size)).Q
    narrow = centred @ directions.mT @ turned
    with torch.no_grad():
        draft.model.embed_tokens.weight.copy_(narrow * (0.5 / narrow.std()))
    seed_induction(draft)
    return draft


class Lessons:
    """Rows of the target's own texts and of the training mixture, each with its distribution."""

    def __init__(self, work: Path, target: Llama, seed: int) -> None:
        self.teacher = target.to(torch.bfloat16)
        self.path, self.seed = work / "generated.jsonl", seed
        self.num_batches = self.given = 0
        self.known: dict[int, Lesson] = {}
        self.order: list[int] = []
        self.texts: list[dict] = []
        self.short, self.long = (
            load_mixture(work, Recipe(seed=seed + n, time=time, mix=dict(DRAFT_MIX)))
            for n, time in enumerate((TIME, LONG_TIME))
        )

    def batch(self) -> Batch:
        self.num_batches += 1
        parts = [self._mixed(self.short, MIXED_ROWS, TIME)]
        parts += [self._written() for _ in range(ROWS - MIXED_ROWS)]
        return Batch(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))

    def long_batch(self) -> Batch:
        return self._mixed(self.long, 1, LONG_TIME)

    @torch.no_grad()
    def _mixed(self, mixture, rows: int, time: int) -> Batch:
        batch = mixture.batch(rows, time)
        ids, documents = torch.from_numpy(batch.inputs), torch.from_numpy(batch.document_ids)
        ids, documents = ids.contiguous(), documents.contiguous()
        found = self.teacher(ids, documents).float().softmax(-1).topk(CANDIDATES)
        weights = torch.from_numpy(np.ascontiguousarray(batch.weights))
        return Batch(ids, documents, weights.clamp(max=2.0), found.indices, found.values)

    def _written(self) -> Batch:
        """One row of packed texts."""
        lessons, filled, number = [], 0, 0
        documents = torch.zeros(1, TIME, dtype=torch.int64)
        while filled < TIME:
            lesson = self._next()
            size = min(len(lesson.token_ids), TIME - filled)
            lessons.append([part[:size] for part in lesson])
            documents[0, filled : filled + size] = number
            filled, number = filled + size, number + 1
        ids, candidates, probabilities, weights = (
            torch.cat(parts)[None] for parts in zip(*lessons, strict=True)
        )
        return Batch(ids, documents, weights, candidates.long(), probabilities.float())

    def _next(self) -> Lesson:
        """The texts in random order, over and over; the file may grow meanwhile."""
        if self.given == len(self.order):
            self.texts = [json.loads(line) for line in self.path.read_text().splitlines()]
            self.order = list(range(len(self.texts)))
            random.Random(f"{self.seed}/{self.num_batches}").shuffle(self.order)
            self.given = 0
        index = self.order[self.given]
        self.given += 1
        if index not in self.known:
            self.known[index] = self._read(self.texts[index])
        return self.known[index]

    @torch.no_grad()
    def _read(self, text: dict) -> Lesson:
        ids = torch.tensor(text["token_ids"])
        found = self.teacher(ids[None])[0].float().softmax(-1).topk(CANDIDATES)
        weights = torch.ones(len(ids))
        weights[: text["num_prompt_tokens"] - 1] = PROMPT_WEIGHT
        return Lesson(ids, found.indices.short(), found.values.half(), weights)


def draft_loss(draft: Llama, batch: Batch) -> tuple[Tensor, float]:
    """The weighted mean of the divergence from the target, whose rest is one event, and of the
    cross-entropy with the token that it likes most; and how often both like the same one."""
    wanted = batch.weights > 0
    with torch.autocast("cpu", torch.bfloat16):
        logits = draft(batch.token_ids, batch.documents, wanted)
    logs = logits.float().log_softmax(-1)
    candidates, expected = batch.candidates[wanted], batch.probabilities[wanted]
    own = logs.gather(1, candidates)
    own_rest = torch.log1p(-own.exp().sum(-1).clamp(max=1 - 1e-5))
    rest = (1 - expected.sum(-1)).clamp(min=0.0)
    divergence = -(expected * own).sum(-1) - rest * own_rest
    losses = (1 - ARGMAX_SHARE) * divergence - ARGMAX_SHARE * own[:, 0]
    weights = batch.weights[wanted]
    agreement = (logs.detach().argmax(-1) == candidates[:, 0]).float().mean().item()
    return (losses * weights).sum() / weights.sum(), agreement


class DraftTrainer:
    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        torch.manual_seed(args.seed)
        target = load_target(args.builtin)
        self.draft = initial_draft(target)
        self.lessons = Lessons(args.work, target, args.seed)
        self.limits = attention_norms(self.draft)
        layers = list(self.draft.model.layers.parameters())
        options = {"betas": (0.9, 0.95), "weight_decay": 0.0, "fused": True}
        backbone = self.draft.model
        self.optimizers = [
            Muon([p for p in layers if p.ndim == 2], lr=MUON_LR),
            *(
                torch.optim.AdamW(parameters, lr=lr, **options)
                for parameters, lr in (
                    ([backbone.embed_tokens.weight], EMBEDDING_LR),
                    ([p for p in layers if p.ndim == 1], NORM_LR),
                    ([backbone.norm.weight], FINAL_NORM_LR),
                )
            ),
        ]
        self.base_lrs = [MUON_LR, EMBEDDING_LR, NORM_LR, FINAL_NORM_LR]
        self.step, self.elapsed, self.stopped = 0, 0.0, False
        self.path = args.work / "draft.pt"

    def progress(self) -> float:
        if self.args.steps:
            return self.step / self.args.steps
        return self.elapsed / (60 * self.args.minutes)

    def train_step(self) -> tuple[float, float]:
        left = max(0.0, (1 - self.progress()) / DECAY_FRACTION)
        factor = min(1.0, (self.step + 1) / WARMUP_STEPS, left)
        for optimizer, base in zip(self.optimizers, self.base_lrs, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = base * factor
        is_long = self.step % 2 == 1 and self.progress() > 1 - LONG_FRACTION
        batch = self.lessons.long_batch() if is_long else self.lessons.batch()
        loss, agreement = draft_loss(self.draft, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.draft.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        limit_attention(self.limits)
        self.step += 1
        return loss.item(), agreement

    def run(self) -> None:
        signal.signal(signal.SIGTERM, lambda *_: setattr(self, "stopped", True))
        began = saved = time.monotonic()
        began -= self.elapsed
        recent: list[tuple[float, float]] = []
        while self.progress() < 1 and not self.stopped:
            recent = [*recent[-49:], self.train_step()]
            self.elapsed = time.monotonic() - began
            if self.step % 50 == 0:
                loss, agreement = np.mean(recent, axis=0)
                print(
                    f"step {self.step} {self.elapsed:.0f} s loss {loss:.4f} "
                    f"same token {agreement:.4f}",
                    flush=True,
                )
            if time.monotonic() - saved > 120:
                self.save()
                saved = time.monotonic()
        self.save()

    def save(self) -> None:
        state = {
            "shape": self.draft.shape.to_dict(),
            "model": self.draft.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "batches": self.lessons.num_batches,
            "mixture": self.lessons.short.state(),
            "step": self.step,
            "elapsed": self.elapsed,
        }
        torch.save(state, self.path.with_suffix(".partial"))
        self.path.with_suffix(".partial").replace(self.path)

    def resume(self) -> None:
        state = torch.load(self.path, weights_only=True)
        self.draft.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.lessons.num_batches = state["batches"]
        self.lessons.short.restore(state["mixture"])
        self.step, self.elapsed = state["step"], state["elapsed"]


def export(args: argparse.Namespace) -> None:
    export_model(load_model(args.work / "draft.pt"), args.work, args.builtin / "draft")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    training = verbs.add_parser("train", help="train the draft, or go on from its checkpoint")
    training.add_argument("--minutes", type=float, default=45.0, help="length by the clock")
    training.add_argument("--steps", type=int, default=0, help="length in steps (reproducible)")
    training.add_argument("--seed", type=int, default=1)
    training.add_argument("--threads", type=int, default=1)
    training.add_argument("--resume", action="store_true")
    exporting = verbs.add_parser("export", help="write draft/ beside target/")
    for verb in (training, exporting):
        verb.add_argument("--work", type=Path, default=Path("build/builtin_model"))
        verb.add_argument("--builtin", type=Path, default=Path("src/trimtab/builtin"))
    args = parser.parse_args()
    if args.verb == "export":
        export(args)
        return
    torch.set_num_threads(args.threads)
    trainer = DraftTrainer(args)
    if args.resume:
        trainer.resume()
    trainer.run()


if __name__ == "__main__":
    main()
