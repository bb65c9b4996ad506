"""Select before computing: which tokens are read, and which masks are worth their pixels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from samx.models.spec import DecoderSpec

STABILITY_LOGIT = 0.0  # SAM 2 tests stability around logit 0, whatever the mask threshold


@dataclass(frozen=True)
class TokenChoice:
    """Choose which output tokens the export reads: positions `first` to `last` of all tokens, masks by token number."""

    first: int
    last: int
    iou: int  # the IoU token's place among the tokens read
    masks: range

    def select(
        self, spec: DecoderSpec, weights: Tensor, iou: Tensor, planes: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Compute the kept masks. Shapes: (N, len(masks), C/8), (N, 4) -> (N, M, 4G, 4G), (N, M)."""
        if spec.masks == "single" and spec.stability_fallback:
            return stable_single(spec, weights, iou, planes)
        return planes(weights), iou[:, self.masks.start : self.masks.stop]


def token_choice(spec: DecoderSpec) -> TokenChoice:
    """Derive the tokens to read from the masks to return."""
    iou = int(spec.object_score)
    only_first = spec.masks == "single" and not spec.stability_fallback
    masks = range(0, 1) if only_first else range(int(spec.masks == "multimask"), spec.mask_tokens)
    return TokenChoice(first=0, last=iou + 1 + masks.stop, iou=iou, masks=masks)


def stable_single(
    spec: DecoderSpec, weights: Tensor, iou: Tensor, planes: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Return mask 0, or the best multimask where mask 0 is unstable.

    The best multimask is known from the predicted IoU before any pixel is computed, so two planes suffice.
    Shapes: (N, 4, C/8), (N, 4) -> (N, 1, 4G, 4G), (N, 1).
    """
    others = iou[:, 1:]
    best = others.argmax(dim=1, keepdim=True)  # (N, 1), the first among equals, as upstream
    chosen = (torch.arange(spec.mask_tokens - 1, device=iou.device) == best).to(iou.dtype)  # (N, 3)
    best_weights = chosen.unsqueeze(1) @ weights[:, 1:]  # (N, 1, C/8)
    masks = planes(torch.cat([weights[:, :1], best_weights], dim=1))  # (N, 2, 4G, 4G)
    single, fallback = masks[:, :1], masks[:, 1:]
    stable = is_stable(spec, single)
    best_iou = (chosen * others).sum(1, keepdim=True)
    return torch.where(stable.unsqueeze(2).unsqueeze(3), single, fallback), torch.where(stable, iou[:, :1], best_iou)


def is_stable(spec: DecoderSpec, masks: Tensor) -> Tensor:
    """Compare the areas above and below the threshold. Shapes: (N, 1, H, W) -> bool (N, 1)."""
    inner = (masks > STABILITY_LOGIT + spec.stability_delta).to(torch.float32).sum((-1, -2))
    outer = (masks > STABILITY_LOGIT - spec.stability_delta).to(torch.float32).sum((-1, -2))
    return torch.logical_or(outer == 0, inner / outer.clamp(min=1) >= spec.stability_threshold)
