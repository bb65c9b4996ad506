"""An image as factors: products with image tokens that are never formed, layer norms folded into what follows them.

See low_rank.py for the letters. What tokens add to the image are values by head, spread over the factors that are
independent: the weights of an attention sum to one over the tokens, so of the h*T that an image token has, h - 1 follow
from the others. Every head but the last leaves out its last token: with w the weights that are kept,

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

from samx.models.fast.attention import ImageProjection, Linear, linear, query_scale, split_heads
from samx.models.reference import Attention, TwoWayAttentionBlock


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
    if constant is None:
        return F.pad(by_head, (0, 0, 0, 1)).flatten(0, 1)
    return torch.cat([by_head, (constant / heads).expand(heads, 1, -1)], dim=1).flatten(0, 1)


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


def dot(a: Tensor, b: Tensor, heads: int) -> Tensor:
    """Sum products over factors, R = heads * T. Shapes: (N, R, L) x 2 -> (N, 1, L).

    In two steps, the second as a product: ONNX Runtime takes several times as long over one axis (CPU).
    """
    return a.new_ones(1, 1, heads) @ (a * b).unflatten(1, (heads, -1)).sum(2)


def channel_mean(x: Tensor) -> Tensor:
    """Average over channels, as a product: reductions over a middle axis are slow. Shapes: (1, C, L) -> (1, 1, L)."""
    return x.new_full((1, 1, x.shape[1]), 1 / x.shape[1]) @ x


class Image(NamedTuple):
    """Name what a prompt has made of the image: scale * (table + factors^T rows).

    Multiplying the scale in is put off, because every product is cheaper to scale afterwards.
    Shapes: scale (N, 1, L); factors (N, R', L) after layer 0 and (N, 2R'+K, L) after layer 1, the last K constant;
    weights (N, R, L), all of the last attention's.
    """

    scale: Tensor
    factors: Tensor
    weights: Tensor


def table(weight: Tensor, offset: Tensor, heads: int) -> ImageProjection:
    """Project image + offset by a folded matrix. Shapes: weight (h*d, C), offset (1, C); (1, C, L) -> (1, h, d, L)."""
    return ImageProjection(weight, torch.zeros_like(weight[:, 0]), offset, heads)


def products(values: Values, table: Tensor) -> Tensor:
    """Multiply values with the image by head. Shapes: values, (1, h, d, L) -> (N, R, L)."""
    return (values.by_head[..., :-1] @ table).flatten(1, 2)


class Scores(nn.Module):
    """Multiply token vectors with the projected image tokens of an image in factors.

    `constant` is what the projection makes of the positional term and of biases. Shapes: (h*d, L).
    """

    constant: Tensor

    def __init__(self, constant: Tensor, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.register_buffer("constant", constant.unflatten(0, (heads, -1)).unsqueeze(0).contiguous())

    def forward(self, vectors: Tensor, table: Tensor, rows: Tensor, image: Image) -> Tensor:
        """Shapes: vectors (N, h, T, d), table (1, h, d, L), rows (N, R', h*d) -> (N, h, T, L)."""
        per_head = rows.unflatten(2, (self.heads, -1)).permute(0, 2, 3, 1)  # (N, h, d, R')
        of_rows = ((vectors @ per_head).flatten(1, 2) @ image.factors).unflatten(1, (self.heads, -1))
        return (vectors @ table + of_rows) * image.scale.unsqueeze(1) + vectors @ self.constant


def mix_values(weights: Tensor, table: Tensor, rows: Tensor, image: Image) -> Tensor:
    """Average projected image tokens by attention weights.

    Shapes: weights (N, h, T, L), table (1, h, d, L), rows (N, R', h*d) -> (N, h, T, d).
    """
    heads, scaled = weights.shape[1], weights * image.scale.unsqueeze(1)
    of_rows = (scaled.flatten(1, 2) @ image.factors.transpose(1, 2)).unflatten(1, (heads, -1))  # (N, h, T, R')
    per_head = rows.unflatten(2, (heads, -1)).transpose(1, 2)  # (N, h, R', d)
    return scaled @ table.transpose(-1, -2) + of_rows @ per_head


def centre(weight: Tensor) -> Tensor:
    """Take the mean over channels out of what a matrix maps to. Shapes: (C, ...) -> (C, ...)."""
    return weight - weight.mean(0, keepdim=True)


class CentredImage(nn.Module):
    """Return the image part of layer 0's output, centred before and after the gain. Shapes: (1, C, L) -> (1, C, L)."""

    offset: Tensor
    gain: Tensor

    def __init__(self, offset: Tensor, gain: Tensor) -> None:
        super().__init__()
        self.register_buffer("offset", offset.t().contiguous())  # (C, 1)
        self.register_buffer("gain", gain.unsqueeze(1).contiguous())

    def forward(self, image_tokens: Tensor) -> Tensor:
        image = image_tokens + self.offset
        image = (image - channel_mean(image)) * self.gain
        return image - channel_mean(image)


class AfterZero:
    """Fold layer 0's norm into what is projected afterwards: image and rows, then centring, gain and bias."""

    def __init__(self, zero: TwoWayAttentionBlock, no_mask: Tensor) -> None:
        attention = zero.cross_attn_image_to_token
        self.heads = attention.heads
        self.gain, self.bias = zero.norm4.weight.detach(), zero.norm4.bias.detach()
        self.offset = no_mask + attention.out_proj.bias.detach()
        self.out = self.gain.unsqueeze(1) * centre(attention.out_proj.weight.detach())  # (C, h*d)
        self.out_centred = centre(self.out)

    def fold(self, weight: Tensor, centred: bool = False) -> Tensor:
        """Fold [centring,] gain and centring into a projection from the right. Shapes: (m, C) -> (m, C)."""
        weight = weight - weight.mean(1, keepdim=True) if centred else weight
        weight = weight * self.gain
        return weight - weight.mean(1, keepdim=True)

    def table(self, weight: Tensor, centred: bool = False) -> ImageProjection:
        """Project the image part of layer 0's output [, centred]. Shapes: weight (h*d, C)."""
        return table(self.fold(weight, centred), self.offset, self.heads)

    def rows(self, weight: Tensor) -> Rows:
        """Project the rows of layer 0's output."""
        return Rows(weight @ self.out, self.heads)


class AfterOne:
    """Fold layer 1's norm into what is projected afterwards."""

    def __init__(
        self, zero: TwoWayAttentionBlock, one: TwoWayAttentionBlock, no_mask: Tensor, constants: int = 1
    ) -> None:
        """Take both layers, and how many factors share the constant."""
        self.constants = constants
        attention = one.cross_attn_image_to_token
        self.zero, self.heads = AfterZero(zero, no_mask), attention.heads
        self.gain, self.bias = one.norm4.weight.detach(), one.norm4.bias.detach()
        self.out = centre(attention.out_proj.weight.detach())
        self.constant = centre(self.zero.bias + attention.out_proj.bias.detach())

    def fold(self, weight: Tensor) -> Tensor:
        """Fold both norms into a projection of the image part. Shapes: (m, C) -> (m, C)."""
        return self.zero.fold(weight * self.gain, centred=True)

    def rows(self, weight: Tensor, bias: Tensor | None) -> AllRows:
        """Project the rows of layer 1's output. Shapes: weight (m, C), bias (m,)."""
        return AllRows(self, weight, bias)


class AllRows(nn.Module):
    """Stack the rows of both layers and the constant's K. Shapes: spread (N, R', h*(d+1)) x 2 -> (N, 2R'+K, m)."""

    last: Tensor

    def __init__(self, after: AfterOne, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        gained = weight * after.gain
        self.rows0 = Rows(gained @ after.zero.out_centred, after.heads)
        self.rows1 = Rows(gained @ after.out, after.heads, gained @ after.constant)
        last = weight @ after.bias
        last = (last if bias is None else last + bias) / after.constants
        self.register_buffer("last", last.expand(1, after.constants, -1).contiguous())

    def forward(self, spread0: Tensor, spread1: Tensor) -> Tensor:
        last = self.last.expand(spread0.shape[0], -1, -1)
        return torch.cat([self.rows0(spread0), self.rows1(spread1), last], dim=1)
