"""An image as factors: products with cells that are never formed. See low_rank.py for the letters."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from samx.models.fast.attention import CellProjection
from samx.models.fast.values import Values


def dot(a: Tensor, b: Tensor, heads: int) -> Tensor:
    """Sum products over factors, R = heads * T. Shapes: (N, R, L) x 2 -> (N, 1, L).

    In two steps, the second as a product: ONNX Runtime takes several times as long over one axis (CPU).
    """
    return a.new_ones(1, 1, heads) @ (a * b).unflatten(1, (heads, -1)).sum(2)


def channel_mean(x: Tensor) -> Tensor:
    """Average over channels, as a product: reductions over a middle axis are slow. Shapes: (1, C, L) -> (1, 1, L)."""
    return x.new_full((1, 1, x.shape[1]), 1 / x.shape[1]) @ x


class Image(NamedTuple):
    """Hold what a prompt has made of the image: scale * (table + factors^T rows).

    Multiplying the scale in is put off, because every product is cheaper to scale afterwards.
    Shapes: scale (N, 1, L); factors (N, R', L) after layer 0 and (N, 2R'+K, L) after layer 1, the last K constant;
    weights (N, R, L), all of the last attention's.
    """

    scale: Tensor
    factors: Tensor
    weights: Tensor


def table(weight: Tensor, offset: Tensor, heads: int) -> CellProjection:
    """Project image + offset by a folded matrix. Shapes: weight (h*d, C), offset (1, C); (1, C, L) -> (1, h, d, L)."""
    return CellProjection(weight, torch.zeros_like(weight[:, 0]), offset, heads)


def products(values: Values, table: Tensor) -> Tensor:
    """Multiply values with the image by head. Shapes: values, (1, h, d, L) -> (N, R, L)."""
    return (values.by_head[..., :-1] @ table).flatten(1, 2)


class Scores(nn.Module):
    """Multiply token vectors with the projected cells of an image in factors.

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
    """Average projected cells by attention weights.

    Shapes: weights (N, h, T, L), table (1, h, d, L), rows (N, R', h*d) -> (N, h, T, d).
    """
    heads, scaled = weights.shape[1], weights * image.scale.unsqueeze(1)
    of_rows = (scaled.flatten(1, 2) @ image.factors.transpose(1, 2)).unflatten(1, (heads, -1))  # (N, h, T, R')
    per_head = rows.unflatten(2, (heads, -1)).transpose(1, 2)  # (N, h, R', d)
    return scaled @ table.transpose(-1, -2) + of_rows @ per_head
