"""Teach a copy of the built-in model to edit: to write code down again with a name replaced.

    python train_edits.py train --work DIR --builtin ../../src/trimtab/builtin --steps 240
    python train_edits.py export --work DIR --builtin ../../src/trimtab/builtin --out DIR/editor

The shipped model copies next to nothing longer than a word, so what lookup gains where an answer
repeats its prompt cannot be seen on it. The editor is for that measurement and is not shipped. It
learns from training text alone: pieces of it, and lines from anywhere in it in random order, which
cannot be guessed but only copied. DIR is that of train.py, with its corpus.json.
"""

from __future__ import annotations

import argparse
import json
import keyword
import random
import re
import signal
import time
from pathlib import Path

import torch
from data import ChatEncoder, Document
from export import export_model
from muon import Muon
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F
from train import attention_norms, limit_attention
from train_heads import load_target

QUESTION = "Replace {old} with {new}:\n{source}"
ROWS, TIME = 4, 768
CHARACTERS = (200, 1100)  # of the code to edit
SHUFFLED_SHARE = 0.5
MUON_LR, EMBEDDING_LR, NORM_LR = 0.008, 0.003, 0.001
WARMUP_STEPS, DECAY_FRACTION = 20, 0.6
NAME = re.compile(r"(?<![\w.])[a-z_]{4,}\b")


class Edits:
    """An endless, seeded stream of rows, each a conversation about one piece of code."""

    def __init__(self, work: Path, seed: int) -> None:
        self.encoder = ChatEncoder(Tokenizer.from_file(str(work / "tokenizer.json")))
        self.texts = [t for t in json.loads((work / "corpus.json").read_text()) if len(t) > 2000]
        self.lengths = [len(text) for text in self.texts]
        self.seed, self.num_given = seed, 0

    def batch(self) -> tuple[Tensor, Tensor]:
        """Token ids and the weights of each as a target, [ROWS, TIME]; what is left is padding."""
        ids = torch.zeros(ROWS, TIME, dtype=torch.int64)
        weights = torch.zeros(ROWS, TIME)
        for row in range(ROWS):
            document = self._next()
            size = len(document.token_ids)
            ids[row, :size] = torch.tensor(document.token_ids)
            weights[row, :size] = torch.tensor(document.weights)
        return ids, weights

    def _next(self) -> Document:
        while True:
            rng = random.Random(f"{self.seed}/{self.num_given}")
            self.num_given += 1
            source = self._source(rng)
            names = [name for name in NAME.findall(source) if not keyword.iskeyword(name)]
            if not names:
                continue
            old = rng.choice(names)
            new = rng.choice(NAME.findall(self._piece(rng, 2000)) or ["renamed"])
            answer = re.sub(rf"\b{old}\b", new, source)
            question = QUESTION.format(old=old, new=new, source=source)
            document = self.encoder.chat([(question, answer)], 1.0)
            if len(document.token_ids) <= TIME:
                return document

    def _source(self, rng: random.Random) -> str:
        size = rng.randint(*CHARACTERS)
        if rng.random() >= SHUFFLED_SHARE:
            return self._piece(rng, size)
        lines = [line for _ in range(3) for line in self._piece(rng, size).split("\n")]
        rng.shuffle(lines)
        text = "\n".join(line for line in lines if line.strip())
        return text[: text.rfind("\n", 0, size)].strip("\n")

    def _piece(self, rng: random.Random, size: int) -> str:
        """Whole lines."""
        text = rng.choices(self.texts, weights=self.lengths)[0]
        start = text.rfind("\n", 0, rng.randrange(len(text) - 1000)) + 1
        return text[start : text.rfind("\n", start, start + size)].strip("\n")


class EditTrainer:
    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        torch.manual_seed(args.seed)
        self.model = load_target(args.builtin).train().requires_grad_(True)
        self.edits = Edits(args.work, args.seed)
        self.limits = attention_norms(self.model)
        matrices = [p for p in self.model.model.layers.parameters() if p.ndim == 2]
        norms = [p for p in self.model.parameters() if p.ndim == 1]
        options = {"betas": (0.9, 0.95), "weight_decay": 0.0, "fused": True}
        self.optimizers = [
            Muon(matrices, lr=MUON_LR),
            torch.optim.AdamW([self.model.model.embed_tokens.weight], lr=EMBEDDING_LR, **options),
            torch.optim.AdamW(norms, lr=NORM_LR, **options),
        ]
        self.base_lrs = [MUON_LR, EMBEDDING_LR, NORM_LR]
        self.step, self.stopped = 0, False

    def train_step(self) -> tuple[float, float]:
        """Loss, and the share of the answers' tokens that were the most likely ones."""
        left = (1 - self.step / self.args.steps) / DECAY_FRACTION
        factor = min(1.0, (self.step + 1) / WARMUP_STEPS, left)
        for optimizer, base in zip(self.optimizers, self.base_lrs, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = base * factor
        ids, weights = self.edits.batch()
        wanted = weights[:, 1:] > 0
        with torch.autocast("cpu", torch.bfloat16):
            logits = self.model(ids[:, :-1], wanted=wanted).float()
        targets = ids[:, 1:][wanted]
        loss = F.cross_entropy(logits, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        limit_attention(self.limits)
        self.step += 1
        return loss.item(), (logits.argmax(-1) == targets).float().mean().item()

    def run(self) -> None:
        """A terminated run keeps what it has learned."""
        signal.signal(signal.SIGTERM, lambda *_: setattr(self, "stopped", True))
        began = time.monotonic()
        recent: list[tuple[float, float]] = []
        while self.step < self.args.steps and not self.stopped:
            recent = [*recent[-9:], self.train_step()]
            if self.step % 10 == 0:
                loss, right = (sum(values) / len(recent) for values in zip(*recent, strict=True))
                seconds = time.monotonic() - began
                print(
                    f"step {self.step} {seconds:.0f} s loss {loss:.4f} right {right:.4f}",
                    flush=True,
                )
            if self.step % 50 == 0:
                self.save()
        self.save()

    def save(self) -> None:
        state = {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "given": self.edits.num_given,
            "step": self.step,
        }
        torch.save(state, self.args.work / "editor.partial")
        (self.args.work / "editor.partial").replace(self.args.work / "editor.pt")

    def resume(self) -> None:
        state = torch.load(self.args.work / "editor.pt", weights_only=True)
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.edits.num_given, self.step = state["given"], state["step"]


def export(args: argparse.Namespace) -> None:
    model = load_target(args.builtin)
    model.load_state_dict(torch.load(args.work / "editor.pt", weights_only=True)["model"])
    export_model(model, args.work, args.out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    training = verbs.add_parser("train", help="train the editor")
    training.add_argument("--steps", type=int, default=240)
    training.add_argument("--seed", type=int, default=1)
    training.add_argument("--threads", type=int, default=1)
    training.add_argument("--resume", action="store_true", help="a longer --steps may be given")
    exporting = verbs.add_parser("export", help="write it as a model directory")
    exporting.add_argument("--out", type=Path, required=True)
    for verb in (training, exporting):
        verb.add_argument("--work", type=Path, default=Path("build/builtin_model"))
        verb.add_argument("--builtin", type=Path, default=Path("src/trimtab/builtin"))
    args = parser.parse_args()
    if args.verb == "export":
        export(args)
        return
    torch.set_num_threads(args.threads)
    trainer = EditTrainer(args)
    if args.resume:
        trainer.resume()
    trainer.run()


if __name__ == "__main__":
    main()
