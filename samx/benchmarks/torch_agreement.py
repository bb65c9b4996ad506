"""Nothing is timed that does not compute the same: a way of decoding against the reference form in float32."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor

from samx.benchmarks.agreement import MAX_ERROR, OUTPUTS
from samx.errors import ParityError


@dataclass(frozen=True)
class Differences:
    """Hold what lies between two decoders' outputs, or how much may."""

    logit_error: float
    iou_error: float  # of the predicted IoU
    mask_iou_mean: float

    def within(self, bounds: Differences) -> bool:
        """Tell whether everything is on the good side; NaN and infinity are on none."""
        errors = self.logit_error < bounds.logit_error and self.iou_error < bounds.iou_error
        return errors and self.mask_iou_mean >= bounds.mask_iou_mean

    def __str__(self) -> str:
        return f"logits {self.logit_error:.3g}, predicted IoU {self.iou_error:.3g}, mask IoU {self.mask_iou_mean:.4f}"


# Half precision may go as far as Meta's own modules do under autocast: the bounds keep nonsense out of the table, and
# what was found stands beside the times.
BOUNDS: Mapping[str, Differences] = {
    "float32": Differences(MAX_ERROR[OUTPUTS[0]], MAX_ERROR[OUTPUTS[1]], 0.999),
    "float16": Differences(inf, inf, 0.99),
    "bfloat16": Differences(inf, inf, 0.95),
}


def compare(name: str, found: Sequence[Tensor], wanted: Sequence[Tensor], dtype: str) -> Differences:
    """Compare masks and predicted IoU where they lie, which may be a GPU. Shapes: (N, M, S, S), (N, M).

    Raises: ParityError when they differ in shape, or by more than the type may.
    """
    shapes = [[tuple(part.shape) for part in parts] for parts in (found, wanted)]
    if shapes[0] != shapes[1]:
        raise ParityError(f"{name} gives other shapes than the reference form", found=shapes[0], expected=shapes[1])
    logit_error, iou_error = (_largest(mine - exact) for mine, exact in zip(found, wanted, strict=True))
    differences = Differences(logit_error, iou_error, mean_mask_iou(found[0] > 0, wanted[0] > 0))
    if not differences.within(BOUNDS[dtype]):
        raise ParityError(
            f"{name} differs from the reference form in float32", found=differences,
            expected=f"better than {BOUNDS[dtype]}", fix="It was not measured.",
        )  # fmt: skip
    return differences


def _largest(errors: Tensor) -> float:
    return float(errors.abs().max())


def mean_mask_iou(a: Tensor, b: Tensor) -> float:
    """Divide common area by joint area, as validators.metrics.mask_iou() does, and average. Shapes: (N, M, S, S)."""
    common, joint = (pixels.flatten(2).sum(-1).double() for pixels in (a & b, a | b))
    return float(torch.where(joint == 0, 1.0, common / joint.clamp(min=1)).mean())
