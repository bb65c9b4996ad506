"""torchvision's duplicate removal in plain PyTorch, for installations whose compiled operators do not load."""

from __future__ import annotations

import torch
from torch import Tensor

LIBRARIES: list[torch.library.Library] = []  # the definitions go when these do


def define() -> None:
    """Define what `import torchvision` expects to be there, unless it is."""
    if LIBRARIES or hasattr(torch.ops.torchvision, "nms"):
        return
    library = torch.library.Library("torchvision", "DEF")
    for name, run in (("nms", nms), ("qnms", nms)):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.impl(name, run, "CompositeExplicitAutograd")
    LIBRARIES.append(library)


def nms(dets: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Return the boxes, surest first, that overlap no surer one by more than the threshold. Shapes: (K, 4), (K,)."""
    areas = (dets[:, 2] - dets[:, 0]) * (dets[:, 3] - dets[:, 1])
    order = scores.argsort(descending=True, stable=True)
    kept: list[int] = []
    while order.numel():
        best, order = order[0], order[1:]
        kept.append(int(best))
        low, high = torch.maximum(dets[order, :2], dets[best, :2]), torch.minimum(dets[order, 2:], dets[best, 2:])
        shared = (high - low).clamp(min=0).prod(1)
        iou = shared / (areas[best] + areas[order] - shared)  # no number where neither has an area
        order = order[~(iou.double() > iou_threshold)]
    return torch.tensor(kept, dtype=torch.int64, device=dets.device)
