"""Prompts to tokens, by a table of labels; and back: which tokens are read, and which masks are worth their pixels."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samx.models.reference import POINT_LABELS, PromptEncoder
from samx.models.spec import LABELS, PADDED_POINT, DecoderSpec

# Added to a score: exp() of it is exactly zero in float16 and float32 alike, next to any score a decoder has.
NEVER = -30000.0
STABILITY_LOGIT = 0.0  # SAM 2 tests stability around logit 0, whatever the mask threshold


class PointPosition(nn.Module):
    """Encode pixel coordinates. Two products of numbers, not one of matrices: Turing GPUs have none in float32."""

    matrix: Tensor

    def __init__(self, source: PromptEncoder) -> None:
        super().__init__()
        self.image_size, self.offset = source.image_size, source.offset
        self.register_buffer("matrix", source.pe_layer.get_buffer("positional_encoding_gaussian_matrix").clone())

    def forward(self, coords: Tensor) -> Tensor:
        """Shapes: (N, P, 2) px -> (N, P, C)."""
        unit = 2 * ((coords + self.offset) / self.image_size) - 1
        angles = 2 * math.pi * (unit[..., :1] * self.matrix[0] + unit[..., 1:] * self.matrix[1])
        return torch.cat([angles.sin(), angles.cos()], dim=-1)


class PointEmbedding(nn.Module):
    """Embed points and box corners by comparing labels with a table: no gather, no one-hot node."""

    table: Tensor
    codes: Tensor

    def __init__(self, source: PromptEncoder) -> None:
        super().__init__()
        self.position = PointPosition(source)
        rows = [source.padding_token(), *source.point_weights()]
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
        """Return what keeps padded points out of attention, added to scores. Shapes: (N, P) -> (N, learned + P)."""
        return F.pad((labels == PADDED_POINT).to(labels.dtype) * NEVER, (learned, 0))


class MaskEmbedding(nn.Module):
    """Embed a previous mask, or its absence, prompt by prompt."""

    absent: Tensor

    def __init__(self, source: PromptEncoder) -> None:
        super().__init__()
        self.downscaling = source.mask_downscaling
        self.register_buffer("absent", source.no_mask().detach().clone())  # (1, C)

    def forward(self, mask: Tensor, has_mask: Tensor) -> Tensor:
        """Shapes: (N, 1, 4G, 4G), (N,) -> (N, 1, L, C)."""
        present = self.downscaling(mask).flatten(2).transpose(1, 2).unsqueeze(1)
        return torch.where((has_mask > 0).reshape(-1, 1, 1, 1), present, self.absent)


@dataclass(frozen=True)
class TokenChoice:
    """Choose which output tokens the export reads: positions up to `last` of all tokens, masks by token number."""

    last: int
    iou: int  # the IoU token's place among the tokens read
    masks: range
    hq: int  # the place of HQ-SAM's token, where there is one
    best_alone: bool  # of several masks the best one is returned
    pointers: slice  # the places of the tokens of object pointers; a single mask's is the first, whichever mask is kept

    def select(
        self, spec: DecoderSpec, weights: Tensor, iou: Tensor, planes: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Compute the kept masks. Shapes: (N, len(masks), C/8), (N, 4) -> (N, M, 4G, 4G), (N, M)."""
        if spec.settles_single:
            return stable_single(spec, weights, iou, planes)
        if self.best_alone:
            chosen = chosen_best(iou)
            return planes(chosen.unsqueeze(1) @ weights), (chosen * iou[:, 1:]).sum(1, keepdim=True)
        return planes(weights), iou[:, self.masks.start : self.masks.stop]


def token_choice(spec: DecoderSpec) -> TokenChoice:
    """Derive the tokens to read from the masks to return."""
    iou = int(spec.object_score)
    only_first = spec.masks == "single" and not spec.stability_fallback
    masks = range(0, 1) if only_first else range(int(spec.masks == "multimask"), spec.mask_tokens)
    hq = spec.output_tokens - 1
    pointed = range(1) if spec.masks == "single" else masks
    pointers = slice(iou + 1 + pointed.start, iou + 1 + pointed.stop)
    return TokenChoice(
        last=hq + 1 if spec.hq_token else iou + 1 + masks.stop, iou=iou, masks=masks, hq=hq,
        best_alone=spec.masks == "multimask" and spec.rules.best_alone, pointers=pointers,
    )  # fmt: skip


def stable_single(
    spec: DecoderSpec, weights: Tensor, iou: Tensor, planes: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Return mask 0, or the best multimask where mask 0 is unstable; of all masks, the others after it.

    The best multimask is known from the predicted IoU before any pixel is computed, so two planes suffice.
    Shapes: (N, 4, C/8), (N, 4) -> (N, 1 or 4, 4G, 4G), (N, 1 or 4).
    """
    chosen = chosen_best(iou)
    best = chosen.unsqueeze(1) @ weights[:, 1:]  # (N, 1, C/8)
    others = weights[:, 1:] if spec.masks == "all" else weights[:, :0]
    masks = planes(torch.cat([weights[:, :1], best, others], dim=1))  # (N, 2 or 5, 4G, 4G)
    single, fallback = masks[:, :1], masks[:, 1:2]
    stable = is_stable(spec, single)
    kept = torch.where(stable.unsqueeze(2).unsqueeze(3), single, fallback)
    kept_iou = torch.where(stable, iou[:, :1], (chosen * iou[:, 1:]).sum(1, keepdim=True))
    if spec.masks == "single":
        return kept, kept_iou
    return torch.cat([kept, masks[:, 2:]], dim=1), torch.cat([kept_iou, iou[:, 1:]], dim=1)


def chosen_best(iou: Tensor) -> Tensor:
    """Return 1 for the best multimask, the first among equals, as upstream. Shapes: (N, 4) -> (N, 3)."""
    others = iou[:, 1:]
    best = others.argmax(dim=1, keepdim=True)  # (N, 1)
    return (torch.arange(others.shape[1], device=iou.device) == best).to(iou.dtype)


def is_stable(spec: DecoderSpec, masks: Tensor) -> Tensor:
    """Compare the areas above and below the threshold. Shapes: (N, 1, H, W) -> bool (N, 1)."""
    inner = (masks > STABILITY_LOGIT + spec.stability_delta).to(torch.float32).sum((-1, -2))
    outer = (masks > STABILITY_LOGIT - spec.stability_delta).to(torch.float32).sum((-1, -2))
    return torch.logical_or(outer == 0, inner / outer.clamp(min=1) >= spec.stability_threshold)
