"""What a program does with its decoder, in NumPy: what it feeds, and what it must read, by the decoder's own outputs.

Written from the contracts' table and not from the graphs that are made of it. Letters in the shape comments: N prompts,
P points, M masks a prompt, S mask pixels per side, H x W picture pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samx.contracts.table import BOUNDS, Contract
from samx.models.session import Feed, FloatArray, Outputs
from samx.models.spec import LABELS, PIXELS, DecoderSpec
from samx.processing.postprocess import bilinear_taps

Arrays = Mapping[str, NDArray[Any]]  # by what they hold
Run = Callable[[Sequence[NDArray[Any]]], list[NDArray[Any]]]  # a graph, by the places of its inputs and outputs
WHITE = 255.0
PADDING, CORNERS = LABELS["padding"], (LABELS["box_top_left"], LABELS["box_bottom_right"])
PICTURES = ((192, 256), (320, 200), (240, 240))  # landscape, portrait, square: height and width
MASK_LOGIT, UNUSED_LOGIT = 10.0, 7.5  # of a previous mask; of one that is sent and must not be read
TOP, BOTTOM = 0.1, 0.6  # shares of the picture between which a box's corners are drawn


@dataclass(frozen=True)
class Call:
    """Describe one call of a program: points with their labels, the padding that it sends among them, boxes apart.

    Shapes: coords (N, P, 2), labels (N, P), picture (H, W), boxes (B, 4), mask (1, 1, S, S); None where the contract
    has no such input. Units: coordinates in px of the frame.
    """

    coords: FloatArray
    labels: FloatArray
    picture: tuple[int, int]
    boxes: FloatArray | None = None
    mask: FloatArray | None = None
    flag: float = 0.0  # has_mask_input, as the program sends it; a mask counts above 0 only


def calls(contract: Contract, spec: DecoderSpec, rng: np.random.Generator) -> Iterator[tuple[str, Call]]:
    """Draw what programs ask: points, boxes, several prompts, previous masks; of pictures of any shape."""
    pads = [PADDING] if contract.padding == "program" else []
    several = 1 if contract.has("picture_crop") else 3
    box, apart = list(CORNERS), contract.has("boxes")
    kinds: dict[str, tuple[int, list[int], int]] = {  # prompts, labels, boxes apart from the points
        "a point": (1, [1, *pads], 0),
        "points": (1, [1, 0, 1, *pads], 0),
        "prompts": (several, [1, 0, *pads], 0),
        "prompts without padding": (several, [1], 0),
    }
    if apart:
        kinds |= {"a box": (1, [], 1), "boxes": (3, [], 3), "a box and points": (1, [1, 0], 1)}
    elif not contract.objects:
        kinds |= {
            "a box": (1, box, 0),
            "boxes with points": (several, [*box, 1], 0),
            "a padded box": (1, [*box, *pads], 0),
        }
    for i, (name, (prompts, labels, boxes)) in enumerate(kinds.items()):
        yield name, _drawn(contract, spec, rng, PICTURES[i % len(PICTURES)], (prompts, labels, boxes), None)
    flags = {"a previous mask": 1.0, "a mask that is none": 0.0, "a flag of -1": -1.0}
    for i, (name, flag) in enumerate(flags.items() if contract.has("mask_input") else ()):
        yield name, _drawn(contract, spec, rng, PICTURES[i], (several, [1, 0, *pads], 0), flag)


def _drawn(
    contract: Contract, spec: DecoderSpec, rng: np.random.Generator, picture: tuple[int, int],
    kind: tuple[int, list[int], int], flag: float | None,
) -> Call:  # fmt: skip
    prompts, labels, count = kind
    height, width = _valid(contract, spec, picture)
    extent = np.array([width, height])
    coords = rng.uniform(0, 1, (prompts if labels else 1, len(labels), 2))
    for column, label in enumerate(labels):
        if label in CORNERS:  # the upper left quarter, and the lower right one
            coords[:, column] = coords[:, column] * 0.4 + (TOP if label == CORNERS[0] else BOTTOM)
        coords[:, column] *= label != PADDING
    corners = np.concatenate([rng.uniform(TOP, 0.5, (count, 2)), rng.uniform(BOTTOM, 1, (count, 2))], axis=1)
    size = spec.mask_size
    row, column = np.mgrid[:size, :size] / size
    blob = MASK_LOGIT * np.cos(6 * (row - rng.uniform())) * np.cos(5 * (column - rng.uniform()))
    mask = blob if flag == 1 else np.full_like(blob, 0 if flag is None else UNUSED_LOGIT)
    return Call(
        (coords * extent).astype(np.float32), np.tile(np.array(labels, np.float32), (prompts, 1)), picture,
        (corners * np.tile(extent, 2)).astype(np.float32) if contract.has("boxes") else None,
        mask[None, None].astype(np.float32) if contract.has("mask_input") else None, flag or 0.0,
    )  # fmt: skip


def feed(contract: Contract, spec: DecoderSpec, call: Call, image: Feed) -> list[NDArray[Any]]:
    """Return what a program sends, in the order of the graph's inputs, each of the input's type."""
    sent: dict[str, Any] = {
        **image, "point_coords": call.coords, "point_labels": call.labels, "boxes": call.boxes,
        "mask_input": call.mask, "has_mask_input": [call.flag],
        "picture_size": call.picture, "unread": np.full((1, spec.width, spec.grid, spec.grid), np.nan),
    }  # fmt: skip
    # Some programs send an axis more, in front.
    return [np.array(sent[port.holds], port.dtype, ndmin=len(port.axes or ())) for port in contract.inputs]


def asked(contract: Contract, call: Call) -> Feed:
    """Return what the decoder is asked by a call. Shapes: DecoderSpec.prompt_inputs."""
    count = max(len(call.coords), 0 if call.boxes is None else len(call.boxes))
    coords = np.broadcast_to(call.coords, (count, *call.coords.shape[1:]))
    labels = np.broadcast_to(call.labels, (count, call.labels.shape[1]))
    if call.boxes is not None and len(call.boxes):
        corners = np.broadcast_to(call.boxes.reshape(-1, 2, 2), (count, 2, 2))
        coords = np.concatenate([coords, corners], axis=1)
        labels = np.concatenate([labels, np.tile(np.array(CORNERS, np.float32), (count, 1))], axis=1)
    has_box = bool(np.isin(labels, CORNERS).any())
    if contract.padding == "graph" or (contract.padding == "graph_without_box" and not has_box):
        coords = np.pad(coords, ((0, 0), (0, 1), (0, 0)))
        labels = np.pad(labels, ((0, 0), (0, 1)), constant_values=PADDING)
    found = {"point_coords": np.ascontiguousarray(coords), "point_labels": np.ascontiguousarray(labels)}
    if call.mask is None:
        return found
    used = np.full(count, call.flag > 0, np.float32)
    return {**found, "mask_input": np.repeat(call.mask, count, axis=0), "has_mask_input": used}


def expected(contract: Contract, spec: DecoderSpec, call: Call, outputs: Outputs) -> Arrays:
    """Return what a program must read, given the decoder's outputs for asked()."""
    masks, iou = outputs["low_res_masks"], outputs["iou_predictions"]
    if contract.picks:
        few = asked(contract, call)["point_labels"].shape[1] < 3
        best = 1 + iou[:, 1:].argmax(axis=1) if few else np.zeros(len(iou), np.int64)
        masks, iou = (np.take_along_axis(x, best.reshape(-1, *[1] * (x.ndim - 1)), axis=1) for x in (masks, iou))
    limit = spec.rules.mask_limit
    found: dict[str, NDArray[Any]] = {
        **outputs, "iou_predictions": iou,
        "low_res_masks": np.clip(masks, -limit, limit) if contract.clamps else masks,
    }  # fmt: skip
    if contract.resizing is not None:
        found["picture_masks"] = picture_masks(contract, spec, masks, call.picture)
    return {name: value[None] for name, value in found.items()} if contract.objects else found


def picture_masks(contract: Contract, spec: DecoderSpec, masks: FloatArray, picture: tuple[int, int]) -> FloatArray:
    """Resize logits to the picture. Shapes: (N, M, S, S) -> (N, M, H, W)."""
    if contract.resizing == "through_frame":
        height, width = _valid(contract, spec, picture)
        masks = resized(masks, (spec.image_size, spec.image_size))[..., :height, :width]
    return resized(masks, picture)


def _valid(contract: Contract, spec: DecoderSpec, picture: tuple[int, int]) -> tuple[int, int]:
    """Return height and width of what a picture fills of the frame, in px."""
    if not spec.keeps_aspect:
        return spec.image_size, spec.image_size
    sides = np.array(picture, np.float32)
    height, width = np.floor(np.float32(spec.image_size) / sides.max() * sides + np.float32(0.5)).astype(int)
    return int(height), int(width)


def resized(masks: FloatArray, size: tuple[int, int]) -> FloatArray:
    """Interpolate linearly between pixel centres. Shapes: (N, M, S, T) -> (N, M, H, W)."""
    rows, columns = (_matrix(*lengths) for lengths in zip(masks.shape[2:], size, strict=True))
    found: FloatArray = rows @ masks @ columns.T
    return found


@lru_cache(maxsize=16)
def _matrix(length_in: int, length_out: int) -> FloatArray:
    taps = bilinear_taps(length_in, length_out)
    matrix = np.zeros((length_out, length_in), np.float32)
    for index, weight in zip(taps.index, taps.weight, strict=True):
        np.add.at(matrix, (np.arange(length_out), index), weight)
    return matrix


def pasted(found: Arrays, picture: tuple[int, int]) -> NDArray[np.bool_]:
    """Put a mask that was cut out back into its picture. Shapes: (1, 1, h, w) -> (H, W).

    Raises: ValueError where it does not fill its bounds, or is not the smallest part that holds every pixel.
    """
    left, top, right, bottom = (int(found[side][0]) for side in BOUNDS)
    whole = np.zeros(picture, np.bool_)
    whole[top : bottom + 1, left : right + 1] = found["picture_crop"][0, 0] > 0
    rows, columns = np.flatnonzero(whole.any(axis=1)), np.flatnonzero(whole.any(axis=0))
    tight = (columns[0], rows[0], columns[-1], rows[-1]) if len(rows) else (0, 0, picture[1] - 1, picture[0] - 1)
    if (left, top, right, bottom) != tight:
        raise ValueError(f"bounds are {(left, top, right, bottom)}, the mask's are {tuple(map(int, tight))}")
    return whole


def encoded(contract: Contract, run: Run, taken: Feed) -> Feed:
    """Send a picture to a program's image encoder as the program does, and return the decoder's image inputs.

    taken: one picture as samx's own encoder takes it, whose part beyond `valid` does not matter.
    """
    form, picture = contract.encoder, np.asarray(taken["picture"][0], np.float32)
    assert form is not None
    height, width = taken["valid"][0] if "valid" in taken else picture.shape[:2]
    if form.levels:
        sent = picture[:height, :width]
    else:
        mean, std = (np.array(values, np.float32) for values in PIXELS["imagenet"])
        sent = np.zeros_like(picture)
        sent[:height, :width] = (picture[:height, :width] / WHITE - mean) / std
        sent = sent.transpose(2, 0, 1)[None]
    found = dict(zip([port.holds for port in form.outputs], run([np.ascontiguousarray(sent)]), strict=True))
    return {holds: value for holds, value in found.items() if holds != "unread"}
