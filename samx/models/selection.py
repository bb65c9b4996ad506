"""Which of a decoder's masks a caller is given."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from samx.models.spec import DecoderSpec


def stability_scores(logits: Tensor, threshold: float, delta: float) -> Tensor:
    """Compare each mask's area above and below its threshold. Shapes: (..., H, W) -> (...)."""
    inner = (logits > threshold + delta).sum((-1, -2)).to(logits.dtype)
    outer = (logits > threshold - delta).sum((-1, -2)).to(logits.dtype)
    return torch.where(outer > 0, inner / outer.clamp(min=1), torch.ones_like(outer))


def select_masks(spec: DecoderSpec, masks: Tensor, iou: Tensor) -> tuple[Tensor, Tensor]:
    """Keep the masks that the spec asks for. Shapes: (N, 4, H, W), (N, 4) -> (N, M, H, W), (N, M)."""
    if spec.masks == "all" and spec.settles_single:
        single, single_iou = select_masks(replace(spec, masks="single"), masks, iou)
        return torch.cat([single, masks[:, 1:]], 1), torch.cat([single_iou, iou[:, 1:]], 1)
    if spec.masks == "all":
        return masks, iou
    if spec.masks == "multimask" and not spec.rules.best_alone:
        return masks[:, 1:], iou[:, 1:]
    if spec.masks == "single" and not spec.stability_fallback:
        return masks[:, :1], iou[:, :1]
    kept = iou[:, 1:].argmax(dim=1) + 1  # (N,), the best
    if spec.masks == "single":
        # SAM 2 applies its stability test at logit 0, whatever the mask threshold.
        stable = stability_scores(masks[:, 0], 0.0, spec.stability_delta) >= spec.stability_threshold
        kept = torch.where(stable, torch.zeros_like(kept), kept)
    rows = torch.arange(len(kept), device=kept.device)
    return masks[rows, kept][:, None], iou[rows, kept][:, None]
