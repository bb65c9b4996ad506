"""Training batches: prompts of every kind on a few images, decoded and scored."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from samx.demo.model import DemoModel
from samx.demo.sampling import (
    Region,
    error_click,
    frame_point,
    jittered_box,
    padded_prompt,
    pick_region,
    random_pixel,
)
from tools.train_demo.fast_decode import decode_many
from tools.train_demo.losses import mask_iou, mask_losses

Array = NDArray[Any]
Rng = np.random.Generator
Features = tuple[Tensor, ...]
Points = list[tuple[float, float]]

STAND_IN_WEIGHT = 0.3  # of a token whose level is absent under the click: it copies the next larger region
IOU_WEIGHT, OBJECT_WEIGHT = 2.0, 1.0
ABSENT_CHANCE = {"sam1": 0.05, "sam2": 0.13}  # prompts on empty background
MOST_POINTS = 8


@dataclass
class Prompt:
    """Hold one prompt and what each of the four mask tokens should answer."""

    image: int
    points: Points
    labels: list[int]
    box: Points | None
    wanted: Array
    answers: Array
    weights: Array
    present: bool = True
    mask: Tensor | None = field(default=None)


@dataclass(frozen=True)
class Sample:
    """Hold the truth of one training image."""

    ids: Array
    regions: list[Region]


def _click_answers(ids: Array, wanted: Array, pixel: tuple[int, int]) -> tuple[Array, Array]:
    """Assign the target to token 0, and whole, part and sub-part under the click to tokens 1 to 3."""
    answers, weights = [wanted], [1.0]
    for level in range(3):
        region = ids[level, pixel[1], pixel[0]]
        answers.append(ids[level] == region if region else answers[-1])
        weights.append(1.0 if region else STAND_IN_WEIGHT)
    return np.stack(answers), np.array(weights)


def _sure_answers(region: Region) -> tuple[Array, Array]:
    """Assign the target to token 0 and to the token of its level."""
    weights = np.array([1.0, 0.0, 0.0, 0.0])
    weights[region.level + 1] = 0.5
    return np.broadcast_to(region.mask, (4, *region.mask.shape)), weights


def click_prompt(rng: Rng, image: int, sample: Sample) -> Prompt:
    """Click once on a region."""
    region = pick_region(rng, sample.regions)
    pixel = random_pixel(rng, region.own, 3 + region.mask.shape[0] // 32)
    answers, weights = _click_answers(sample.ids, region.mask, pixel)
    return Prompt(image, [frame_point(pixel)], [1], None, region.mask, answers, weights)


def box_prompt(rng: Rng, image: int, sample: Sample) -> Prompt:
    """Draw a slightly wrong box round a region."""
    region = pick_region(rng, sample.regions)
    box = jittered_box(rng, region.box, 4 * region.mask.shape[0])
    return Prompt(image, [], [], box, region.mask, *_sure_answers(region))


def points_prompt(rng: Rng, image: int, sample: Sample, count: int) -> Prompt:
    """Click several times inside a region's own area and around it."""
    region = pick_region(rng, sample.regions)
    labels = [1] + [int(rng.uniform() < 0.6) for _ in range(count - 1)]
    around = ~region.mask
    pixels = [random_pixel(rng, region.own if label or not around.any() else around) for label in labels]
    return Prompt(image, [frame_point(p) for p in pixels], labels, None, region.mask, *_sure_answers(region))


def absent_prompt(rng: Rng, image: int, sample: Sample, boxed: bool) -> Prompt | None:
    """Prompt on empty background, or give None where there is too little of it."""
    side = sample.ids.shape[1]
    empty = sample.ids[0] == 0
    if empty.mean() < 0.1:
        return None
    x, y = random_pixel(rng, empty, 4)
    nothing = np.zeros((side, side), bool)
    answers, weights = np.zeros((4, side, side), bool), np.zeros(4)
    if not boxed:
        return Prompt(image, [frame_point((x, y))], [1], None, nothing, answers, weights, present=False)
    reach = int(rng.integers(2, 2 + side // 6))
    left, top, right, bottom = max(x - reach, 0), max(y - reach, 0), min(x + reach, side), min(y + reach, side)
    if not empty[top:bottom, left:right].all():
        return None
    box = jittered_box(rng, (left, top, right, bottom), 4 * side)
    return Prompt(image, [], [], box, nothing, answers, weights, present=False)


def refine_prompt(rng: Rng, before: Prompt, logits: Tensor, iou: Tensor) -> Prompt:
    """Correct an earlier answer: its mask comes back with one more click, mostly where it is wrong."""
    token = 0 if rng.uniform() < 0.4 else int(iou[1:].argmax()) + 1
    mask = logits[token].detach()
    predicted = (mask > 0).numpy() if rng.uniform() < 0.8 else before.wanted
    click, label = error_click(rng, predicted, before.wanted)
    answers = np.broadcast_to(before.wanted, (4, *before.wanted.shape))
    weights = np.array([1.0, 0.0, 0.0, 0.0])
    points, labels = [*before.points, click], [*before.labels, label]
    return Prompt(before.image, points, labels, before.box, before.wanted, answers, weights, mask=mask)


def decode_prompts(model: DemoModel, features: Features, prompts: list[Prompt]) -> tuple[Tensor, Tensor, Tensor | None]:
    """Decode prompts that have the same number of points, as many on each image.

    Shapes: as ReferenceDecoder.all_masks.
    """
    padded = [padded_prompt(model.family, p.points, p.labels, p.box) for p in prompts]
    coords = torch.tensor([coords for coords, _ in padded])
    labels = torch.tensor([labels for _, labels in padded]).float()
    masks = [p.mask for p in prompts if p.mask is not None]
    if not masks:
        return decode_many(model.decoder, features, coords, labels, None)
    index = torch.tensor([p.image for p in prompts])
    return decode_many(model.decoder, tuple(f[index] for f in features), coords, labels, torch.stack(masks)[:, None])


def prompt_losses(prompts: list[Prompt], decoded: tuple[Tensor, Tensor, Tensor | None]) -> Tensor:
    """Sum masks', IoU's and object score's losses over prompts."""
    logits, iou, score = decoded
    answers = torch.from_numpy(np.stack([p.answers for p in prompts])).float()
    wanted = torch.from_numpy(np.stack([p.wanted for p in prompts])).float()[:, None]
    weights = torch.from_numpy(np.stack([p.weights for p in prompts])).float()
    loss = (mask_losses(logits, answers) * weights).sum()
    loss = loss + IOU_WEIGHT * ((iou - mask_iou(logits, wanted)) ** 2).sum()
    if score is not None:
        present = torch.tensor([[float(p.present)] for p in prompts])
        loss = loss + OBJECT_WEIGHT * F.binary_cross_entropy_with_logits(score, present, reduction="sum")
    return loss


def batch_loss(
    model: DemoModel, features: Features, samples: list[Sample], rng: Rng, counts: tuple[int, int, int, int]
) -> Tensor:
    """Average the loss over clicks, boxes, several points and corrections, so many of each an image."""
    clicks, boxes, several, refined = counts
    chance = ABSENT_CHANCE[model.family]
    groups: list[list[Prompt]] = [[], [], []]
    more = int(rng.integers(2, MOST_POINTS + 1))
    for image, sample in enumerate(samples):
        for boxed, count in ((False, clicks), (True, boxes)):
            for _ in range(count):
                none = absent_prompt(rng, image, sample, boxed) if rng.uniform() < chance else None
                make = box_prompt if boxed else click_prompt
                groups[int(boxed)].append(none or make(rng, image, sample))
        groups[2] += [points_prompt(rng, image, sample, more) for _ in range(several)]
    answered = [(group, decode_prompts(model, features, group)) for group in groups if group]
    before, (logits, iou, _) = answered[int(boxes > 0 and rng.uniform() < 0.35)]
    usable = [i for i in rng.permutation(len(before)) if before[i].present][: refined * len(samples)]
    if usable:
        again = [refine_prompt(rng, before[i], logits[i], iou[i]) for i in usable]
        answered.append((again, decode_prompts(model, features, again)))
    total = sum((prompt_losses(group, decoded) for group, decoded in answered), torch.zeros(()))
    return total / sum(len(group) for group, _ in answered)
