"""Fold the image's layer norms into whatever is projected after them. See low_rank.py for the letters."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from samx.models.fast.attention import CellProjection
from samx.models.fast.factors import channel_mean, table
from samx.models.fast.values import Rows
from samx.models.reference import TwoWayAttentionBlock


def centre(weight: Tensor) -> Tensor:
    """Take the mean over channels out of what a matrix maps to. Shapes: (C, ...) -> (C, ...)."""
    return weight - weight.mean(0, keepdim=True)


class CentredImage(nn.Module):
    """Give the image part of layer 0's output, centred before and after the gain. Shapes: (1, C, L) -> (1, C, L)."""

    offset: Tensor
    gain: Tensor

    def __init__(self, offset: Tensor, gain: Tensor) -> None:
        super().__init__()
        self.register_buffer("offset", offset.t().contiguous())  # (C, 1)
        self.register_buffer("gain", gain.unsqueeze(1).contiguous())

    def forward(self, cells: Tensor) -> Tensor:
        image = cells + self.offset
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

    def table(self, weight: Tensor, centred: bool = False) -> CellProjection:
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
