"""What tokens add to the image: values by head, and spread over the factors that are independent.

The weights of an attention sum to one over the tokens, so of the h*T that an image token has, h - 1 follow from the
others. Every head but the last leaves out its last token: with w the weights that are kept,

    sum over heads and tokens of weight * value = w^T spread

where a kept row of `spread` is the difference to the last token's value in its head's channels, and in the last head,
whose weights are all kept, the other heads' last values besides. R' = h*(T-1) + 1 factors do the work of R = h*T. Where
products want even sizes, all are kept, and `spread` holds each value in its head's channels.

Each head's values carry a one after their d channels, on which a constant of whatever is projected is a weight.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samx.models.fast.attention import Linear, linear, query_scale, split_heads
from samx.models.reference import Attention


class Values(NamedTuple):
    """Shapes: by_head (N, h, T, d+1), spread (N, R', h*(d+1))."""

    by_head: Tensor
    spread: Tensor


def independent_rows(heads: int, like: Tensor) -> Tensor:
    """Number the rows of (N, h*T, ...) that are kept. Shapes: like (N, T, ...) -> (R',)."""
    others = like.shape[1] - 1
    rows = torch.arange(heads * others + 1, device=like.device)
    return rows + torch.div(rows, others, rounding_mode="floor").clamp(max=heads - 1)


def select(weights: Tensor, kept: Tensor | None) -> Tensor:
    """Keep the independent factors, or all. Shapes: (N, h*T, L) -> (N, R', L)."""
    return weights if kept is None else weights.index_select(1, kept)


def with_ones(weight: Tensor, heads: int, constant: Tensor | None = None) -> Tensor:
    """Turn a projection of joined heads into one of values that carry ones; a constant is shared by the heads.

    Shapes: (m, h*d) [, (m,)] -> (h*(d+1), m).
    """
    by_head = weight.t().unflatten(0, (heads, -1))  # (h, d, m)
    row = weight.new_zeros(len(weight)) if constant is None else constant / heads
    return torch.cat([by_head, row.expand(heads, 1, -1)], dim=1).flatten(0, 1)


class TokenSide(nn.Module):
    """Prepare tokens as keys and values of the image's queries."""

    own: Tensor
    last: Tensor

    def __init__(self, source: Attention) -> None:
        super().__init__()
        self.heads = heads = source.heads
        weight, bias = source.v_proj.weight.detach(), source.v_proj.bias.detach()
        bias = F.pad(bias.unflatten(0, (heads, -1)), (0, 1), value=1.0).flatten()
        self.key = linear(source.k_proj, query_scale(source))
        self.value = Linear(F.pad(weight.unflatten(0, (heads, -1)), (0, 0, 0, 1)).flatten(0, 1), bias)
        one = torch.eye(heads, dtype=weight.dtype)
        self.register_buffer("own", one.repeat_interleave(len(bias) // heads, 1).unsqueeze(1))  # (h, 1, h*(d+1))
        self.register_buffer("last", one[:, -1:].unsqueeze(1))  # (h, 1, 1)

    def forward(self, positioned: Tensor, tokens: Tensor, kept: Tensor | None) -> tuple[Tensor, Values]:
        """Shapes: (N, T, C) x 2 [, (R',)] -> keys (N, h, T, d), values; without `kept`, R' is all of h*T."""
        keys, values = split_heads(self.key(positioned), self.heads), self.value(tokens)
        return keys, Values(split_heads(values, self.heads), self._spread(values, kept))

    def _spread(self, values: Tensor, kept: Tensor | None) -> Tensor:
        by_factor = values.unsqueeze(1)
        if kept is None:
            return (by_factor * self.own).flatten(1, 2)
        last = by_factor[:, :, -1:]
        return ((by_factor - last) * self.own + last * self.last).flatten(1, 2).index_select(1, kept)


class Rows(nn.Module):
    """Map an attention's spread values to rows that a later projection has already been applied to.

    Shapes: (N, R', h*(d+1)) -> (N, R', m).
    """

    weight: Tensor

    def __init__(self, weight: Tensor, heads: int, constant: Tensor | None = None) -> None:
        """Shapes: weight (m, h*d), constant (m,)."""
        super().__init__()
        self.register_buffer("weight", with_ones(weight, heads, constant).contiguous())

    def forward(self, spread: Tensor) -> Tensor:
        return spread @ self.weight


class Gram(nn.Module):
    """Multiply all rows of one attention with the independent rows of another, channels never formed.

    Shapes: by_head (N, h, T, d+1), spread (N, R', h*(d+1)) -> (N, h*T, R').
    """

    weight: Tensor

    def __init__(self, left: Tensor, right: Tensor, heads: int, share: float) -> None:
        """Take both attentions' maps to channels. Shapes: (h*(d+1), C) x 2."""
        super().__init__()
        self.heads = heads
        self.register_buffer("weight", (share * right @ left.t()).contiguous())

    def forward(self, by_head: Tensor, spread: Tensor) -> Tensor:
        per_head = (spread @ self.weight).unflatten(2, (self.heads, -1)).permute(0, 2, 3, 1)  # (N, h, d+1, R')
        return (by_head @ per_head).flatten(1, 2)
