"""Training batches: prompts of every kind on a few images, decoded, and SAM's losses; dense hints for the encoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from samx.demo.model import EMBEDDING_WIDTH, DemoModel
from samx.demo.sampling import (
    Region,
    error_click,
    frame_point,
    jittered_box,
    padded_prompt,
    pick_region,
    random_pixel,
)

Array = NDArray[Any]
Rng = np.random.Generator
Features = tuple[Tensor, ...]
Points = list[tuple[float, float]]

STAND_IN_WEIGHT = 0.3  # of a token whose level is absent under the click: it copies the next larger region
IOU_WEIGHT, OBJECT_WEIGHT = 2.0, 1.0
ABSENT_CHANCE = {"sam1": 0.05, "sam2": 0.13}  # prompts on empty background
MOST_POINTS = 8
FOCAL_WEIGHT, DICE_WEIGHT = 20.0, 1.0  # the SAM paper's
FOCAL_ALPHA, FOCAL_GAMMA = 0.25, 2.0
AFFINITY_WIDTH = 16
AFFINITY_SAMPLES = 128  # cells of an image that are compared with each other


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
    mask: Tensor | None = None


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
    """Decode prompts that have the same number of points.

    Shapes: as ReferenceDecoder.all_masks.
    """
    padded = [padded_prompt(model.family, p.points, p.labels, p.box) for p in prompts]
    coords = torch.tensor([coords for coords, _ in padded])
    labels = torch.tensor([labels for _, labels in padded]).float()
    masks = [p.mask for p in prompts if p.mask is not None]
    index = torch.tensor([p.image for p in prompts])
    mask = torch.stack(masks)[:, None] if masks else None
    return model.decode(tuple(feature[index] for feature in features), coords, labels, mask)


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

    def forward(self, embedding: Tensor, ids: Array) -> Tensor:
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


def _partitions(cells: Array) -> Tensor:
    """Give every cell the id of its region at each level, or of the smallest one that it has."""
    whole = cells[:, 0].astype(np.int64)
    part = np.where(cells[:, 1] > 0, cells[:, 1], whole)
    subpart = np.where(cells[:, 2] > 0, cells[:, 2], part)
    return torch.from_numpy(np.stack([whole, part, subpart], axis=1))


def _choose_cells(partitions: Tensor) -> Tensor:
    """Draw cells, those of objects three times as often as background. Shapes: (B, 3, G, G) -> (B, samples)."""
    weights = 1.0 + 2.0 * (partitions[:, 0].flatten(1) > 0) + 2.0 * (partitions[:, 1] != partitions[:, 0]).flatten(1)
    return torch.multinomial(weights, min(AFFINITY_SAMPLES, weights.shape[1]))


def _extents(cells: Array) -> tuple[Tensor, Tensor]:
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
