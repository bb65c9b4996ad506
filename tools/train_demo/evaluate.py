"""Measures the demo model on scenes that it was not trained on: `python -m tools.train_demo.evaluate`.

A click means the smallest region under it: to ask for a sub-part one clicks inside it, to ask for a part one
clicks inside it but beside its sub-parts, to ask for the whole one clicks beside its parts. As in the SAM paper's
evaluation the first click lies as far from that area's border as it can, and a box is the exact box of the
visible region. Masks are compared at the decoder's own resolution, 256 x 256.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from samx.demo import FAMILIES
from samx.demo.model import PICTURE_POOL, DemoModel, load_demo
from samx.demo.sampling import (
    Region,
    centre_pixel,
    error_click,
    find_regions,
    frame_box,
    frame_point,
    padded_prompt,
)
from samx.demo.scenes import LEVELS, generate_scene
from samx.validators.metrics import mask_iou

Array = NDArray[Any]
Features = tuple[Tensor, ...]
Points = list[tuple[float, float]]

HELD_OUT_SEED = 0  # held-out scenes are 0, 1, 2, ...: training draws from 1,000,000 up
HELD_OUT_SCENES = 200
MEASURES = ("box", "box_best_of_3", "click_best_of_3", "click_picked", "refined")


def evaluate_demo(family: str, scenes: int = HELD_OUT_SCENES, grid: int = 64) -> dict[str, dict[str, float]]:
    """Measure the shipped weights of a family. Returns measure -> mean IoU overall and by level."""
    model = load_demo(family, grid=grid)
    return evaluate_model(model, range(HELD_OUT_SEED, HELD_OUT_SEED + scenes))


@torch.no_grad()
def evaluate_model(model: DemoModel, seeds: Iterable[int]) -> dict[str, dict[str, float]]:
    """Measure a model on the scenes of some seeds, one region of each level a scene."""
    size_px = model.spec.mask_size
    scores: dict[str, dict[str, list[float]]] = {name: {level: [] for level in LEVELS} for name in MEASURES}
    for seed in seeds:
        picture, ids = draw_for_model(seed, size_px)
        features = model.encoder.encode_picture(picture)
        rng = np.random.default_rng(seed)
        for region in _one_of_each_level(rng, find_regions(ids)):
            for name, value in measure_region(model, features, region, rng).items():
                scores[name][LEVELS[region.level]].append(value)
    return {name: _summary(by_level) for name, by_level in scores.items()}


def draw_for_model(seed: int, size_px: int) -> tuple[Tensor, Array]:
    """Draw a scene at frame size and average it as the encoder does. Shapes: -> (1, 3, S, S), (3, S, S)."""
    frame = Image.fromarray(generate_scene(seed, PICTURE_POOL * size_px).image)
    picture = np.asarray(frame.reduce(PICTURE_POOL), dtype=np.float32) / 255.0
    return torch.from_numpy(picture).permute(2, 0, 1)[None], generate_scene(seed, size_px).ids


def measure_region(model: DemoModel, features: Features, region: Region, rng: np.random.Generator) -> dict[str, float]:
    """Ask for one region by click, box and correction. Returns measure -> IoU."""
    click = [frame_point(centre_pixel(region.own))]
    masks, iou = _decode(model, features, click, [1], None)
    by_click = _overlaps(masks, region)
    picked = int(iou[0, 1:].argmax()) + 1
    previous = masks[:, picked : picked + 1]
    second, label = error_click(rng, (previous[0, 0] > 0).numpy(), region.mask)
    refined, _ = _decode(model, features, [*click, second], [1, label], None, previous)
    boxed, _ = _decode(model, features, [], [], frame_box(region.box))
    by_box = _overlaps(boxed, region)
    return {
        "box": float(by_box[0]),
        "box_best_of_3": float(by_box[1:].max()),
        "click_best_of_3": float(by_click[1:].max()),
        "click_picked": float(by_click[picked]),
        "refined": float(_overlaps(refined, region)[0]),
    }


def _overlaps(masks: Tensor, region: Region) -> Array:
    """Return the IoU of each mask of a prompt. Shapes: (1, M, S, S) -> (M,)."""
    return mask_iou((masks[0] > 0).flatten(1).numpy(), region.mask.ravel())


def _decode(
    model: DemoModel, features: Features, points: Points, labels: list[int], box: Points | None,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    coords, codes = padded_prompt(model.family, points, labels, box)
    masks, iou, _ = model.decode(features, torch.tensor([coords]), torch.tensor([codes]).float(), mask)
    return masks, iou


def _one_of_each_level(rng: np.random.Generator, regions: list[Region]) -> list[Region]:
    chosen = []
    for level in range(len(LEVELS)):
        there = [region for region in regions if region.level == level]
        if there:
            chosen.append(there[int(rng.integers(len(there)))])
    return chosen


def _summary(by_level: dict[str, list[float]]) -> dict[str, float]:
    """Average by level, and over all regions."""
    everything = [value for values in by_level.values() for value in values]
    means = {level: float(np.mean(values)) if values else float("nan") for level, values in by_level.items()}
    return {"mean": float(np.mean(everything)), **means, "regions": float(len(everything))}


def _table(family: str, result: dict[str, dict[str, float]]) -> str:
    columns = ("mean", *LEVELS)
    lines = [f"{family}: mean IoU over {int(result['box']['regions'])} regions"]
    lines.append(" " * 18 + "".join(f"{column:>10}" for column in columns))
    lines += [f"{name:<18}" + "".join(f"{row[column]:>10.3f}" for column in columns) for name, row in result.items()]
    return "\n".join(lines)


def main() -> None:
    """Run the measurement from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=FAMILIES, action="append", help="both families without it")
    parser.add_argument("--scenes", type=int, default=HELD_OUT_SCENES)
    parser.add_argument("--json", action="store_true", help="write JSON instead of a table")
    options = parser.parse_args()
    results = {family: evaluate_demo(family, options.scenes) for family in options.family or FAMILIES}
    tables = [_table(family, result) for family, result in results.items()]
    sys.stdout.write((json.dumps(results, indent=2) if options.json else "\n".join(tables)) + "\n")


if __name__ == "__main__":
    main()
