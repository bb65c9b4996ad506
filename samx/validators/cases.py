"""Prompts and images that cross the edges people hit. NumPy only, so a device can make them too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray

from samx.models.session import Feed, FloatArray
from samx.models.spec import LABELS, DecoderSpec, TensorSpec

Integers = NDArray[np.int64]
Frame = tuple[int, int]  # width, height in px of the part of the square frame that holds the picture
PADDING, BACKGROUND, FOREGROUND = LABELS["padding"], LABELS["background"], LABELS["foreground"]
BOX_LABELS = (LABELS["box_top_left"], LABELS["box_bottom_right"])

BARE_POINT = "bare_point"
COUNTED = "points_"  # how the cases begin of which each has another number of points
ONE_POINT = "one_point"  # how the cases of the same prompt on two images begin
MANY_POINTS = 16
POINT_COUNTS = tuple(n for n in range(3, 19) if n != MANY_POINTS)  # one and two have cases of their own
DRAWN_COUNTS, MOST_DRAWN = 2, 64  # so many numbers of points more are drawn, up to this one
POOL = 8  # prompts that differ in the cases whose prompts are asked many at a time
CLICKS_ASKED = 2 * POOL
CLICKS = f"clicks_x{CLICKS_ASKED}"
FAR = 8.0  # times the usual embedding: more than anybody clips at
FARTHEST = 6e4  # float16 holds it
FAR_LOGIT, FAINT_LOGIT = 300.0, 1.0  # of mask prompts that are not in steps
NON_SQUARE = 0.75  # height / width of the second picture: a 4:3 photograph
CLICKS_KEY, FAR_KEY = 1000, 1001  # of these cases' random numbers: beyond those of the others
MASK_LOGIT, EXTREME_LOGIT = 10.0, 32.0  # usual size of mask logits; where SAM 2 clamps those of its memory
MASK_STEP = 0.125  # mask prompts are multiples of it: exact in float16, and they compress
UNUSED_MASK_LOGIT = 7.5  # under has_mask_input = 0 the mask must not matter, so it is not zero

# Stored suites name these two and no pixels. Any change below must raise the number.
GENERATOR_VERSION = 1
UNIT = 512  # values are integers / UNIT and below 4: exact in float16

CELL = 8  # positions between two nodes of the smooth part
# Half widths in 1 / UNIT: together a standard deviation of about 0.5, as trained image encoders give (0.3 to 1).
SMOOTH, OFFSET, NOISE = 512, 256, 64
NOISE_DRAWS = 4  # a sum of four is close enough to a bell curve


@dataclass(frozen=True)
class Case:
    """Name prompts for one of the suite's images."""

    name: str
    image: int
    prompts: Feed
    # Draws other prompts of the same kind, by a number from 1; None: there are no others
    again: Callable[[int], Feed] | None = field(default=None, compare=False, repr=False)


def default_frames(spec: DecoderSpec, count: int) -> list[Frame]:
    """Return each synthetic picture's valid part: what is not square is padded, or stretched, by family."""
    size = spec.image_size
    padded = (size, round(size * NON_SQUARE))
    return [padded if spec.keeps_aspect and i % 2 else (size, size) for i in range(count)]


def parity_cases(
    spec: DecoderSpec, seed: int = 0, frames: Sequence[Frame] | None = None, most_points: int | None = None,
    drawn: int | None = None, bare: bool = True,
) -> list[Case]:  # fmt: skip
    """Make the cases for pictures with these valid parts (default: those of synthetic_images), and for a far image.

    Where a prompt may have `most_points` only, padding counted, the case of many points has exactly that many, and
    cases of more are no prompts of that decoder. `drawn` is a seed of numbers of points that no other case has. Without
    `bare`, every prompt has its padding: some decoders add it themselves.
    """
    frames = frames or default_frames(spec, 2)
    filled = spec.rules.prompt_tokens  # every prompt has so many tokens: it needs no padding beside its points
    most = (filled or most_points) if most_points is None or filled <= most_points else most_points
    makers = {**_POINT_CASES, **(_MASK_CASES if spec.mask_input else {}), **_counts(most, drawn, filled), **_LAST_CASES}
    if most is not None:
        makers["many_points"] = partial(_points, count=min(most - (not filled), MANY_POINTS), prompts=2)
    cases = []
    for i, (name, make) in enumerate(makers.items()):
        image = i % len(frames)  # alternating, so that a stale image shows
        # The second case is the first one on another image, so that what a session keeps by prompts shows.
        frame = tuple(map(min, zip(*frames[:2], strict=True))) if i < 2 else frames[image]
        cases.append(_case(spec, name, image, make, [seed, max(i, 1)], frame))
    cases += _more(spec, seed, frames)
    shapes = {case.name: case.prompts["point_labels"].shape[1] for case in cases}
    fit = [case for case in cases if most_points is None or shapes[case.name] <= most_points]
    return [case for case in fit if bare or case.name != BARE_POINT]


def _counts(most_points: int | None, drawn: int | None, filled: int) -> dict[str, Maker]:
    """Return a case for each number of points: the small ones, the largest one that there is, and some drawn."""
    most = MOST_DRAWN if most_points is None else most_points - (not filled)
    counts = {*POINT_COUNTS} if most_points is None else {*POINT_COUNTS, max(most, 1)}
    counts = {n for n in counts if n <= filled} if filled else counts
    others = [n for n in range(POINT_COUNTS[-1] + 1, most) if n not in counts]
    if drawn is not None:
        rng = np.random.default_rng([drawn, len(others)])
        counts |= {int(n) for n in rng.choice(others, min(DRAWN_COUNTS, len(others)), replace=False)}
    return {f"{COUNTED}{n}": partial(_points, count=n) for n in sorted(counts)}


def _case(spec: DecoderSpec, name: str, image: int, make: Maker, key: list[int], frame: Frame) -> Case:
    def drawn(*attempt: int) -> Feed:
        return make(Draw(spec, np.random.default_rng([*key, *attempt]), *frame))

    return Case(name, image, drawn(), drawn)


def _more(spec: DecoderSpec, seed: int, frames: Sequence[Frame]) -> list[Case]:
    """Click anywhere, on the image that the points at the borders are on; and ask about the far image, the last one."""
    image = 1 % len(frames)
    cases = [_case(spec, CLICKS, image, _clicks, [seed, CLICKS_KEY], frames[image])]
    makers = {**_FAR_CASES, **(_FAR_MASK_CASES if spec.mask_input else {})}
    for i, (name, make) in enumerate(makers.items()):
        cases.append(_case(spec, name, len(frames), make, [seed, FAR_KEY + i], frames[0]))
    return cases


def far_image(image: Feed) -> Feed:
    """Return an image whose features reach far beyond the usual."""
    return {name: np.clip(value * np.float32(FAR), -FARTHEST, FARTHEST) for name, value in image.items()}


class Draw:
    """Draw prompts inside one picture."""

    def __init__(self, spec: DecoderSpec, rng: np.random.Generator, width: int, height: int) -> None:
        self.spec = spec
        self.rng = rng
        self.extent = np.array([width, height], np.float32)

    def points(self, prompts: int, labels: Sequence[int]) -> Feed:
        """Draw points with these labels. Shapes: (N, P, 2), (N, P)."""
        coords = self.rng.uniform(0, self.extent - 1, (prompts, len(labels), 2)).astype(np.float32)
        return self.feed(coords, labels)

    def boxes(self, prompts: int, point_labels: Sequence[int] = ()) -> Feed:
        """Draw boxes, with points inside them."""
        corner = self.rng.uniform(0, 0.5 * self.extent, (prompts, 1, 2))
        side = self.rng.uniform(0.15 * self.extent, 0.5 * self.extent - 1, (prompts, 1, 2))
        points = corner + side * self.rng.uniform(0.2, 0.8, (prompts, len(point_labels), 2))
        coords = np.concatenate([points, corner, corner + side], axis=1).astype(np.float32)
        return self.feed(coords, [*point_labels, *BOX_LABELS])

    def feed(self, coords: FloatArray, labels: Sequence[int]) -> Feed:
        """Order and pad the tokens as the family's predictor does. Shapes: (N, P, 2), (P,)."""
        rules, has_box = self.spec.rules, BOX_LABELS[0] in labels
        # Where even a box is padded, so is a prompt of nothing here: with a padding token it is a case, too.
        rows = rules.rows(len(labels) - 2 * has_box, has_box) or [-1] * rules.pads_boxes
        coords = np.pad(coords, ((0, 0), (0, 1), (0, 0)))[:, rows]
        tokens = np.tile(np.array([*labels, PADDING], np.float32)[rows], (len(coords), 1))
        return self.with_mask({"point_coords": np.ascontiguousarray(coords), "point_labels": tokens}, None, [0])

    def with_mask(self, feed: Feed, masks: FloatArray | None, used: Sequence[int]) -> Feed:
        """Add mask prompts, `used` in turn from prompt to prompt. Shapes: (N, 1, 4G, 4G)."""
        if not self.spec.mask_input:
            return feed
        prompts, size = len(feed["point_coords"]), self.spec.mask_size
        flags = np.resize(np.array(used, np.float32), prompts)
        unused = np.full((prompts, 1, size, size), UNUSED_MASK_LOGIT, np.float32)
        masks = unused if masks is None else np.where(flags[:, None, None, None] > 0, masks, unused)
        return {**feed, "mask_input": masks, "has_mask_input": flags}

    def blobs(self, prompts: int, logit: float, step: float | None = MASK_STEP) -> FloatArray:
        """Draw smooth round masks with logits from -logit to +logit, in steps or as fine as float16 is.

        Shapes: -> (N, 1, 4G, 4G).
        """
        size = self.spec.mask_size
        centre = self.rng.uniform(0.25, 0.75, (prompts, 1, 1, 2)) * size
        radius = self.rng.uniform(0.1, 0.3, (prompts, 1, 1)) * size
        y, x = np.mgrid[:size, :size]
        distance = np.hypot(x - centre[..., 0], y - centre[..., 1])
        logits = np.clip(2 * logit * (1 - distance / radius), -logit, logit)
        stepped = logits.astype(np.float16) if step is None else np.round(logits / step) * step
        return stepped[:, None].astype(np.float32)

    def borders(self) -> Feed:
        """Put points on the picture's corners and a fraction of a pixel from its edges."""
        width, height = self.extent
        corners = [(0, 0), (width - 1, height - 1), (width - 1, 0), (0, height - 1)]
        edges = [(width - 0.5, height / 2), (0.25, height / 3), (width / 2, height - 0.5), (width / 3, 0.25)]
        return self.feed(np.array([*corners, *edges], np.float32)[:, None], [FOREGROUND])

    def alone(self, *labels: int) -> Feed:
        """Return these tokens and no padding beside them."""
        coords = np.broadcast_to(self.extent / 3, (1, len(labels), 2)).astype(np.float32)
        only = {"point_coords": coords, "point_labels": np.array([labels], np.float32)}
        return self.with_mask(only, None, [0])


def _points(draw: Draw, count: int, prompts: int = 1) -> Feed:
    """Draw prompts of that many points, one more with padding."""
    return draw.points(prompts, [FOREGROUND if i % 2 == 0 else BACKGROUND for i in range(max(count, 1))])


def _clicks(draw: Draw) -> Feed:
    """Click more prompts than are asked at once."""
    return draw.points(CLICKS_ASKED, [FOREGROUND])


Maker = Callable[[Draw], Feed]
_POINT_CASES: dict[str, Maker] = {
    "one_point": lambda draw: draw.points(1, [FOREGROUND]),
    "one_point_again": lambda draw: draw.points(1, [FOREGROUND]),
    "two_points": lambda draw: draw.points(1, [FOREGROUND, BACKGROUND]),
    "box": lambda draw: draw.boxes(1),
    "box_and_points": lambda draw: draw.boxes(2, [FOREGROUND, FOREGROUND, BACKGROUND]),
    "negative_points": lambda draw: draw.points(1, [BACKGROUND, BACKGROUND]),
    "many_points": lambda draw: _points(draw, MANY_POINTS, 2),
    "borders": Draw.borders,
    "no_points": lambda draw: draw.feed(np.zeros((1, 0, 2), np.float32), []),
    "padding_only": lambda draw: draw.alone(PADDING),
    f"boxes_x{POOL}": lambda draw: draw.boxes(POOL),
    BARE_POINT: lambda draw: draw.alone(FOREGROUND),
}
_MASK_CASES: dict[str, Maker] = {
    "mask_and_point": lambda draw: draw.with_mask(draw.points(1, [FOREGROUND]), draw.blobs(1, MASK_LOGIT), [1]),
    "masks_on_and_off": lambda draw: draw.with_mask(draw.points(4, [FOREGROUND]), draw.blobs(4, MASK_LOGIT), [1, 0]),
    "mask_and_box": lambda draw: draw.with_mask(draw.boxes(2), draw.blobs(2, EXTREME_LOGIT), [0, 1]),
    "mask_only": lambda draw: draw.with_mask(
        draw.feed(np.zeros((1, 0, 2), np.float32), []), draw.blobs(1, FAINT_LOGIT, step=None), [1]
    ),
}
# After all others, so that those stay on their images: two large cases on one image would be asked as one.
_LAST_CASES: dict[str, Maker] = {
    "padding_twice": lambda draw: draw.alone(PADDING, PADDING),  # a frame of a video without a prompt
}
_FAR_CASES: dict[str, Maker] = {"far_point": lambda draw: _points(draw, 1)}
_FAR_MASK_CASES: dict[str, Maker] = {
    "far_mask": lambda draw: draw.with_mask(_points(draw, 1), draw.blobs(1, FAR_LOGIT, step=None), [1]),
}


def synthetic_images(spec: DecoderSpec, seed: int = 0, count: int = 2) -> list[Feed]:
    """Make smooth, noisy embeddings without a picture; for SAM 1 every second one has the padding of a wide picture.

    They are computed with integers, so that every machine makes the same bits.
    """
    frames = default_frames(spec, count)
    return [_image(spec, [seed, i], height / spec.image_size) for i, (_, height) in enumerate(frames)]


def _image(spec: DecoderSpec, key: list[int], valid: float) -> Feed:
    return {tensor.name: _tensor(tensor, [*key, i], valid) for i, tensor in enumerate(spec.image_inputs)}


def _tensor(tensor: TensorSpec, key: list[int], valid: float) -> FloatArray:
    _, channels, height, width = (int(size) for size in tensor.shape)
    offset = _uniform((channels, 1, 1), OFFSET, [*key, 0])
    smooth = _smooth(channels, height, width, [*key, 1])
    draws = [_uniform((channels, height, width), NOISE, [*key, 2 + i]) for i in range(NOISE_DRAWS)]
    rows = np.arange(height)[:, None]
    picture = np.where(rows < round(valid * height), smooth + np.sum(draws, axis=0), 0)
    values = offset + picture  # padding: one value a channel
    return (values / UNIT).astype(np.float32)[None]


def _smooth(channels: int, height: int, width: int, key: list[int]) -> Integers:
    """Interpolate a coarse grid bilinearly, in integers."""
    nodes = _uniform((channels, height // CELL + 2, width // CELL + 2), SMOOTH, key)
    columns = _interpolate(nodes, height).swapaxes(1, 2)
    return _interpolate(columns, width).swapaxes(1, 2) // (CELL * CELL)


def _interpolate(nodes: Integers, length: int) -> Integers:
    position: Integers = np.arange(length, dtype=np.int64)
    node, step = position // CELL, (position % CELL)[:, None]
    return (CELL - step) * nodes[:, node] + step * nodes[:, node + 1]


def _uniform(shape: tuple[int, ...], half_width: int, key: list[int]) -> Integers:
    """Draw integers from -half_width to half_width - 1 (a power of two): the top bits of a mixed counter."""
    start = np.uint64(0)
    for part in key:
        start = _mix(np.array([start + np.uint64(part)]))[0]
    bits = _mix(start + np.arange(int(np.prod(shape)), dtype=np.uint64))
    top = bits >> np.uint64(64 - (2 * half_width).bit_length() + 1)
    return top.astype(np.int64).reshape(shape) - half_width


def _mix(counter: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Scramble 64-bit integers. Source: the SplitMix64 generator of Steele, Lea and Flood (2014)."""
    with np.errstate(over="ignore"):  # wrapping around is the point
        mixed = counter * np.uint64(0x9E3779B97F4A7C15) + np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed ^= mixed >> np.uint64(31)
    return mixed
