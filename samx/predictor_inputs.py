"""What callers hand to a Predictor, in Meta's forms: checked, and refused in one line that names the argument."""

from __future__ import annotations

import reprlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

import numpy as np
from numpy.typing import ArrayLike, NDArray

from samx.errors import ImageError, PromptError, UsageError
from samx.models.session import Feed, FloatArray
from samx.models.spec import DecoderSpec
from samx.processing.embeddings import EMBEDDING_DTYPES, TAG, Tag, read_tagged
from samx.processing.frames import Frame
from samx.processing.images import RgbArray, check_upright, read_image
from samx.processing.prompts import PromptBatch, Table

if TYPE_CHECKING:
    from PIL import Image

Picture = Union[str, Path, "Image.Image", RgbArray]
Embedding = Union[str, Path, Mapping[str, ArrayLike], ArrayLike]

POINTS_FORM = "(x, y) in picture pixels, shape (points, 2), or (prompts, points, 2) where several are taken"
LABELS_FORM = "1 or 0 for each point, shape (points), or (prompts, points) where several are taken"
BOX_FORM = "x0, y0, x1, y1 in picture pixels, shape (4), or (prompts, 4) where several are taken"
MASK_FORM = "logits, shape (1, S, S), or (prompts, 1, S, S) where several are taken"
IMAGE_FORM = "a path, a PIL image or an array (height, width, 3) of uint8"
FORMATS = ("RGB", "BGR")
EXPORT = "samx export ..."
# By the masks that an artifact returns: whether several may be asked for, and what exports the other choice.
CHOICES = {"multimask": (True, "--single or --all-masks"), "single": (False, "--multimask or --all-masks")}
BORDER_ROUNDING = 1e-6  # of a coordinate on the border, rounded to float32 in the frame
# How errors about a prompt begin, and the argument that they are about.
ARGUMENTS = {"point": "point_coords", "label": "point_labels", "box": "box", "mask": "mask_input"}


@contextmanager
def prompt_errors() -> Iterator[None]:
    """Name the argument in what PromptBatch has to say."""
    try:
        yield
    except PromptError as error:
        name = next((name for word, name in ARGUMENTS.items() if error.what.startswith(word)), None)
        if name is None:
            raise
        raise _named(error, name) from error


@contextmanager
def embedding_errors() -> Iterator[None]:
    """Name the argument in what a session has to say about features."""
    try:
        yield
    except ImageError as error:
        raise _named(error, "embedding") from error


def _named(error: PromptError | ImageError, argument: str) -> PromptError | ImageError:
    return type(error)(f"{argument}: {error.what}", found=error.found, expected=error.expected, fix=error.fix)


def prompt_batch(
    point_coords: ArrayLike | None, point_labels: ArrayLike | None, box: ArrayLike | None,
    mask_input: ArrayLike | None, *, several: bool, to_picture: Callable[[Table], Table],
) -> PromptBatch:  # fmt: skip
    """Check the arguments of predict() and stack them; `to_picture` turns their coordinates into picture pixels.

    Raises: PromptError naming the argument.
    """
    points, labels = _points(point_coords, point_labels)
    boxes = None if box is None else _rows(numbers("box", box, BOX_FORM), (4,), "box", BOX_FORM)
    masks = None if mask_input is None else _masks(mask_input)
    count = _count({"point_coords": points, "box": boxes, "mask_input": masks}, several)
    if masks is not None and len(masks) == 1:
        masks = masks * count
    with prompt_errors():
        return PromptBatch(
            np.zeros((count, 0, 2)) if points is None else to_picture(points),
            np.zeros((count, 0)) if labels is None else labels,
            None if boxes is None else to_picture(boxes.reshape(-1, 2, 2)).reshape(-1, 4),
            masks or (),
        )


def numbers(name: str, value: ArrayLike, form: str) -> Table:
    """Turn what was given into numbers.

    Raises: PromptError for text, for rows of different lengths and for nothing at all.
    """
    try:
        table = np.asarray(to_numpy(value))
    except ValueError as cause:
        raise PromptError(f"{name} has rows of different lengths", expected=form) from cause
    if table.dtype.kind not in "iufb":
        raise PromptError(f"{name} holds no numbers", found=reprlib.repr(value), expected=form)
    if table.size == 0:
        raise PromptError(f"{name} is empty", found=f"shape {table.shape}", expected=form, fix="Or leave it out.")
    return table.astype(np.float64)


def to_numpy(value: Any) -> Any:
    """Bring a tensor of PyTorch's to the processor; anything else stays as it is."""
    return value.detach().float().cpu().numpy() if hasattr(value, "detach") else value


def _rows(table: Table, row: tuple[int | None, ...], name: str, form: str) -> Table:
    """Give one prompt the axis of several."""
    several = table[None] if table.ndim == len(row) else table
    fits = several.ndim == len(row) + 1 and all(
        want in (None, have) for have, want in zip(several.shape[1:], row, strict=True)
    )
    if not fits:
        raise PromptError(f"{name} has the wrong shape", found=table.shape, expected=form)
    return several


def _points(coords: ArrayLike | None, labels: ArrayLike | None) -> tuple[Table | None, Table | None]:
    if coords is None and labels is None:
        return None, None
    if coords is None:
        raise PromptError("point_labels is given without point_coords", expected=POINTS_FORM)
    if labels is None:
        raise PromptError("point_coords is given without point_labels", expected=LABELS_FORM)
    points = _rows(numbers("point_coords", coords, POINTS_FORM), (None, 2), "point_coords", POINTS_FORM)
    marks = _rows(numbers("point_labels", labels, LABELS_FORM), (None,), "point_labels", LABELS_FORM)
    if marks.shape != points.shape[:2]:
        expected = f"one label for each point, {points.shape[:2]}"
        raise PromptError("point_labels does not match point_coords", found=marks.shape, expected=expected)
    for value in marks[marks != np.round(marks)]:  # NaN too
        raise PromptError("point_labels has a label that is no whole number", found=f"{value:g}", expected=LABELS_FORM)
    return points, marks


def _masks(value: ArrayLike) -> list[FloatArray]:
    """Split masks into those of each prompt, as PromptBatch checks them. Shapes: (1, S, S) -> (S, S)."""
    masks = np.asarray(to_numpy(value))
    if masks.size == 0 or masks.ndim not in (2, 3, 4) or (masks.ndim > 2 and masks.shape[-3] != 1):
        fix = "Of several masks, give the one to go on from: logits[index][None]."
        raise PromptError("mask_input has the wrong shape", found=masks.shape, expected=MASK_FORM, fix=fix)
    return list(masks.reshape(-1, *masks.shape[-2:]))


def _count(given: Mapping[str, Sequence[Any] | Table | None], several: bool) -> int:
    """Return the number of prompts; one mask serves all of them."""
    counts = {name: len(value) for name, value in given.items() if value is not None}
    if not counts:
        raise PromptError("no prompt given", fix="Give point_coords with point_labels, box, or mask_input.")
    most = max(counts, key=counts.__getitem__)
    if counts[most] > 1 and not several:
        fix = "Call predict_torch for several, or predict() for one after the other."
        raise PromptError(f"{most} holds several prompts", found=counts[most], expected="one", fix=fix)
    for name, count in counts.items():
        if count != counts[most] and not (name == "mask_input" and count == 1):
            expected = f"{counts[most]}, as {most} has"
            raise PromptError(f"{name} has another number of prompts", found=count, expected=expected)
    return counts[most]


def picture_array(image: Picture, image_format: str = "RGB", most_px: int | None = None) -> RgbArray:
    """Read or check a picture, and put its channels in order. Shapes: -> (H, W, 3).

    most_px: that a file may have, as read_image() takes it.
    Raises: ImageError for anything but a picture; UsageError for an unknown order.
    """
    if image_format not in FORMATS:
        raise UsageError("image_format is unknown", found=repr(image_format), expected=" or ".join(FORMATS))
    if isinstance(image, np.ndarray):
        return np.ascontiguousarray(_checked_array(image)[..., :: 1 if image_format == "RGB" else -1])
    if image_format != "RGB":
        raise UsageError(
            "image_format is for arrays", found=repr(image_format), expected="RGB for files and PIL images"
        )
    if isinstance(image, (str, Path)):
        return read_image(Path(image), most_px=most_px)
    pillow = sys.modules.get("PIL.Image")  # whoever has a picture of its has imported it
    if pillow is not None and isinstance(image, pillow.Image):
        return np.array(image.convert("RGB"))
    raise ImageError("image is of a type that samx does not take", found=type(image).__name__, expected=IMAGE_FORM)


def _checked_array(image: NDArray[Any]) -> RgbArray:
    if image.dtype != np.uint8:
        fix = "Values from 0 to 1: (255 * image).round().astype('uint8')." if image.dtype.kind == "f" else None
        raise ImageError("image has the wrong type", found=image.dtype, expected="uint8, 0 to 255", fix=fix)
    if image.ndim != 3 or image.shape[2] != 3:
        raise ImageError("image has the wrong shape", found=image.shape, expected="(height, width, 3)")
    return image


def picture_size(
    original_size: Sequence[int] | None, picture: RgbArray | None, tag: Tag | None = None
) -> tuple[int, int]:
    """Return height and width, from the picture where there is one, or from its embedding's tag.

    Raises: ImageError where they do not say the same, or are no sizes; UsageError where there is neither.
    """
    if tag is not None and picture is not None:
        tag.check_picture(picture)
    if original_size is None:
        if tag is not None:
            return tag.original_size
        if picture is None:
            raise UsageError(
                "embedding is given without original_size", expected="original_size=(height, width), or the picture"
            )
        return picture.shape[0], picture.shape[1]
    sides = [int(side) for side in original_size if isinstance(side, (int, np.integer)) and side > 0]
    if len(sides) != 2 or len(original_size) != 2:
        raise ImageError("original_size is no size", found=original_size, expected="(height, width) in pixels")
    if picture is not None and tuple(sides) != picture.shape[:2]:
        raise ImageError("original_size is not the picture's", found=tuple(sides), expected=picture.shape[:2])
    if tag is not None and tuple(sides) != tag.original_size:
        raise ImageError("original_size is not the embedding's", found=tuple(sides), expected=tag.original_size)
    return sides[0], sides[1]


def embedded(
    embedding: Embedding, image: Picture | None, image_format: str, original_size: Sequence[int] | None,
    spec: DecoderSpec, encoder_id: str | None,
) -> tuple[Frame, Feed]:  # fmt: skip
    """Take what stands for a picture, and its size from wherever it is said.

    Raises: ImageError for what another encoder made, or the decoder does not take; UsageError without a size.
    """
    found, tag = features(embedding, spec)
    if tag is not None:
        with embedding_errors():
            tag.check_encoder(encoder_id)
    elif isinstance(image, (str, Path)):
        check_upright(Path(image))
    picture = None if image is None else picture_array(image, image_format)
    height, width = picture_size(original_size, picture, tag)
    return Frame.of(spec, width, height), found


def features(embedding: Embedding, spec: DecoderSpec) -> tuple[Feed, Tag | None]:
    """Read or check a picture's features: a file, arrays by name, or the one array where there is one; and their tag.

    Shapes: -> DecoderSpec.image_inputs.
    Raises: ImageError naming the argument.
    """
    with embedding_errors():
        if isinstance(embedding, (str, Path)):
            return read_tagged(Path(embedding), spec)
        names = [tensor.name for tensor in spec.image_inputs]
        given = dict(embedding) if isinstance(embedding, Mapping) else {names[0]: embedding}
        tag = Tag.from_array(np.asarray(given.pop(TAG)), "embedding") if TAG in given else None
        if set(given) != set(names):
            raise ImageError(
                "other arrays than the decoder takes", found=", ".join(map(str, given)) or "none",
                expected=", ".join(names), fix=f"Give a dict of these arrays: {spec.embedding_contract}.",
            )  # fmt: skip
        return {name: _feature(name, given[name]) for name in names}, tag


def _feature(name: str, value: ArrayLike) -> FloatArray:
    array = np.asarray(to_numpy(value))
    if array.dtype.name not in EMBEDDING_DTYPES:
        raise ImageError(f"{name} has the wrong type", found=array.dtype, expected=" or ".join(EMBEDDING_DTYPES))
    with np.errstate(over="ignore"):  # a value beyond float32 becomes inf, which the session refuses
        return array.astype(np.float32)


def check_export(spec: DecoderSpec, multimask: bool, has_mask: bool) -> None:
    """Refuse what the artifact was not exported for.

    Raises: UsageError with the option that exports it.
    """
    if has_mask and not spec.rules.takes_masks:
        raise UsageError(f"{spec.rules.title} takes no mask prompts", fix="Leave mask_input out.")
    if has_mask and not spec.mask_input:
        raise UsageError("this artifact takes no mask_input", fix=f"Export it again: {EXPORT} --mask-input.")
    has, other = CHOICES.get(spec.masks, (multimask, ""))
    if multimask != has:
        kind = "a single mask" if spec.masks == "single" else "multimask output"
        raise UsageError(
            f"multimask_output={multimask} is asked of an artifact that was exported with {kind}",
            expected=f"multimask_output={has}", fix=f"Or export it again: {EXPORT} {other}.",
        )  # fmt: skip


def from_frame(xy: Table, frame: Frame) -> Table:
    """Move frame coordinates into the picture, those on the border not beyond it. Shapes: (..., 2) -> (..., 2)."""
    limit = np.array([frame.width_px, frame.height_px], np.float64)
    moved = xy / frame.scale
    return np.where((moved > limit) & (moved <= limit * (1 + BORDER_ROUNDING)), limit, moved)


def tensors(arrays: tuple[NDArray[Any], ...], like: Any) -> tuple[Any, ...]:
    """Return arrays as tensors of PyTorch's, on the device of another one."""
    import torch

    return tuple(torch.from_numpy(np.ascontiguousarray(array)).to(like.device) for array in arrays)


class Transform:
    """Move coordinates from a picture into the decoder's frame, under the names of Meta's ResizeLongestSide."""

    def __init__(self, spec: DecoderSpec) -> None:
        self._spec = spec
        self.target_length = spec.image_size

    def _scale(self, original_size: Sequence[int]) -> tuple[float, float]:
        height, width = picture_size(original_size, None)
        return Frame.of(self._spec, width, height).scale

    def apply_coords(self, coords: ArrayLike, original_size: Sequence[int]) -> Table:
        """Return coordinates in the frame. Shapes: (..., 2) px -> (..., 2) px; original_size (H, W)."""
        return np.asarray(coords, np.float64) * self._scale(original_size)

    def apply_boxes(self, boxes: ArrayLike, original_size: Sequence[int]) -> Table:
        """Return boxes in the frame. Shapes: (B, 4) px -> (B, 4) px; original_size (H, W)."""
        return self.apply_coords(np.reshape(boxes, (-1, 2, 2)), original_size).reshape(-1, 4)

    def apply_coords_torch(self, coords: Any, original_size: Sequence[int]) -> Any:
        """Return a tensor's coordinates in the frame, as apply_coords."""
        coords = coords.float()
        return coords * coords.new_tensor(self._scale(original_size))

    def apply_boxes_torch(self, boxes: Any, original_size: Sequence[int]) -> Any:
        """Return a tensor's boxes in the frame, as apply_boxes."""
        return self.apply_coords_torch(boxes.reshape(-1, 2, 2), original_size).reshape(-1, 4)
