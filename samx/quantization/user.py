"""User: somebody in front of one image, who clicks, draws boxes and corrects what the reference answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from samx.demo.sampling import (
    MIN_REGION_SHARE,
    Region,
    bounding_box,
    error_click,
    find_regions,
    frame_point,
    jittered_box,
    pick_region,
    random_pixel,
)
from samx.errors import ParityError
from samx.models.session import Feed, FloatArray, Outputs, Session
from samx.models.spec import LABELS
from samx.quantization.calibration import calibration_spec, fitted
from samx.quantization.sources import SourceImage, mask_px
from samx.validators.arrays import storable
from samx.validators.cases import BOX_LABELS, Draw
from samx.validators.metrics import BoolArray
from samx.validators.suite import output_problems

Points = tuple[tuple[float, float], ...]
FOREGROUND, BACKGROUND = LABELS["foreground"], LABELS["background"]

MOST_CLICKS, MOST_EXTRA, MOST_ROUNDS = 5, 3, 3  # on the object alone; beside it or in a box; of corrections
# Where regions are not known: of so many clicks' masks, the half that the reference is surest of are what users mean.
PROPOSALS = 8
MOST_REGION_SHARE = 0.9  # of the picture; more is its background


@dataclass(frozen=True)
class Question:
    """Keep what a user gives: clicks with their labels, a box, a previous mask. Units: px of the frame; logits.

    Shapes: mask (1, 1, S, S).
    """

    points: Points = ()
    labels: tuple[int, ...] = ()
    box: Points = ()
    mask: FloatArray | None = None

    def and_click(self, point: tuple[float, float], label: int) -> Question:
        """Click once more."""
        return replace(self, points=(*self.points, point), labels=(*self.labels, label))


class User:
    """Draw prompts for the regions of an image.

    Regions are the scene's where they are known. Else they are what the reference itself finds under clicks: its own
    masks then stand for what is meant, also in corrections, and no agreement with them says anything about accuracy.
    """

    def __init__(self, reference: Session, image: SourceImage, rng: np.random.Generator) -> None:
        self.reference, self.rng, self.extent = reference, rng, image.extent
        self.spec = calibration_spec(reference.spec)
        self.draw = Draw(replace(self.spec, mask_input=False), rng, *image.extent)
        self.valid = self._rectangle(0, 0, *(mask_px(side, self.spec) for side in image.extent))
        reference.set_image({name: storable(name, value) for name, value in image.features.items()})
        known = [] if image.ids is None else find_regions(image.ids)
        self.knows_truth = bool(known)
        self.regions = known or self._proposed()

    def region(self) -> Region:
        """Choose what is meant."""
        return pick_region(self.rng, self.regions)

    def ask(self, kind: str, region: Region) -> Question:
        """Draw prompts of a kind: the method of its name."""
        draw: Callable[[Region], Question] = getattr(self, kind)
        return draw(region)

    def click(self, region: Region) -> Question:
        """Click on the region once."""
        return self._click_in(Question(), region.own, FOREGROUND)

    def box(self, region: Region) -> Question:
        """Draw a slightly wrong box round it."""
        corners = np.array(jittered_box(self.rng, region.box, self.spec.image_size, self.spec.mask_px))
        first = np.clip(np.minimum(corners[0], corners[1] - 1), 0, np.subtract(self.extent, 1))
        (x0, y0), (x1, y1) = first, np.clip(corners[1], first + 1, self.extent)  # at least a pixel wide
        return Question(box=((x0, y0), (x1, y1)))

    def points(self, region: Region) -> Question:
        """Click on it several times."""
        return self._clicks(self.click(region), region.own, FOREGROUND, MOST_CLICKS - 1)

    def negative_points(self, region: Region) -> Question:
        """Click on it, and beside it on what it is not."""
        return self._clicks(self.click(region), self._beside(region), BACKGROUND, MOST_EXTRA)

    def box_and_points(self, region: Region) -> Question:
        """Draw a box and click inside the region."""
        return self._clicks(self.box(region), region.own, FOREGROUND, MOST_EXTRA)

    def refinement(self, region: Region) -> Question:
        """Begin with a click or a box, then correct the answer up to three times where it is wrong."""
        question = self.click(region) if self.rng.uniform() < 0.5 else self.box(region)
        for _ in range(int(self.rng.integers(1, MOST_ROUNDS + 1))):
            logits, mask = self.answer(question)
            click = error_click(self.rng, mask, region.mask, self.spec.mask_px)
            question = replace(question.and_click(*click), mask=logits)
        return question

    def answer(self, question: Question) -> tuple[FloatArray, BoolArray]:
        """Ask the reference, and take the logits and the mask that a predictor's user takes.

        One click is ambiguous: the best of three masks. More than that is not: the single mask.
        Shapes: -> (1, 1, S, S), (S, S).
        """
        outputs = self._decode(self.feed(question))
        ambiguous = len(question.points) == 1 and not question.box
        index = 1 + int(outputs["iou_predictions"][0, 1:].argmax()) if ambiguous else 0
        limit = self.spec.rules.mask_limit
        logits = np.clip(outputs["low_res_masks"][:, index : index + 1], -limit, limit)
        return logits, (logits[0, 0] > self.spec.mask_threshold) & self.valid

    def feed(self, question: Question) -> Feed:
        """Order and pad a question as the family's predictor does; without a mask there are no mask tensors."""
        coords = np.array([[*question.points, *question.box]], np.float32)
        tokens = self.draw.feed(coords, [*question.labels, *(BOX_LABELS if question.box else ())])
        if question.mask is None:
            return tokens
        mask = storable("mask_input", question.mask)
        return {**tokens, "mask_input": mask, "has_mask_input": np.ones(1, np.float32)}

    def _decode(self, prompts: Feed) -> Outputs:
        outputs = self.reference.decode(fitted(prompts, self.spec))
        problems = output_problems(self.spec, outputs, len(prompts["point_coords"]))
        if problems:
            fix = "Check the checkpoint and the images."
            raise ParityError("the reference cannot answer a calibration prompt", found=problems[0], fix=fix)
        return outputs

    def _click_in(self, question: Question, area: BoolArray, label: int) -> Question:
        return question.and_click(frame_point(random_pixel(self.rng, area), self.spec.mask_px), label)

    def _clicks(self, question: Question, area: BoolArray, label: int, most: int) -> Question:
        for _ in range(int(self.rng.integers(1, most + 1))):
            question = self._click_in(question, area, label)
        return question

    def _beside(self, region: Region) -> BoolArray:
        """Return what lies around a region, half of its size away at most: nobody rules out what is far off."""
        left, top, right, bottom = region.box
        reach = max(right - left, bottom - top) // 2 + 1
        around = self._rectangle(left - reach, top - reach, right + reach, bottom + reach) & self.valid & ~region.mask
        return around if around.any() else self.valid & ~region.mask

    def _rectangle(self, left: int, top: int, right: int, bottom: int) -> BoolArray:
        mask = np.zeros((self.spec.mask_size, self.spec.mask_size), np.bool_)
        mask[max(top, 0) : bottom, max(left, 0) : right] = True
        return mask

    def _proposed(self) -> list[Region]:
        """Click anywhere, and keep what the reference is surest of; where it finds nothing, a rectangle is meant."""
        outputs = self._decode(self.draw.points(PROPOSALS, [FOREGROUND]))
        scores = outputs["iou_predictions"][:, 1:]
        best = 1 + scores.argmax(axis=1)
        masks = (outputs["low_res_masks"][np.arange(PROPOSALS), best] > self.spec.mask_threshold) & self.valid
        shares = masks.sum(axis=(1, 2)) / self.valid.sum()
        surest = [i for i in np.argsort(-scores.max(axis=1)) if MIN_REGION_SHARE <= shares[i] <= MOST_REGION_SHARE]
        kept = [masks[i] for i in surest[: PROPOSALS // 2]] or [self._anything()]
        return [Region(0, mask, mask, bounding_box(mask)) for mask in kept]

    def _anything(self) -> BoolArray:
        width, height = (mask_px(side, self.spec) for side in self.extent)
        left, top = (int(self.rng.integers(0, side // 2 + 1)) for side in (width, height))
        return self._rectangle(left, top, left + width // 4 + 1, top + height // 4 + 1) & self.valid
