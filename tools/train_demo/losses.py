"""What the demo model is trained on: SAM's mask and IoU losses, and dense hints for the encoder."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from samx.demo.encoder import EMBEDDING_WIDTH

FOCAL_WEIGHT, DICE_WEIGHT = 20.0, 1.0  # the SAM paper's
FOCAL_ALPHA, FOCAL_GAMMA = 0.25, 2.0
AFFINITY_WIDTH = 16
AFFINITY_SAMPLES = 128  # cells of an image that are compared with each other


def mask_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Weigh up focal and dice loss of each mask. Shapes: (N, M, S, S) x 2 -> (N, M)."""
    plain = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    p = logits.sigmoid()
    wrong = p + targets - 2 * p * targets
    alpha = FOCAL_ALPHA * targets + (1 - FOCAL_ALPHA) * (1 - targets)
    focal = (alpha * wrong**FOCAL_GAMMA * plain).mean((-1, -2))
    dice = 1 - (2 * (p * targets).sum((-1, -2)) + 1) / (p.sum((-1, -2)) + targets.sum((-1, -2)) + 1)
    return FOCAL_WEIGHT * focal + DICE_WEIGHT * dice


def mask_iou(logits: Tensor, targets: Tensor) -> Tensor:
    """Compare thresholded masks with targets. Shapes: (N, M, S, S), (N, 1 or M, S, S) -> (N, M)."""
    predicted, wanted = logits > 0, targets > 0.5
    both = (predicted & wanted).sum((-1, -2)).float()
    either = (predicted | wanted).sum((-1, -2)).float()
    return torch.where(either > 0, both / either.clamp(min=1), torch.zeros_like(both))


class EncoderHints(nn.Module):
    """Ask the embedding directly: which cells belong together, how deep is a cell, where does its region end.

    Used in training only.
    """

    def __init__(self) -> None:
        super().__init__()
        self.affinity = nn.Conv2d(EMBEDDING_WIDTH, 3 * AFFINITY_WIDTH, 1)
        self.depth = nn.Conv2d(EMBEDDING_WIDTH, 4, 1)
        self.extent = nn.Conv2d(EMBEDDING_WIDTH, 12, 1)
        self.margin = nn.Parameter(torch.full((3,), 2.0))

    def forward(self, embedding: Tensor, ids: NDArray[Any]) -> Tensor:
        """Return the summed loss of the three questions. Shapes: (B, C, G, G), (B, 3, 4G, 4G) -> ()."""
        cells = ids[:, :, 2::4, 2::4]
        depth = torch.from_numpy((cells > 0).sum(axis=1).astype(np.int64))
        weights = torch.tensor([0.5, 1.0, 1.5, 2.0])
        loss = F.cross_entropy(self.depth(embedding), depth, weight=weights)
        extents, known = _extents(cells)
        error = F.smooth_l1_loss(self.extent(embedding), extents, reduction="none", beta=0.05)
        loss = loss + 4.0 * (error * known).sum() / known.sum().clamp(min=1)
        return loss + self._affinity_loss(self.affinity(embedding), _partitions(cells))

    def _affinity_loss(self, features: Tensor, partitions: Tensor) -> Tensor:
        """Pull cells of one region together and push others apart. Shapes: (B, 3A, G, G), (B, 3, G, G) -> ()."""
        batch = len(features)
        chosen = _choose_cells(partitions)
        picked = features.flatten(2).gather(2, chosen[:, None].expand(-1, features.shape[1], -1))
        groups = partitions.flatten(2).gather(2, chosen[:, None].expand(-1, 3, -1))
        vectors = picked.reshape(batch, 3, AFFINITY_WIDTH, -1)
        squares = (vectors**2).sum(2)
        distance = squares[..., None] + squares[..., None, :] - 2 * vectors.transpose(2, 3) @ vectors
        same = (groups[..., None] == groups[..., None, :]).float()
        plain = F.binary_cross_entropy_with_logits(
            self.margin[:, None, None] - distance.clamp(min=0), same, reduction="none"
        )
        return 0.5 * ((plain * same).sum() / same.sum() + (plain * (1 - same)).sum() / (1 - same).sum().clamp(min=1))


def _partitions(cells: NDArray[Any]) -> Tensor:
    """Give every cell the id of its region at each level, or of the smallest one that it has."""
    whole = cells[:, 0].astype(np.int64)
    part = np.where(cells[:, 1] > 0, cells[:, 1], whole)
    subpart = np.where(cells[:, 2] > 0, cells[:, 2], part)
    return torch.from_numpy(np.stack([whole, part, subpart], axis=1))


def _choose_cells(partitions: Tensor) -> Tensor:
    """Draw cells, those of objects three times as often as background. Shapes: (B, 3, G, G) -> (B, samples)."""
    weights = 1.0 + 2.0 * (partitions[:, 0].flatten(1) > 0) + 2.0 * (partitions[:, 1] != partitions[:, 0]).flatten(1)
    return torch.multinomial(weights, min(AFFINITY_SAMPLES, weights.shape[1]))


def _extents(cells: NDArray[Any]) -> tuple[Tensor, Tensor]:
    """Measure how far each cell's regions reach: left, top, right, bottom, in shares of the frame.

    Shapes: (B, 3, G, G) -> (B, 12, G, G), and 1 where a region is known.
    """
    batch, _, grid, _ = cells.shape
    out, known = np.zeros((batch, 3, 4, grid, grid), np.float32), np.zeros((batch, 3, 4, grid, grid), np.float32)
    for b, level in np.ndindex(batch, 3):
        plane = cells[b, level]
        for region in np.unique(plane):
            if region == 0:
                continue
            ys, xs = np.nonzero(plane == region)
            reach = (xs - xs.min(), ys - ys.min(), xs.max() - xs, ys.max() - ys)
            for side in range(4):
                out[b, level, side, ys, xs] = (reach[side] + 0.5) / grid
            known[b, level, :, ys, xs] = 1.0
    return torch.from_numpy(out.reshape(batch, 12, grid, grid)), torch.from_numpy(known.reshape(batch, 12, grid, grid))
