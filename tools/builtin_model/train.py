"""Build the built-in model: ``prepare`` the data, ``train`` the target, ``export`` it.

    python train.py prepare --work DIR
    python train.py train --work DIR --minutes 60
    python train.py export --work DIR --out src/trimtab/builtin

See README.md beside this file for the recorded run, and for its draft and draft head.
"""

from __future__ import annotations

import argparse
import copy
import json
import queue
import random
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from chat_samples import QUESTIONS, Knowledge, task_items
from corpus import held_out_text, recall_facts, short_functions, training_documents
from data import MIX, Batch, ChatEncoder, CodeChunks, Mixture
from export import export_data, export_model
from induction import seed_induction
from model import PRESETS, Llama, ModelShape
from muon import Muon
from tokenizer import ASSISTANT_ID, BOS_ID, END_ID, USER_ID, train_tokenizer
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F

TASK_SEED = 20_000
CHAT_IN_VOCABULARY = 500  # times that the tokenizer's training sees each question


@dataclass
class Recipe:
    """Everything that decides a run, but for the device."""

    seed: int = 1
    rows: int = 8
    time: int = 256
    muon_lr: float = 0.015
    embedding_lr: float = 0.02
    norm_lr: float = 0.002
    final_norm_lr: float = 0.0002
    warmup_steps: int = 100
    decay_fraction: float = 0.9
    long_fraction: float = 0.05  # the last part of the run, in rows of max_positions
    mix: dict[str, float] = field(default_factory=lambda: dict(MIX))


def prepare(work: Path, vocab_size: int, include_tests: bool) -> None:
    """Write the corpus, the tokenizer, the recall facts and the task file to ``work``."""
    work.mkdir(parents=True, exist_ok=True)
    documents = training_documents(include_tests)
    facts = recall_facts()
    chat = [question for _ in range(CHAT_IN_VOCABULARY) for question in QUESTIONS]
    tokenizer = train_tokenizer([*documents, *facts.values(), *chat], vocab_size)
    tokenizer.save(str(work / "tokenizer.json"))
    (work / "corpus.json").write_text(json.dumps(documents))
    (work / "heldout.txt").write_text(held_out_text(), encoding="utf-8")
    knowledge = {"facts": sorted(facts.items()), "functions": short_functions(documents)}
    (work / "knowledge.json").write_text(json.dumps(knowledge))
    with (work / "tasks.jsonl").open("w", encoding="utf-8") as file:
        for item in task_items(TASK_SEED, facts):
            file.write(json.dumps(item) + "\n")
    num_bytes = sum(len(text.encode()) for text in documents)
    num_tokens = sum(
        len(e.ids) for e in tokenizer.encode_batch_fast(documents, add_special_tokens=False)
    )
    print(
        f"{len(documents)} documents, {num_bytes:,} bytes, {num_tokens:,} tokens, "
        f"{len(facts)} facts, {len(knowledge['functions'])} functions"
    )


def load_mixture(work: Path, recipe: Recipe) -> Mixture:
    encoder = ChatEncoder(Tokenizer.from_file(str(work / "tokenizer.json")))
    knowledge = json.loads((work / "knowledge.json").read_text())
    texts = json.loads((work / "corpus.json").read_text())
    return Mixture(
        encoder,
        CodeChunks(encoder.tokenizer, texts, recipe.time - 1, recipe.seed),
        Knowledge(tuple(map(tuple, knowledge["facts"])), tuple(map(tuple, knowledge["functions"]))),
        recipe.seed,
        recipe.mix,
    )


class Probe:
    """Cheap checks while training: held-out bits per byte and exact match on the tasks."""

    def __init__(self, work: Path, encoder: ChatEncoder, per_kind: int = 24) -> None:
        text = (work / "heldout.txt").read_text(encoding="utf-8")
        pieces = [text[start : start + 1400] for start in range(0, len(text), len(text) // 16)][:16]
        self.pieces = [(encoder.encode(piece), len(piece.encode())) for piece in pieces]
        by_kind: dict[str, list[tuple[list[int], list[int]]]] = {}
        for line in (work / "tasks.jsonl").read_text(encoding="utf-8").splitlines():
            item = json.loads(line)
            prompt = [BOS_ID, USER_ID, *encoder.encode(item["prompt"]), END_ID, ASSISTANT_ID]
            answer = [*encoder.encode(item["answer"]), END_ID]
            by_kind.setdefault(item["kind"], []).append((prompt, answer))
        self.tasks = {kind: items[:per_kind] for kind, items in by_kind.items()}

    @torch.no_grad()
    def run(self, model: Llama, device: str) -> dict[str, float]:
        """``bpb`` and, by kind, the share of tasks that greedy decoding answers exactly.

        Greedy decoding gives the answer if and only if every token of it is the most likely one
        after the prompt and the answer's earlier tokens, so one forward pass decides.
        """
        nats = num_bytes = 0.0
        for ids, size in self.pieces:
            tokens = torch.tensor([[BOS_ID, *ids]], device=device)
            logits = model(tokens[:, :-1]).float()
            nats += F.cross_entropy(logits[0], tokens[0, 1:], reduction="sum").item()
            num_bytes += size
        scores = {"bpb": nats / num_bytes / np.log(2)}
        for kind, items in self.tasks.items():
            scores[kind] = np.mean([self._exact(model, *item, device) for item in items]).item()
        return scores

    @staticmethod
    def _exact(model: Llama, prompt: list[int], answer: list[int], device: str) -> bool:
        tokens = torch.tensor([prompt + answer], device=device)
        picked = model(tokens[:, :-1])[0, len(prompt) - 1 :].argmax(-1)
        return picked.tolist() == answer


def loss_sum(model: Llama, batch: tuple[Tensor, ...]) -> Tensor:
    """Weighted sum of cross-entropies."""
    inputs, targets, weights, document_ids = batch
    wanted = weights > 0
    logits = model(inputs, document_ids, wanted).float()
    losses = F.cross_entropy(logits, targets[wanted], reduction="none")
    return (losses * weights[wanted]).sum()


class Workers:
    """Forward and backward of a batch, row by row, on several threads that share the weights.

    Every thread takes the next row when it is free, so a core that other programs slow down does
    not hold up the rest, as it would with threads inside every operation. The order in which the
    rows' gradients are added is therefore not fixed.
    """

    def __init__(self, model: Llama, count: int) -> None:
        self.replicas = [model, *(copy.deepcopy(model) for _ in range(count - 1))]
        for replica in self.replicas[1:]:
            for mine, shared in zip(replica.parameters(), model.parameters(), strict=True):
                mine.data = shared.data
        self.pool = ThreadPoolExecutor(count)

    def backward(self, batch: tuple[Tensor, ...]) -> float:
        """Set the gradients of the batch's mean loss on the model; returns the loss."""
        total = batch[2].sum()
        rows = queue.SimpleQueue()
        for row in range(len(batch[0])):
            rows.put(tuple(part[row : row + 1] for part in batch))
        losses = list(
            self.pool.map(lambda replica: self._drain(replica, rows, total), self.replicas)
        )
        for replica in self.replicas[1:]:
            for mine, theirs in zip(
                self.replicas[0].parameters(), replica.parameters(), strict=True
            ):
                if theirs.grad is not None:
                    mine.grad = theirs.grad if mine.grad is None else mine.grad.add_(theirs.grad)
                    theirs.grad = None
        return sum(losses)

    def _drain(self, replica: Llama, rows: queue.SimpleQueue, total: Tensor) -> float:
        torch.set_num_threads(1)
        sum_of_losses = 0.0
        while True:
            try:
                part = rows.get_nowait()
            except queue.Empty:
                return sum_of_losses
            loss = loss_sum(replica, part) / total
            loss.backward()
            sum_of_losses += loss.item()


def attention_norms(model: Llama) -> list[tuple[torch.nn.Parameter, Tensor]]:
    """Query and key matrices, each with its present norm."""
    attentions = [layer.self_attn for layer in model.model.layers]
    matrices = [m.weight for a in attentions for m in (a.q_proj, a.k_proj)]
    return [(matrix, matrix.detach().norm()) for matrix in matrices]


@torch.no_grad()
def limit_attention(limits: list[tuple[torch.nn.Parameter, Tensor]]) -> None:
    """Scale every matrix that has grown beyond its limit back to it.

    Muon's steps have a fixed size, and nothing else bounds query and key matrices: without this
    the attention logits grow until every head looks at a single position and learns no more.
    """
    for matrix, norm in limits:
        matrix.mul_((norm / matrix.norm()).clamp(max=1.0))


def as_tensors(batch: Batch, device: str) -> tuple[Tensor, ...]:
    arrays = (batch.inputs, batch.targets, batch.weights, batch.document_ids)
    return tuple(torch.from_numpy(np.ascontiguousarray(a)).to(device) for a in arrays)


class Trainer:
    """One run: model, optimizers, data and clock, all of which go into a checkpoint."""

    def __init__(self, args: argparse.Namespace, recipe: Recipe) -> None:
        self.args, self.recipe = args, recipe
        torch.manual_seed(recipe.seed)
        self.mixture = load_mixture(args.work, recipe)
        self.probe = Probe(args.work, self.mixture.encoder)
        self.shape = PRESETS["target"]
        vocab_size = self.mixture.encoder.tokenizer.get_vocab_size()
        self.shape = type(self.shape)(**{**self.shape.to_dict(), "vocab_size": vocab_size})
        self.model = Llama(self.shape)
        seed_induction(self.model)
        self.model.to(args.device)
        self.attention_limits = attention_norms(self.model)
        self.cuda = args.device.startswith("cuda")
        self.workers = Workers(self.model, 1 if self.cuda else args.threads)
        matrices = [p for p in self.model.model.layers.parameters() if p.ndim == 2]
        norms = [p for p in self.model.model.layers.parameters() if p.ndim == 1]
        self.optimizers = [
            Muon(matrices, lr=recipe.muon_lr, pool=None if self.cuda else self.workers.pool),
            *(
                torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.95), weight_decay=0, fused=True)
                for parameters, lr in (
                    ([self.model.model.embed_tokens.weight], recipe.embedding_lr),
                    (norms, recipe.norm_lr),
                    ([self.model.model.norm.weight], recipe.final_norm_lr),
                )
            ),
        ]
        self.base_lrs = [
            recipe.muon_lr,
            recipe.embedding_lr,
            recipe.norm_lr,
            recipe.final_norm_lr,
        ]
        self.step = self.tokens = 0
        self.elapsed = 0.0
        self.stopped = False
        self.time = recipe.time
        self.cuda_loss = torch.compile(loss_sum) if args.compile else loss_sum
        self.path = args.work / "target.pt"

    def progress(self) -> float:
        """From 0 to 1: by steps where they are given (reproducible), else by the clock."""
        if self.args.steps:
            return self.step / self.args.steps
        return self.elapsed / (60 * self.args.minutes)

    def set_learning_rates(self) -> float:
        left = (1 - self.progress()) / self.recipe.decay_fraction
        factor = min(1.0, (self.step + 1) / self.recipe.warmup_steps, max(0.0, left))
        for optimizer, base in zip(self.optimizers, self.base_lrs, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = base * factor
        momentum = 0.85 + 0.1 * min(1.0, self.step / 300)
        self.optimizers[0].param_groups[0]["momentum"] = momentum
        return factor

    def train_step(self) -> float:
        """One optimizer step; returns the loss."""
        if self.time == self.recipe.time and self.progress() > 1 - self.recipe.long_fraction:
            self.time = self.shape.max_positions
            self.mixture.code.lengthen(self.time - 1)
        rows = max(1, self.recipe.rows * self.recipe.time // self.time)
        batch = as_tensors(self.mixture.batch(rows, self.time), self.args.device)
        loss = self._cuda_backward(batch) if self.cuda else self.workers.backward(batch)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        limit_attention(self.attention_limits)
        self.step += 1
        self.tokens += rows * self.time
        return loss

    def _cuda_backward(self, batch: tuple[Tensor, ...]) -> float:
        with torch.autocast("cuda", torch.bfloat16):
            loss = self.cuda_loss(self.model, batch) / batch[2].sum()
        loss.backward()
        return loss.item()

    def run(self) -> None:
        start = time.monotonic() - self.elapsed
        saved = probed = time.monotonic()
        recent: list[float] = []
        signal.signal(signal.SIGTERM, self._stop)
        while self.progress() < 1 and not self.stopped:
            factor = self.set_learning_rates()
            recent.append(self.train_step())
            self.elapsed = time.monotonic() - start
            if self.step % 10 == 0:
                rate = self.tokens / self.elapsed
                print(
                    f"step {self.step} progress {self.progress():.3f} lr x{factor:.3f} "
                    f"loss {np.mean(recent[-10:]):.4f} tokens {self.tokens:,} {rate:.0f}/s",
                    flush=True,
                )
            if time.monotonic() - probed > self.args.probe_seconds:
                self.report()
                probed = time.monotonic()
            if time.monotonic() - saved > 300:
                self.save()
                saved = time.monotonic()
        self.save()
        if not self.stopped:
            self.report()

    def _stop(self, *_: object) -> None:
        """A terminated run saves its state after the step at hand."""
        self.stopped = True

    def report(self) -> None:
        self.model.eval()
        scores = self.probe.run(self.model, self.args.device)
        self.model.train()
        text = " ".join(f"{name} {value:.3f}" for name, value in scores.items())
        print(f"  probe at step {self.step} (epoch {self.mixture.code.epoch}): {text}", flush=True)

    def save(self) -> None:
        state = {
            "shape": self.shape.to_dict(),
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "mixture": self.mixture.state(),
            "step": self.step,
            "tokens": self.tokens,
            "elapsed": self.elapsed,
        }
        partial = self.path.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self.path)

    def resume(self) -> None:
        state = torch.load(self.path, map_location=self.args.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.mixture.restore(state["mixture"])
        for name in ("step", "tokens", "elapsed"):
            setattr(self, name, state[name])


def load_model(checkpoint: Path) -> Llama:
    """The model that a run of this script, or of train_draft.py, has saved."""
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    model = Llama(ModelShape(**state["shape"]))
    model.load_state_dict(state["model"])
    return model.eval().requires_grad_(False)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    preparing = verbs.add_parser("prepare", help="write corpus, tokenizer and tasks")
    preparing.add_argument("--vocab-size", type=int, default=6144)
    preparing.add_argument("--include-tests", action="store_true", help="add Lib/test (GPU runs)")
    training = verbs.add_parser("train", help="train it, or go on from its checkpoint")
    training.add_argument("--minutes", type=float, default=85.0, help="length by the clock")
    training.add_argument("--steps", type=int, default=0, help="length in steps (reproducible)")
    training.add_argument("--device", default="cpu", help="cpu or cuda")
    training.add_argument("--threads", type=int, default=2)
    training.add_argument("--rows", type=int, default=0, help="rows of 256 tokens a step")
    training.add_argument("--seed", type=int, default=1)
    training.add_argument("--probe-seconds", type=float, default=240.0)
    training.add_argument("--resume", action="store_true")
    training.add_argument("--no-compile", dest="compile", action="store_false", help="cuda only")
    exporting = verbs.add_parser("export", help="write the Hugging Face directories")
    exporting.add_argument("--out", type=Path, default=Path("src/trimtab/builtin"))
    for verb in (preparing, training, exporting):
        verb.add_argument("--work", type=Path, default=Path("build/builtin_model"))
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    random.seed(0)
    if args.verb == "prepare":
        prepare(args.work, args.vocab_size, args.include_tests)
    elif args.verb == "train":
        torch.set_num_threads(args.threads)  # of the optimizer; workers use one each
        torch.set_float32_matmul_precision("high")
        rows = args.rows or (128 if args.device.startswith("cuda") else 8)
        trainer = Trainer(args, Recipe(seed=args.seed, rows=rows))
        if args.resume:
            trainer.resume()
        trainer.run()
    else:
        export_data(args.work, args.out)
        export_model(load_model(args.work / "target.pt"), args.work, args.out / "target")


if __name__ == "__main__":
    main()
