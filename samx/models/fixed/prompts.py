"""Prompts to tokens and to a dense term, channels first."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samx.models.fast.prompts import NEVER
from samx.models.fixed.layers import ChannelNorm
from samx.models.reference import POINT_LABELS, LayerNorm2d, PromptEncoder
from samx.models.spec import LABELS, PADDED_POINT


class PointPosition(nn.Module):
    """Encode pixel coordinates. Float16 holds no pixel beyond 2048 and magnifies their phase, so this stays float32."""

    matrix: Tensor

    def __init__(self, source: PromptEncoder) -> None:
        super().__init__()
        self.image_size = source.image_size
        matrix = source.pe_layer.get_buffer("positional_encoding_gaussian_matrix")
        self.register_buffer("matrix", matrix.detach().t().unsqueeze(-1).unsqueeze(-1).clone())  # (C/2, 2, 1, 1)

    def forward(self, coords: Tensor) -> Tensor:
        """Shapes: (N, P, 2) px -> (N, C, 1, P)."""
        unit = 2 * ((coords.transpose(1, 2).unsqueeze(2) + 0.5) / self.image_size) - 1  # (N, 2, 1, P)
        angles = 2 * math.pi * F.conv2d(unit, self.matrix)
        return torch.cat([angles.sin(), angles.cos()], dim=1)


class PointTokens(nn.Module):
    """Embed points and box corners by comparing labels with a table."""

    table: Tensor
    codes: Tensor

    def __init__(self, source: PromptEncoder) -> None:
        super().__init__()
        self.position = PointPosition(source)
        rows = torch.cat([source.not_a_point_embed.weight, *source.point_weights()]).detach()
        codes = [LABELS["padding"], *(LABELS[name] for name in POINT_LABELS)]
        self.register_buffer("table", rows.t().unsqueeze(-1).unsqueeze(-1).clone())  # (C, 5, 1, 1)
        self.register_buffer("codes", torch.tensor(codes).reshape(1, -1, 1, 1).to(rows))

    def forward(self, coords: Tensor, labels: Tensor) -> Tensor:
        """Shapes: (N, P, 2) px, (N, P) -> (N, C, 1, P). Empty slots are zero."""
        labels = labels.unsqueeze(1).unsqueeze(1)  # (N, 1, 1, P)
        chosen = (labels == self.codes.to(labels.dtype)).to(self.table.dtype)  # (N, 5, 1, P)
        is_point = (labels >= LABELS["background"]).to(self.table.dtype)
        position = self.position(coords).to(self.table.dtype)
        return position * is_point + F.conv2d(chosen, self.table)


def empty_points(labels: Tensor) -> Tensor:
    """Say what keeps empty slots out of attention: added to scores. Shapes: (N, P) -> (N, 1, 1, P)."""
    return (labels == PADDED_POINT).to(labels.dtype).unsqueeze(1).unsqueeze(1) * NEVER


class MaskTerm(nn.Module):
    """Embed a previous mask, or its absence, prompt by prompt."""

    absent: Tensor

    def __init__(self, source: PromptEncoder) -> None:
        super().__init__()
        self.downscaling = nn.Sequential(*(_channels_first(layer) for layer in source.mask_downscaling))
        self.register_buffer("absent", source.no_mask_embed.weight.detach().reshape(1, -1, 1, 1).clone())

    def forward(self, mask: Tensor, has_mask: Tensor) -> Tensor:
        """Shapes: (N, 1, 4G, 4G), (N,) -> (N, C, 1, L)."""
        present = self.downscaling(mask)  # (N, C, G, G)
        present = present.reshape(*present.shape[:2], 1, -1)
        used = (has_mask > 0).to(present.dtype).reshape(-1, 1, 1, 1)
        unused = (has_mask <= 0).to(present.dtype).reshape(-1, 1, 1, 1)
        return present * used + self.absent * unused


def _channels_first(layer: nn.Module) -> nn.Module:
    return ChannelNorm(layer.weight, layer.bias, layer.eps) if isinstance(layer, LayerNorm2d) else layer
