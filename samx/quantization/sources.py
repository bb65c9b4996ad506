"""Where calibration images come from: demo scenes, a folder of embeddings, or pictures and an image encoder."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from samx.demo.model import DemoModel, is_demo, load_demo
from samx.demo.scenes import generate_scene
from samx.errors import ImageError, UsageError
from samx.files import GRAPH_CAP_BYTES, read_file
from samx.models.session import Feed
from samx.models.spec import DecoderSpec
from samx.processing.embeddings import read_embedding
from samx.processing.frames import Frame
from samx.processing.images import RgbArray, check_pixels, normalised, read_image, to_frame
from samx.quantization.calibration import MIN_IMAGES, MOST_IMAGES, check_features
from samx.runtimes.onnxruntime import open_float_encoder

DEFAULT_IMAGES = 16  # the next one exceeds their ranges with a probability of 6 %
# Seeds far from samx.demo's: held out 0 to 199, validation 500,000, parity 900,001, training from 1,000,000.
CALIBRATION_SCENES = range(700_000, 700_000 + MOST_IMAGES)
HELD_OUT_SCENES = range(800_000, 800_008)
SCENE_HEIGHTS = (1.0, 0.75)  # of the width, in turn: square pictures and photographs

EMBEDDING_SUFFIXES = (".npz", ".npy")
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".ppm")
FEWEST_MASK_PX = 4  # along a picture's short side: an object and something beside it

Extent = tuple[int, int]
Ids = NDArray[np.uint8]
EncodePicture = Callable[[RgbArray], Feed]  # a picture (H, W, 3) to the decoder's image inputs


@dataclass(frozen=True, eq=False)
class SourceImage:
    """Keep an image's features, the part of the frame that its picture fills, and its regions where they are known.

    Shapes: features DecoderSpec.image_inputs; ids (3, S, S), S mask pixels a side. Units: extent (width, height) px.
    """

    features: Feed
    extent: Extent
    ids: Ids | None = None


@dataclass(frozen=True)
class Source:
    """List images, each made when it is its turn, since each is megabytes; and describe them in words."""

    words: str
    images: Sequence[Callable[[], SourceImage]]
    scenes: tuple[int, ...] = ()


def open_source(
    checkpoint: Path, spec: DecoderSpec, seed: int = 0, *, embeddings: Path | None = None, pictures: Path | None = None,
    encoder: Path | None = None, pixels: str | None = "unit", images: int | None = None,
    own: Callable[[], EncodePicture] | None = None,
) -> Source:  # fmt: skip
    """Find the images: in a folder of embeddings, or of pictures for an encoder; else demo scenes.

    The encoder is a file (ONNX), or the checkpoint's own one, which `own` builds.

    Of a folder that has more than are wanted (DEFAULT_IMAGES), the seed chooses.
    Raises: UsageError on options that exclude each other; ImageError on an empty folder.
    """
    _check_options(embeddings, pictures, encoder, pixels, images, own is not None)
    if embeddings is not None:
        files, words = choose_files(embeddings, EMBEDDING_SUFFIXES, "embeddings", images, seed)
        return Source(words, [partial(_embedding, path, spec) for path in files])
    if pictures is not None:
        files, words = choose_files(pictures, PICTURE_SUFFIXES, "pictures", images, seed)
        name = "the checkpoint's encoder" if encoder is None else f"encoder '{encoder.name}'"
        encode = own() if encoder is None and own is not None else _of_file(encoder, pixels, spec)
        return Source(f"{words}, {name}", [partial(_picture, path, encode, spec) for path in files])
    if not is_demo(checkpoint):
        raise UsageError(
            f"no image to calibrate '{checkpoint.name}' on", expected="pictures, or embeddings",
            fix="Give --pictures DIR, or --embeddings DIR.",
        )  # fmt: skip
    return demo_scenes(checkpoint, spec, CALIBRATION_SCENES[: images or DEFAULT_IMAGES])


def demo_scenes(checkpoint: Path, spec: DecoderSpec, seeds: Sequence[int]) -> Source:
    """Take demo scenes, whose regions are known, through the encoder that a demo checkpoint carries."""
    model = load_demo(spec.family, checkpoint, spec.grid)
    heights = [SCENE_HEIGHTS[i % len(SCENE_HEIGHTS)] for i in range(len(seeds))]
    images = [partial(_scene, model, spec, *pair) for pair in zip(seeds, heights, strict=True)]
    return Source(f"demo scenes {seeds[0]} to {seeds[-1]}, demo encoder", images, tuple(seeds))


@torch.inference_mode()
def _scene(model: DemoModel, spec: DecoderSpec, seed: int, height: float) -> SourceImage:
    scene = generate_scene(seed, (spec.image_size, round(spec.image_size * height)))
    frame = Frame.of(spec, scene.image.shape[1], scene.image.shape[0])
    features = model.encoder(torch.from_numpy(to_frame(scene.image, frame)))
    named = zip(spec.image_inputs, features, strict=True)
    return SourceImage(
        {tensor.name: feature.numpy() for tensor, feature in named}, _extent(frame), _mask_ids(scene.ids, frame, spec)
    )


def _embedding(path: Path, spec: DecoderSpec) -> SourceImage:
    """Read an embedding. Which part of the frame its picture filled is not written in it: all of it, says samx."""
    features = read_embedding(path, spec)
    check_features(features, spec, f"embedding '{path}'")
    return SourceImage(features, (spec.image_size, spec.image_size))


def _of_file(encoder: Path | None, pixels: str | None, spec: DecoderSpec) -> EncodePicture:
    """Open somebody's encoder, which takes floats."""
    assert encoder is not None  # both were checked
    assert pixels is not None
    run = open_float_encoder(read_file(encoder, GRAPH_CAP_BYTES, f"encoder '{encoder}'", ImageError), encoder.name)

    def encode(picture: RgbArray) -> Feed:
        frame = Frame.of(spec, picture.shape[1], picture.shape[0])
        return run(normalised(to_frame(picture, frame), frame, pixels))

    return encode


def _picture(path: Path, encode: EncodePicture, spec: DecoderSpec) -> SourceImage:
    picture = read_image(path)
    frame = Frame.of(spec, picture.shape[1], picture.shape[0])
    if min(mask_px(side, spec) for side in _extent(frame)) < FEWEST_MASK_PX:
        found = f"{picture.shape[1]} x {picture.shape[0]} px"
        raise ImageError(f"picture '{path}' is too thin to click on and beside", found=found, fix="Leave it out.")
    given = encode(picture)
    wanted = [tensor.name for tensor in spec.image_inputs]
    names = wanted if set(wanted) <= set(given) else given  # an encoder may give more; what lacks is named below
    features = {name: given[name].astype(np.float32) for name in names}
    check_features(features, spec, f"encoder's output for '{path}'")
    return SourceImage(features, _extent(frame))


def mask_px(side_px: int, spec: DecoderSpec) -> int:
    """Count the mask's pixels whose centres lie in that many pixels of the frame."""
    return max(math.ceil(side_px / spec.mask_px - 0.5), 1)


def _mask_ids(ids: Ids, frame: Frame, spec: DecoderSpec) -> Ids:
    """Look the regions up at the centres of the mask's pixels; 0 in the padding. Shapes: (3, H, W) -> (3, S, S)."""
    centres = (np.arange(spec.mask_size) + 0.5) * spec.mask_px
    width, height = (mask_px(side, spec) for side in _extent(frame))
    columns, rows = ((centres[:n] / s).astype(int) for n, s in zip((width, height), frame.scale, strict=True))
    found = np.zeros((len(ids), len(centres), len(centres)), ids.dtype)
    found[:, :height, :width] = ids[:, rows[:, None], columns]
    return found


def _extent(frame: Frame) -> Extent:
    return frame.valid_width_px, frame.valid_height_px


def _check_options(
    embeddings: Path | None, pictures: Path | None, encoder: Path | None, pixels: str | None, images: int | None,
    has_own: bool,
) -> None:  # fmt: skip
    problems = {
        "--embeddings and --pictures": embeddings is not None and pictures is not None,
        "--pictures without --encoder": pictures is not None and encoder is None and not has_own,
        "--encoder without --pictures": encoder is not None and pictures is None,
    }
    found = next((words for words, is_so in problems.items() if is_so), None)
    if found:
        expected = "--pictures DIR, with --encoder FILE.onnx where the checkpoint has none; or --embeddings DIR"
        raise UsageError("images to calibrate on are not clear", found=found, expected=expected)
    check_pixels(encoder, pixels)
    if images is not None and not MIN_IMAGES <= images <= MOST_IMAGES:
        expected = f"{MIN_IMAGES} to {MOST_IMAGES}"
        raise UsageError("cannot calibrate on so many images", found=images, expected=expected)


def choose_files(
    folder: Path, suffixes: Sequence[str], what: str, wanted: int | None = None, seed: int = 0
) -> tuple[list[Path], str]:
    """Choose files of a folder, DEFAULT_IMAGES or all where a number is not wanted; return what they are in words.

    Raises: ImageError for a folder with too few, or one that cannot be read.
    """
    files = _files(folder, suffixes, what)
    least = MIN_IMAGES if wanted is None else wanted
    if len(files) < least:
        raise ImageError(f"folder '{folder}' has too few {what}", found=len(files), expected=f"at least {least}")
    count = min(len(files), DEFAULT_IMAGES if wanted is None else wanted)
    chosen = sorted(np.random.default_rng(seed).permutation(len(files))[:count])
    return [files[i] for i in chosen], f"{count} of {len(files)} {what} in '{folder.resolve().name}'"


def _files(folder: Path, suffixes: Sequence[str], what: str) -> list[Path]:
    try:
        there = sorted(path for path in folder.iterdir() if path.is_file())
    except OSError as cause:
        fix = "Check the path."
        raise ImageError(f"folder '{folder}' cannot be read", found=cause.strerror, fix=fix) from cause
    files = [path for path in there if path.suffix.lower() in suffixes]
    if not files:
        found = f"{len(there)} other files" if there else "nothing"
        raise ImageError(f"folder '{folder}' has no {what}", found=found, expected=", ".join(suffixes))
    return files
