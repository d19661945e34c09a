"""Start attention where copying is easy to learn.

A small model sees too few tokens to find, by itself, the circuit that copies from the context: a
head that looks at the previous token, and one in a later layer that looks for places where the
same tokens came before (Olsson et al., "In-context learning and induction heads", 2022). Here the
first two layers start with such heads. They are trained like every other weight from then on.
"""

from __future__ import annotations

import torch
from model import Llama
from torch import Tensor

MAX_OFFSETS = 3  # how many tokens back the heads of the first layer look
COMMON_NORM = 0.5  # of what all embeddings share, against the norm of what they do not
SHARPNESS = 0.8  # of the heads that look at a fixed offset
OFFSET_OUTPUT = 1.5  # what these heads write, in units of an embedding's deviation
COPY_OUTPUT = 3.0


@torch.no_grad()
def seed_induction(model: Llama) -> None:
    """Overwrite some heads of the first two layers; head_dim d, hidden size h.

    Layer 0, query head m - 1: attends m tokens back. Its queries and keys see only a direction
    that all embeddings share, so that the score depends on the distance alone, by the rotary
    frequencies that turn fast. Its values are d coordinates of the embedding, and it writes them
    to d directions of its own.

    Layer 1, the first query head of each group: its query holds the current and earlier tokens, its
    key the tokens before the key's position, in the dimensions that the rotary embedding hardly
    turns; its value is the embedding, which it adds to the residual stream. With tied
    embeddings this predicts the token seen there.
    """
    shape = model.shape
    d, h = shape.head_dim, shape.hidden_size
    num_offsets = min(MAX_OFFSETS, shape.num_heads // shape.num_kv_heads)
    embedding = model.model.embed_tokens.weight
    deviation = embedding.std().item()
    num_common = h // 12
    embedding[:, :num_common] = deviation * COMMON_NORM * (h / num_common) ** 0.5
    model.model.norm.weight[:num_common] = 0  # of no use for telling tokens apart
    common = torch.zeros(h)
    common[:num_common] = num_common**-0.5

    written = _orthogonal(num_offsets * d, common).view(num_offsets, d, h)
    read = _orthogonal(d, common)
    _seed_offsets(model, common, read, written, deviation * OFFSET_OUTPUT)

    # Pairs (f, f + d / 2) turn together; the slower half hardly turns within a context.
    slots = torch.cat([torch.arange(d // 4, d // 2), torch.arange(3 * d // 4, d)])
    picks = [torch.randperm(d)[: len(slots)] for _ in range(num_offsets)]
    tokens = torch.cat([read[None], written])  # tokens[m]: where the token m back can be read
    query = sum(tokens[m][picks[m]] for m in range(num_offsets))
    key = sum(tokens[m + 1][picks[m]] for m in range(num_offsets))
    attention = model.model.layers[1].self_attn
    copied = _orthogonal(shape.num_kv_heads * d, common).view(-1, d, h)
    for kv_head in range(shape.num_kv_heads):
        head = kv_head * attention.groups
        attention.q_proj.weight[head * d : (head + 1) * d] = 0
        attention.q_proj.weight[head * d + slots] = query
        attention.k_proj.weight[kv_head * d + slots] = key
        attention.v_proj.weight[kv_head * d : (kv_head + 1) * d] = copied[kv_head]
        columns = attention.o_proj.weight[:, head * d : (head + 1) * d]
        columns.copy_(copied[kv_head].mT * (deviation * COPY_OUTPUT))


def _seed_offsets(
    model: Llama, common: Tensor, read: Tensor, written: Tensor, scale: float
) -> None:
    d = model.shape.head_dim
    fast = d // 8
    exponents = torch.arange(0, 2 * fast, 2) / d
    frequencies = model.shape.rope_theta**-exponents
    attention = model.model.layers[0].self_attn
    attention.k_proj.weight[:d] = 0
    attention.k_proj.weight[:fast] = common * SHARPNESS
    attention.v_proj.weight[:d] = read
    for head, directions in enumerate(written):
        angles = (head + 1) * frequencies
        query = torch.zeros(d)
        query[:fast], query[d // 2 : d // 2 + fast] = angles.cos(), -angles.sin()
        rows = slice(head * d, (head + 1) * d)
        attention.q_proj.weight[rows] = torch.outer(query, common * SHARPNESS)
        attention.o_proj.weight[:, rows] = directions.mT * scale


def _orthogonal(count: int, avoided: Tensor) -> Tensor:
    """[count, h] orthonormal rows (just random ones where count >= h), all normal to avoided."""
    h = len(avoided)
    rows = torch.randn(count, h)
    rows -= torch.outer(rows @ avoided, avoided)
    if count < h:
        return torch.linalg.qr(rows.mT).Q.mT
    return rows / rows.norm(dim=1, keepdim=True)
