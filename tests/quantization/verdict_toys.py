"""An export of discs whose every pixel is known: held-out clicks, their truth, and sessions with planted faults."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from calibration_toys import SPEC, DiscReference, features

from samx.models.session import Feed
from samx.quantization import verdict as module
from samx.quantization.rollout import HeldOut
from samx.quantization.search import Budget
from samx.quantization.verdict import Verdict
from samx.validators.cases import Case
from samx.validators.metrics import BoolArray

EXPORTED = replace(SPEC, masks="multimask", mask_input=False)
BUDGET = Budget()
BEST = 2  # the disc of the highest predicted IoU, and the largest
CENTRES_PX = [(x + 0.25, y + 0.75) for x in (40, 62, 85) for y in (39, 64, 86)]  # none on a line of symmetry


class Discs(DiscReference):
    """Answer with discs; faults are planted in the logits, or by what derives from this."""

    def __init__(self, change: Callable[[Any], Any] = lambda logits: logits) -> None:
        super().__init__(EXPORTED, change)


def click(x: float, y: float) -> Feed:
    coords, labels = np.array([[[x, y], [0, 0]]], np.float32), np.array([[1, -1]], np.float32)
    return {"point_coords": coords, "point_labels": labels}


def target(prompts: Feed, grown_px: float = 0.0) -> BoolArray:
    """Give the best disc, or one that is a little larger, as what was asked for."""
    outputs = Discs(lambda logits: logits + grown_px).decode(prompts)
    found: BoolArray = outputs["low_res_masks"][:, BEST] > 0
    return found


def held(truth: Callable[[Feed], BoolArray | None] = target) -> HeldOut:
    prompts = [click(*centre) for centre in CENTRES_PX]
    cases = tuple(Case(f"click {i}", i % 2, asked) for i, asked in enumerate(prompts))
    by_image = tuple(sorted(cases, key=lambda case: case.image))
    images = features(EXPORTED, 0), features(EXPORTED, 1)
    return HeldOut(images, by_image, tuple(truth(case.prompts) for case in by_image), "toys")


def verdict(session: Any, budget: Budget = BUDGET, known: HeldOut | None = None) -> Verdict:
    return module.verdict(session, Discs(), known or held(), budget, "toy")


def shrunk(by_px: float, mask: int = BEST) -> Callable[[Any], Any]:
    """Make one of the discs smaller by so many px of its radius."""
    return lambda logits: logits - by_px * (np.arange(logits.shape[1]) == mask)[:, None, None]


def grown(prompts: Feed) -> BoolArray:
    """Give a disc that is a little larger than the best one."""
    return target(prompts, 1.0)
