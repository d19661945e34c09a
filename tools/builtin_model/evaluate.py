"""Score an exported model with Hugging Face transformers: text, tasks, and the draft's agreement.

python evaluate.py --builtin src/trimtab/builtin [--role target]
"""

from __future__ import annotations

import argparse
import json
import math
from collections import defaultdict
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

BATCH = 25


def windows_of(token_ids: list[int], bos_id: int, length: int) -> list[Tensor]:
    """Consecutive windows of at most ``length`` tokens, each after a <|bos|>."""
    step = length - 1
    return [
        torch.tensor([[bos_id, *token_ids[start : start + step]]])
        for start in range(0, len(token_ids), step)
    ]


@torch.inference_mode()
def text_scores(model, windows: list[Tensor], num_bytes: int, draft=None) -> dict[str, float]:
    """Bits per byte, top-1 accuracy, and how often the draft's top-1 is the model's."""
    nats = hits = agreements = count = 0.0
    for window in windows:
        logits = model(window).logits[0, :-1].float()
        following = window[0, 1:]
        nats += F.cross_entropy(logits, following, reduction="sum").item()
        picked = logits.argmax(-1)
        hits += (picked == following).sum().item()
        count += len(following)
        if draft is not None:
            agreements += (draft(window).logits[0, :-1].argmax(-1) == picked).sum().item()
    scores = {
        "bits_per_byte": nats / num_bytes / math.log(2),
        "nats_per_token": nats / count,
        "top1_accuracy": hits / count,
        "num_tokens": count,
    }
    if draft is not None:
        scores["draft_agreement"] = agreements / count
    return scores


@torch.inference_mode()
def reply(model, tokenizer, prompts: list[str], max_new_tokens: int) -> list[str]:
    """Greedy replies to user messages, through the chat template."""
    texts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
        )
        for prompt in prompts
    ]
    inputs = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
    output = model.generate(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        do_sample=False,
        max_new_tokens=max_new_tokens,
    )
    return tokenizer.batch_decode(
        output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
    )


def task_scores(model, tokenizer, items: list[dict[str, str]]) -> dict[str, float]:
    """Exact match by kind, and overall."""
    items = sorted(items, key=lambda item: len(item["prompt"]))
    right: dict[str, list[bool]] = defaultdict(list)
    for start in range(0, len(items), BATCH):
        batch = items[start : start + BATCH]
        replies = reply(model, tokenizer, [item["prompt"] for item in batch], max_new_tokens=40)
        for item, text in zip(batch, replies, strict=True):
            right[item["kind"]].append(text.strip() == item["answer"])
    scores = {kind: sum(marks) / len(marks) for kind, marks in sorted(right.items())}
    scores["overall"] = sum(map(sum, right.values())) / len(items)
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--builtin", type=Path, default=Path("src/trimtab/builtin"))
    parser.add_argument("--role", choices=("target", "draft"), default="target")
    parser.add_argument("--window", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--complete", action="append", default=[], help="also show a completion")
    parser.add_argument("--ask", action="append", default=[], help="also show a reply")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    tokenizer = AutoTokenizer.from_pretrained(args.builtin / args.role, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(args.builtin / args.role, dtype=torch.float32)
    draft = None
    if args.role == "target" and (args.builtin / "draft" / "config.json").exists():
        draft = AutoModelForCausalLM.from_pretrained(args.builtin / "draft", dtype=torch.float32)
    text = (args.builtin / "heldout.txt").read_text(encoding="utf-8")
    token_ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    windows = windows_of(token_ids, tokenizer.bos_token_id, args.window)
    lines = (args.builtin / "tasks.jsonl").read_text(encoding="utf-8").splitlines()
    result = {
        "parameters": model.num_parameters(),
        "text": text_scores(model, windows, len(text.encode()), draft),
        "tasks": task_scores(model, tokenizer, [json.loads(line) for line in lines]),
    }
    print(json.dumps(result, indent=2))
    for prompt in args.complete:
        inputs = tokenizer("<|bos|>" + prompt, return_tensors="pt", add_special_tokens=False)
        output = model.generate(**inputs, do_sample=False, max_new_tokens=80)
        print("---", tokenizer.decode(output[0], skip_special_tokens=True), sep="\n")
    for prompt in args.ask:
        print("---", prompt, *reply(model, tokenizer, [prompt], 60), sep="\n")


if __name__ == "__main__":
    main()
