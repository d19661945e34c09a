"""A draft head on the target's hidden states (EAGLE-3, arXiv 2503.01840), for training.

Parameter names are those of published heads, so that an export is a copy. Position q of a text has
features (the target's residual stream before some of its layers, side by side) and sees token
q + 1; it predicts token q + 2:

    step 0     x0[q] = fc(features[q]);       h0[q] = layer(x0[q], token q + 1)  ->  token q + 2
    step k     xk[q] = h(k - 1)[q];           hk[q] = layer(xk[q], token q + 1 + k)

At step k the rotary position is q + k; it attends to step 0 up to q, and to its own steps 1 .. k.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from model import Llama, Mlp, ModelShape, rotate
from torch import Tensor, nn
from torch.nn import functional as F

ARGMAX_SHARE = 0.3  # of the loss


@dataclass(frozen=True)
class Texts:
    """Rows of packed documents, and what the target makes of them."""

    token_ids: Tensor  # [rows, time]
    documents: Tensor  # [rows, time] number of the document in its row; -1 is padding
    features: Tensor  # [rows, time, layers * hidden]
    logits: Tensor  # [rows, time, vocab] the target's


def document_mask(documents: Tensor) -> Tensor:
    """[rows, 1, time, time]: 0 where a token may look, -inf elsewhere."""
    allowed = (documents[:, :, None] == documents[:, None, :]).tril()
    mask = torch.zeros(allowed.shape)
    return mask.masked_fill_(~allowed, float("-inf"))[:, None]


@torch.no_grad()
def read_texts(target: Llama, layer_ids: tuple[int, ...], ids: Tensor, documents: Tensor) -> Texts:
    """Run the target; feature `i` is what its layer `i` gets (num_layers: what the norm gets)."""
    time = ids.shape[1]
    cos, sin, mask = target.cos[:time], target.sin[:time], document_mask(documents)
    x = target.model.embed_tokens(ids)
    streams = [x]
    for layer in target.model.layers:
        x = layer(x, cos, sin, mask)
        streams.append(x)
    features = torch.cat([streams[i] for i in layer_ids], dim=-1)
    logits = F.linear(target.model.norm(x), target.model.embed_tokens.weight)
    return Texts(ids, documents, features, logits)


class HeadAttention(nn.Module):
    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.head_dim = shape.head_dim
        self.groups = shape.num_heads // shape.num_kv_heads
        width, kv_width = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
        self.q_proj = nn.Linear(2 * shape.hidden_size, width, bias=False)
        self.k_proj = nn.Linear(2 * shape.hidden_size, kv_width, bias=False)
        self.v_proj = nn.Linear(2 * shape.hidden_size, kv_width, bias=False)
        self.o_proj = nn.Linear(width, shape.hidden_size, bias=False)

    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values [rows, heads, time, head_dim], keys repeated for each query."""
        rows, time, _ = x.shape
        q, k, v = (
            projection(x).view(rows, time, -1, self.head_dim).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        k = rotate(k, cos, sin).repeat_interleave(self.groups, dim=1)
        return rotate(q, cos, sin), k, v.repeat_interleave(self.groups, dim=1)

    def attend(self, q: Tensor, first: tuple[Tensor, Tensor], own: list, mask: Tensor) -> Tensor:
        """`first` are keys and values of step 0, `own` those of each later step."""
        scale = self.head_dim**-0.5
        scores = (q @ first[0].mT) * scale + mask
        later = [(q * keys).sum(-1, keepdim=True) * scale for keys, _ in own]
        weights = torch.cat([scores, *later], dim=-1).softmax(-1)
        time = scores.shape[-1]
        out = weights[..., :time] @ first[1]
        for step, (_, values) in enumerate(own):
            out = out + weights[..., time + step, None] * values
        return self.o_proj(out.transpose(1, 2).flatten(2))


class MiddleLayer(nn.Module):
    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.hidden_norm = nn.RMSNorm(shape.hidden_size, eps=shape.norm_eps)
        self.input_layernorm = nn.RMSNorm(shape.hidden_size, eps=shape.norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(shape.hidden_size, eps=shape.norm_eps)
        self.self_attn = HeadAttention(shape)
        self.mlp = Mlp(shape)


class DraftHead(nn.Module):
    """`shape` has the sizes of the target's layers; the embeddings are the target's."""

    def __init__(self, shape: ModelShape, layer_ids: tuple[int, ...], target: Llama) -> None:
        super().__init__()
        self.shape, self.layer_ids = shape, layer_ids
        self.fc = nn.Linear(len(layer_ids) * shape.hidden_size, shape.hidden_size, bias=False)
        self.midlayer = MiddleLayer(shape)
        self.norm = nn.RMSNorm(shape.hidden_size, eps=shape.norm_eps)
        self.lm_head = nn.Linear(shape.hidden_size, shape.vocab_size, bias=False)
        self._embed = [target.model.embed_tokens]  # no parameter of the head
        self.register_buffer("cos", target.cos, persistent=False)
        self.register_buffer("sin", target.sin, persistent=False)
        self._reset(target)

    @torch.no_grad()
    def _reset(self, target: Llama) -> None:
        """Starts as the target cut off at the highest feature: its head and final norm."""
        for parameter in self.midlayer.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
        nn.init.zeros_(self.midlayer.self_attn.o_proj.weight)
        nn.init.zeros_(self.midlayer.mlp.down_proj.weight)
        nn.init.zeros_(self.fc.weight)
        self.fc.weight[:, -self.shape.hidden_size :].copy_(torch.eye(self.shape.hidden_size))
        self.norm.weight.copy_(target.model.norm.weight)
        self.lm_head.weight.copy_(target.model.embed_tokens.weight)

    def unroll(self, texts: Texts, steps: int, greedy: bool = False):
        """Yield the final hidden states [rows, time, hidden], normed, of each step in turn. With
        `greedy`, the steps see the tokens that the head itself would draft."""
        time = texts.token_ids.shape[1]
        mask = document_mask(texts.documents)
        layer, own = self.midlayer, []
        hidden = self.fc(texts.features)
        drafted = texts.token_ids.roll(-1, dims=1)
        for step in range(steps):
            embeds = self._embed[0](drafted).detach()
            x = torch.cat([layer.input_layernorm(embeds), layer.hidden_norm(hidden)], dim=-1)
            cos, sin = (table[step : step + time] for table in (self.cos, self.sin))
            q, k, v = layer.self_attn.project(x, cos, sin)
            if step == 0:
                first = (k, v)
            else:
                own.append((k, v))
            hidden = hidden + layer.self_attn.attend(q, first, own, mask)
            hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
            normed = self.norm(hidden)
            yield normed
            if greedy:
                drafted = self.lm_head(normed).argmax(-1)
            else:
                drafted = texts.token_ids.roll(-2 - step, dims=1)


def predicts(documents: Tensor, step: int) -> Tensor:
    """[rows, time]: where the tokens that step `step` of a position needs are in its document, and
    so is the one whose distribution it learns."""
    ahead = documents.roll(-1 - step, dims=1)
    ahead[:, -1 - step :] = -2
    return (documents == ahead) & (documents >= 0)


def head_loss(
    head: DraftHead, texts: Texts, shares: Tensor, steps: int, decay: float
) -> tuple[Tensor, list[float]]:
    """Cross-entropy to the target's own distribution at each step, the k-th weighing decay**k, and
    to the token that it likes most; and, of each step, how often both pick the same token. `shares`
    [rows, time] is how likely each position's distribution is among those that are learned."""
    loss, agreement, total = 0.0, [], sum(decay**step for step in range(steps))
    for step, normed in enumerate(head.unroll(texts, steps)):
        wanted = predicts(texts.documents, step)
        wanted &= torch.rand(wanted.shape) < shares.roll(-1 - step, dims=1)
        expected = texts.logits.roll(-1 - step, dims=1)[wanted].float()
        logits = head.lm_head(normed[wanted]).float()
        best = expected.argmax(-1)
        own = (1 - ARGMAX_SHARE) * F.cross_entropy(logits, expected.softmax(-1))
        own = own + ARGMAX_SHARE * F.cross_entropy(logits, best)
        loss = loss + own * (decay**step / total)
        agreement.append((logits.argmax(-1) == best).float().mean().item())
    return loss, agreement
