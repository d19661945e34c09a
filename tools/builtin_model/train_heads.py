"""Train the draft head of the built-in model, and measure what the target accepts of its drafts.

    python generate.py --work DIR --builtin ../../src/trimtab/builtin
    python train_heads.py train --work DIR --builtin ../../src/trimtab/builtin --minutes 60
    python train_heads.py export --work DIR --builtin ../../src/trimtab/builtin
    python train_heads.py evaluate --builtin ../../src/trimtab/builtin

DIR is that of train.py, with its corpus.json and knowledge.json. See README.md beside this file.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import time
from pathlib import Path

import numpy as np
import torch
from data import MIX
from draft_head import DraftHead, head_loss, read_texts
from export import config_of, write_json
from model import Llama, ModelShape
from muon import Muon
from safetensors.torch import load_file, save_file
from tokenizer import BOS_ID
from torch import Tensor
from train import Recipe, limit_attention, load_mixture

LAYER_IDS = (2, 4, 5)
STEPS = 4
DECAY = 0.8
SHARE = 0.7  # of the positions whose logits a step computes, where the target wrote the text
GIVEN_SHARE = 0.15  # where it did not
ROWS, TIME = 4, 384
MIXTURE_SHARE = 0.25  # of the rows; the others are what the target wrote
MUON_LR, NORM_LR, OUTPUT_LR = 0.015, 0.002, 0.001
SHIPPED_LR_SHARE = 0.6  # of these, for a head that is trained already


def load_target(builtin: Path) -> Llama:
    config = json.loads((builtin / "target" / "config.json").read_text())
    shape = ModelShape(
        vocab_size=config["vocab_size"],
        hidden_size=config["hidden_size"],
        num_layers=config["num_hidden_layers"],
        num_heads=config["num_attention_heads"],
        num_kv_heads=config["num_key_value_heads"],
        head_dim=config["head_dim"],
        ffn_size=config["intermediate_size"],
        max_positions=config["max_position_embeddings"],
        rope_theta=config["rope_theta"],
        norm_eps=config["rms_norm_eps"],
    )
    model = Llama(shape)
    tensors = load_file(builtin / "target" / "model.safetensors")
    model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    return model.eval().requires_grad_(False)


class Rows:
    """An endless, seeded stream of packed rows: most of what the target wrote, some of its training
    text, conversations among it."""

    def __init__(self, work: Path, seed: int) -> None:
        recipe = Recipe(seed=seed, rows=ROWS, time=TIME, mix=dict(MIX))
        self.mixture = load_mixture(work, recipe)
        self.path, self.seed = work / "generated.jsonl", seed
        self.num_batches = self.given = 0

    def batch(self) -> tuple[Tensor, Tensor, Tensor]:
        """Token ids, documents, and how likely each position is learned, [ROWS, TIME]."""
        self.num_batches += 1
        count = round(ROWS * MIXTURE_SHARE)
        mixed = self.mixture.batch(count, TIME)
        ids = np.zeros((ROWS, TIME), np.int64)
        documents = np.full((ROWS, TIME), -1, np.int64)
        shares = np.full((ROWS, TIME), SHARE, np.float32)
        ids[:count], documents[:count] = mixed.inputs, mixed.document_ids
        shares[:count] = np.where(mixed.weights > 0, SHARE, 0)
        for row in range(count, ROWS):
            filled = number = 0
            while filled < TIME:
                text, num_given = self._next()
                text = text[: TIME - filled]
                ids[row, filled : filled + len(text)] = text
                shares[row, filled : filled + min(len(text), num_given - 1)] = GIVEN_SHARE
                documents[row, filled : filled + len(text)] = number
                filled, number = filled + len(text), number + 1
        return torch.from_numpy(ids), torch.from_numpy(documents), torch.from_numpy(shares)

    def _next(self) -> tuple[list[int], int]:
        """The texts in random order, over and over, and how much of each was given to the target;
        the file may grow meanwhile."""
        if self.given == 0:
            entries = map(json.loads, self.path.read_text().splitlines())
            self.texts = [(entry["token_ids"], entry["num_prompt_tokens"]) for entry in entries]
            random.Random(f"{self.seed}/{self.num_batches}").shuffle(self.texts)
        text = self.texts[self.given]
        self.given = (self.given + 1) % len(self.texts)
        return text


class HeadTrainer:
    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        torch.manual_seed(args.seed)
        self.target = load_target(args.builtin)
        if args.shipped:
            self.head = load_head(args.builtin, self.target).train()
        else:
            self.head = DraftHead(self.target.shape, LAYER_IDS, self.target)
        self.rows = Rows(args.work, args.seed)
        layer = self.head.midlayer
        attention = [layer.self_attn.q_proj.weight, layer.self_attn.k_proj.weight]
        self.limits = [(matrix, matrix.detach().norm()) for matrix in attention]
        matrices = [self.head.fc.weight, *(p for p in layer.parameters() if p.ndim == 2)]
        norms = [p for p in self.head.parameters() if p.ndim == 1]
        options = {"betas": (0.9, 0.95), "weight_decay": 0.0, "fused": True}
        self.optimizers = [
            Muon(matrices, lr=MUON_LR),
            torch.optim.AdamW(norms, lr=NORM_LR, **options),
            torch.optim.AdamW([self.head.lm_head.weight], lr=OUTPUT_LR, **options),
        ]
        scale = SHIPPED_LR_SHARE if args.shipped else 1.0
        self.base_lrs = [scale * lr for lr in (MUON_LR, NORM_LR, OUTPUT_LR)]
        self.step, self.elapsed, self.stopped = 0, 0.0, False

    def progress(self) -> float:
        if self.args.steps:
            return self.step / self.args.steps
        return self.elapsed / (60 * self.args.minutes)

    def train_step(self) -> tuple[float, list[float]]:
        factor = min(1.0, (self.step + 1) / 40, max(0.0, (1 - self.progress()) / 0.8))
        for optimizer, base in zip(self.optimizers, self.base_lrs, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = base * factor
        with torch.autocast("cpu", torch.bfloat16):
            ids, documents, shares = self.rows.batch()
            texts = read_texts(self.target, LAYER_IDS, ids, documents)
            loss, agreement = head_loss(self.head, texts, shares, STEPS, DECAY)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.head.parameters(), 1.0)
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
        recent = []
        while self.progress() < 1 and not self.stopped:
            loss, agreement = self.train_step()
            recent = [*recent[-9:], [loss, *agreement]]
            self.elapsed = time.monotonic() - began
            if self.step % 10 == 0:
                loss, *shares = np.mean(recent, axis=0)
                text = " ".join(f"{share:.3f}" for share in shares)
                print(
                    f"step {self.step} {self.elapsed:.0f} s loss {loss:.4f} same token {text}",
                    flush=True,
                )
            if time.monotonic() - saved > 120:
                self.save()
                saved = time.monotonic()
        self.save()

    def save(self) -> None:
        state = {
            "head": self.head.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "batches": self.rows.num_batches,
            "mixture": self.rows.mixture.state(),
            "step": self.step,
            "elapsed": self.elapsed,
        }
        torch.save(state, self.args.work / "head.partial")
        (self.args.work / "head.partial").replace(self.args.work / "head.pt")

    def resume(self) -> None:
        state = torch.load(self.args.work / "head.pt", weights_only=True)
        self.head.load_state_dict(state["head"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.rows.num_batches = state["batches"]
        self.rows.mixture.restore(state["mixture"])
        self.step, self.elapsed = state["step"], state["elapsed"]


@torch.no_grad()
def export(args: argparse.Namespace) -> None:
    """Write the head as published heads are, in bf16; its embeddings are the target's."""
    target = load_target(args.builtin)
    head = DraftHead(target.shape, LAYER_IDS, target)
    head.load_state_dict(torch.load(args.work / "head.pt", weights_only=True)["head"])
    out, shape = args.builtin / "heads", target.shape
    out.mkdir(exist_ok=True)
    tensors = {name: t.to(torch.bfloat16).contiguous() for name, t in head.state_dict().items()}
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    config = {
        **config_of(target),
        "architectures": ["LlamaForCausalLMEagle3"],
        "num_hidden_layers": 1,
        "tie_word_embeddings": False,
        "draft_vocab_size": shape.vocab_size,
        "target_hidden_size": shape.hidden_size,
        "norm_before_residual": False,
        "eagle_aux_hidden_state_layer_ids": list(LAYER_IDS),
    }
    write_json(out / "config.json", config)


def load_head(builtin: Path, target: Llama) -> DraftHead:
    """The exported one."""
    head = DraftHead(target.shape, LAYER_IDS, target)
    tensors = load_file(builtin / "heads" / "model.safetensors")
    head.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    return head.eval()


def continuations(builtin: Path, count: int, length: int) -> list[tuple[list[int], int]]:
    """Greedy continuations of pieces of the held-out text: token ids, and how many are given."""
    from trimtab import LLM, SamplingParams

    llm = LLM(str(builtin / "target"), speculative="off")
    ids = llm.tokenizer.encode((builtin / "heldout.txt").read_text(encoding="utf-8"))
    stride = len(ids) // count
    prompts = [[BOS_ID, *ids[i * stride : i * stride + 128]] for i in range(count)]
    results = llm.generate(prompts, SamplingParams(max_tokens=length, temperature=0))
    pairs = zip(prompts, results, strict=True)
    return [(prompt + result.outputs[0].token_ids, len(prompt)) for prompt, result in pairs]


@torch.no_grad()
def acceptance(target: Llama, head: DraftHead, texts: list, steps: int = 6) -> list[list[int]]:
    """[drafted, accepted] of each position of drafts that begin behind every token of the
    continuations; a position counts where all before it were accepted."""
    counts = [[0, 0] for _ in range(steps)]
    for token_ids, num_given in texts:
        ids = torch.tensor([token_ids])
        read = read_texts(target, LAYER_IDS, ids, torch.zeros_like(ids))
        alive = torch.arange(ids.shape[1]) >= num_given - 2
        for step, normed in enumerate(head.unroll(read, steps, greedy=True)):
            alive = alive & (torch.arange(ids.shape[1]) + 2 + step < ids.shape[1])
            right = head.lm_head(normed)[0].argmax(-1) == ids[0].roll(-2 - step)
            counts[step][0] += int(alive.sum())
            alive = alive & right
            counts[step][1] += int(alive.sum())
    return counts


def evaluate(args: argparse.Namespace) -> None:
    target = load_target(args.builtin)
    head = load_head(args.builtin, target)
    texts = continuations(args.builtin, args.count, 96)
    counts = acceptance(target, head, texts)
    rates = [accepted / max(1, drafted) for drafted, accepted in counts]
    print("acceptance by position", " ".join(f"{rate:.3f}" for rate in rates))
    print("accepted of a draft of 6", f"{sum(a for _, a in counts) / counts[0][0]:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    training = verbs.add_parser("train", help="train the head, or go on from its checkpoint")
    training.add_argument("--minutes", type=float, default=60.0, help="length by the clock")
    training.add_argument("--steps", type=int, default=0, help="length in steps (reproducible)")
    training.add_argument("--seed", type=int, default=1)
    training.add_argument("--resume", action="store_true")
    training.add_argument("--shipped", action="store_true", help="start from the shipped weights")
    exporting = verbs.add_parser("export", help="write heads/ beside target/")
    evaluating = verbs.add_parser("evaluate", help="acceptance by position on held-out code")
    evaluating.add_argument("--count", type=int, default=48, help="prompts")
    for verb in (training, exporting, evaluating):
        verb.add_argument("--work", type=Path, default=Path("build/builtin_model"))
        verb.add_argument("--builtin", type=Path, default=Path("src/trimtab/builtin"))
        verb.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.verb == "export":
        export(args)
    elif args.verb == "evaluate":
        evaluate(args)
    else:
        trainer = HeadTrainer(args)
        if args.resume:
            trainer.resume()
        trainer.run()


if __name__ == "__main__":
    main()
