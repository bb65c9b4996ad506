"""The automatic mode beside Meta's generators: on given logits, and on the demo model."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module
from itertools import pairwise
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor
from upstream_predictors import Noise

from samx.models.session import Feed, FloatArray, Outputs

GENERATORS = {"sam1": ("segment_anything", "SamAutomaticMaskGenerator"), "sam2": (
    "sam2.automatic_mask_generator", "SAM2AutomaticMaskGenerator")}  # fmt: skip
LEVELS = np.linspace(0.7, 1.0, 16, dtype=np.float32)  # of scores: few, so that many are equal


class Blobs(Noise):
    """A session that draws ellipses around clicks, some blurred, with holes or beside islands, and scores with ties."""

    def decode(self, prompts: Feed) -> Outputs:
        """Draw; what is fed back moves the edges."""
        clicks = prompts["point_coords"][:, 0] * (self.spec.mask_size / self.spec.image_size)
        masks = np.stack([[self._blob(click) for _ in range(4)] for click in clicks])
        if "mask_input" in prompts:
            masks += np.float32(0.1) * prompts["mask_input"]
        scores = self.rng.choice(LEVELS, masks.shape[:2])
        self.returned.append({"low_res_masks": masks, "iou_predictions": scores})
        return self.returned[-1]

    def _blob(self, click: FloatArray) -> FloatArray:
        size, rng = self.spec.mask_size, self.rng
        y, x = np.mgrid[:size, :size] + 0.5
        centre = (click + rng.normal(0, 1, 2)) // 4 * 4  # some meet
        radii = rng.choice([0.05, 0.1, 0.3], 2) * size
        distance = 1 - np.hypot((x - centre[0]) / radii[0], (y - centre[1]) / radii[1])
        logits = distance * radii.min() * rng.choice([0.5, 20.0], p=[0.2, 0.8])
        holes = rng.random((size, size)) < rng.choice([0, 0.003])
        drawn: FloatArray = (np.where(holes, -logits, logits) + rng.normal(0, 0.1, (size, size))).astype(np.float32)
        return drawn


def metas_generator(predictor: Any, family: str, **settings: Any) -> Any:
    """Put Meta's generator around Meta's predictor."""
    package, name = GENERATORS[family]
    made = getattr(import_module(package), name)(predictor.model, **settings)
    if family == "sam2":  # with its own settings of regions
        predictor._transforms.max_hole_area = made.predictor._transforms.max_hole_area
        predictor._transforms.max_sprinkle_area = made.predictor._transforms.max_sprinkle_area
    made.predictor = predictor
    return made


@pytest.fixture
def metas_surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give Meta's generators what they call."""
    surround_meta(monkeypatch)


def surround_meta(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand in for what Meta's generators call: OpenCV, SAM 2's CUDA kernel, torchvision's compiled operators."""
    opencv, kernel = ModuleType("cv2"), ModuleType("sam2._C")
    opencv.connectedComponentsWithStats = _with_stats  # type: ignore[attr-defined]
    kernel.get_connected_componnets = _on_gpu  # type: ignore[attr-defined] # Meta's spelling
    monkeypatch.setitem(sys.modules, "cv2", opencv)
    monkeypatch.setitem(sys.modules, "sam2._C", kernel)
    monkeypatch.setattr(import_module("sam2"), "_C", kernel, raising=False)
    monkeypatch.setattr(import_module("torchvision.extension"), "_has_ops", lambda: True)  # of torchvision_operators


def _with_stats(mask: Any, connectivity: int) -> tuple[int, Any, Any, None]:
    assert connectivity == 8
    labels, count = ndimage.label(mask, np.ones((3, 3)))
    return count + 1, labels, np.bincount(labels.ravel())[:, None], None


def _on_gpu(masks: Tensor) -> tuple[Tensor, Tensor]:
    labels = np.stack([ndimage.label(mask, np.ones((3, 3)))[0] for mask in masks[:, 0].numpy()])
    areas = np.stack([np.where(part > 0, np.bincount(part.ravel())[part], 0) for part in labels])
    return torch.from_numpy(labels)[:, None], torch.from_numpy(areas)[:, None]


@dataclass
class Comparison:
    """Count what two lists of masks share. Units: px of masks that both have."""

    ours: int = 0
    metas: int = 0
    same: int = 0  # masks of both, from the same click, alike in 99 of 100 pixels
    near: list[str] = field(default_factory=list)  # masks of one alone, a score of which is that near a threshold
    unexplained: list[str] = field(default_factory=list)
    swapped: int = 0  # masks whose places differ, though their scores are not that near
    flipped_px: int = 0
    least_iou: float = 1.0


NEAR = 1e-4


def compared(ours: Sequence[Any], metas: Sequence[Any], iou: float, stability: float) -> Comparison:
    """Pair masks, and say of what is left over which threshold it is near."""
    found, left, places = Comparison(len(ours), len(metas)), list(range(len(metas))), []
    for mine in ours:
        place = next((place for place in left if _alike(mine, metas[place])), None)
        if place is None:
            _left_over("ours", mine, found, iou, stability)
            continue
        left.remove(place)
        places.append(place)
        found.same += 1
        flipped = np.count_nonzero(mine["segmentation"] != metas[place]["segmentation"])
        found.flipped_px += int(flipped)
        found.least_iou = min(found.least_iou, 1 - flipped / max(metas[place]["area"], 1))
    for place in left:
        _left_over("Meta's", metas[place], found, iou, stability)
    found.swapped = sum(
        metas[first]["predicted_iou"] - metas[second]["predicted_iou"] < -NEAR for first, second in pairwise(places)
    )
    return found


def _alike(mine: Any, theirs: Any) -> bool:
    if not np.allclose(mine["point_coords"], theirs["point_coords"], atol=0.01):
        return False
    joint = np.count_nonzero(mine["segmentation"] | theirs["segmentation"])
    return bool(np.count_nonzero(mine["segmentation"] & theirs["segmentation"]) > 0.99 * joint)


def _left_over(whose: str, mask: Any, found: Comparison, iou: float, stability: float) -> None:
    apart = abs(mask["predicted_iou"] - iou), abs(mask["stability_score"] - stability)
    line = (
        f"{whose}: {mask['area']} px, predicted IoU {mask['predicted_iou']:.6f}, {mask['stability_score']:.6f} stable"
    )
    (found.near if min(apart) <= NEAR else found.unexplained).append(line)
