"""Prompts to tokens, as small matrix products over a table of labels."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samx.models.reference import POINT_LABELS, PromptEncoder
from samx.models.spec import LABELS, PADDED_POINT

# Added to a score: exp() of it is exactly zero in float16 and float32 alike, next to any score a decoder has.
NEVER = -30000.0


class PointPosition(nn.Module):
    """Encode pixel coordinates. Two products of numbers, not one of matrices: Turing GPUs have none in float32."""

    matrix: Tensor

    def __init__(self, source: PromptEncoder) -> None:
        super().__init__()
        self.image_size = source.image_size
        self.register_buffer("matrix", source.pe_layer.get_buffer("positional_encoding_gaussian_matrix").clone())

    def forward(self, coords: Tensor) -> Tensor:
        """Shapes: (N, P, 2) px -> (N, P, C)."""
        unit = 2 * ((coords + 0.5) / self.image_size) - 1
        angles = 2 * math.pi * (unit[..., :1] * self.matrix[0] + unit[..., 1:] * self.matrix[1])
        return torch.cat([angles.sin(), angles.cos()], dim=-1)


class PointEmbedding(nn.Module):
    """Embed points and box corners by comparing labels with a table: no gather, no one-hot node."""

    table: Tensor
    codes: Tensor

    def __init__(self, source: PromptEncoder) -> None:
        super().__init__()
        self.position = PointPosition(source)
        rows = [source.not_a_point_embed.weight, *source.point_weights()]
        codes = [LABELS["padding"], *(LABELS[name] for name in POINT_LABELS)]
        self.register_buffer("table", torch.cat(rows).detach().clone())  # (5, C)
        self.register_buffer("codes", torch.tensor(codes, dtype=self.table.dtype))

    def forward(self, coords: Tensor, labels: Tensor) -> Tensor:
        """Shapes: (N, P, 2) px, (N, P) -> (N, P, C)."""
        dtype = self.table.dtype
        chosen = (labels.unsqueeze(-1) == self.codes).to(dtype)  # (N, P, 5)
        is_point = (labels != LABELS["padding"]).to(dtype).unsqueeze(-1)
        return self.position(coords) * is_point + chosen @ self.table

    def empty(self, labels: Tensor, learned: int) -> Tensor:
        """Say what keeps empty slots out of attention: added to scores. Shapes: (N, P) -> (N, learned + P)."""
        return F.pad((labels == PADDED_POINT).to(labels.dtype) * NEVER, (learned, 0))


class MaskEmbedding(nn.Module):
    """Embed a previous mask, or its absence, prompt by prompt."""

    absent: Tensor

    def __init__(self, source: PromptEncoder) -> None:
        super().__init__()
        self.downscaling = source.mask_downscaling
        self.register_buffer("absent", source.no_mask_embed.weight.detach().clone())  # (1, C)

    def forward(self, mask: Tensor, has_mask: Tensor) -> Tensor:
        """Shapes: (N, 1, 4G, 4G), (N,) -> (N, 1, L, C)."""
        present = self.downscaling(mask).flatten(2).transpose(1, 2).unsqueeze(1)
        return torch.where((has_mask > 0).reshape(-1, 1, 1, 1), present, self.absent)
