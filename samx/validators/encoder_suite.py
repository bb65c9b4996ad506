"""EncoderSuite: pictures, and what the reference encoder and the reference decoder make of each, up to the masks.

Its file keeps the pictures as they were before resizing, sketches of the features (see sketch.py), and every pixel's
side of the threshold in the masks of some prompts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from samx.artifacts.strict_json import OTHER_VERSION, Count, Sha256, between, not_empty, refusal, shaped
from samx.errors import ImageError, ParityError
from samx.models.session import Feed, FloatArray, Outputs, Session
from samx.models.spec import LABELS, PIXELS_OF_OLD, DecoderSpec, TensorSpec
from samx.processing.frames import Frame
from samx.processing.images import RgbArray, normalised
from samx.processing.postprocess import STABILITY_DELTA, stability_scores
from samx.validators.arrays import VERSION, ArrayReader, frozen, pack, stored
from samx.validators.cases import Draw
from samx.validators.metrics import BoolArray
from samx.validators.pictures import check_photo, frame_of, framed, package_pictures
from samx.validators.sketch import Sketch, groups, sketch
from samx.validators.suite import UNDECIDED_CAP, bits, describe, output_problems, score_shapes, tensor_problems

HEADER = {"format": "samx-encoder-suite", VERSION: 1}
MOST_PX, MOST_PICTURES = 2048, 16  # the largest encoder takes 1024 px; more is an attack on the memory
PICTURE = Annotated[dict[str, Any], shaped({"name": str, "frame": Sha256, "cases": Annotated[int, between(1, 8)]})]
FIELDS = {"spec": DecoderSpec, "picture_px": Annotated[int, between(1, MOST_PX)], "reference": str, "seed": Count,
          "pictures": Annotated[tuple[PICTURE, ...], not_empty]}  # fmt: skip
PROMPTS = 8  # of each kind, a picture: points, and boxes
# Logits this close to the threshold, relative to the mask's largest one, have no side: ten times what a decoder's have
# (metrics.TIE_BAND), because features may differ by 1e-5 before the decoder adds to it.
TIE_BAND = 1e-4

Encode = Callable[[Feed], Feed]  # a picture's bytes to the decoder's image inputs


@dataclass(frozen=True)
class Answers:
    """Keep what the reference decoder computed for prompts, from what the reference encoder computed.

    Shapes: above, undecided (N, M, H*W); stability (N, M).
    """

    prompts: Feed
    above: BoolArray
    undecided: BoolArray
    stability: FloatArray
    scores: Outputs


@dataclass(frozen=True)
class Picture:
    """Keep a picture as it was and as it lies in the encoder's square, and what is right for it."""

    name: str
    photo: RgbArray
    frame: Frame
    square: RgbArray
    features: Mapping[str, Sketch]
    answers: tuple[Answers, ...]

    @property
    def digest(self) -> str:
        """Identify the square by its pixels."""
        return hashlib.sha256(self.square.tobytes()).hexdigest()


@dataclass(frozen=True)
class EncoderSuite:
    """Keep pictures with the references' answers."""

    spec: DecoderSpec
    picture_px: int  # side of the square that the encoder takes
    pictures: tuple[Picture, ...]
    reference: str
    seed: int  # of the prompts

    @classmethod
    def build(
        cls, encode: Callable[[FloatArray], Feed], reference: Session, picture_px: int,
        photos: Sequence[tuple[str, RgbArray]] | None = None, *, seed: int = 0, most_points: int | None = None,
    ) -> EncoderSuite:  # fmt: skip
        """Ask a reference encoder of pixels, and the reference decoder about its features.

        The encoder takes pixels that are normalised here, apart from any graph. Shapes: (1, 3, S, S) -> image inputs.
        Raises: ParityError when an answer is unusable; ImageError for a picture that no suite can hold.
        """
        made = []
        for i, (name, photo) in enumerate(photos or package_pictures(picture_px)):
            check_photo(photo, f"picture '{name}'")
            frame = frame_of(reference.spec, picture_px, photo)
            square = framed(photo, frame)
            features = _features(encode(pixels(square, frame, reference.spec)), reference.spec, name)
            reference.set_image(features)
            asked = _prompts(reference.spec, photo, np.random.default_rng([seed, i]), most_points)
            answers = tuple(_answers(reference, name, frozen(prompts)) for prompts in asked)
            sketches = {output: sketch(value) for output, value in features.items()}
            made.append(Picture(name, photo, frame, square, sketches, answers))
        return cls(reference.spec, picture_px, tuple(made), describe(reference), seed)

    def feed(self, chosen: Sequence[int]) -> dict[str, NDArray[Any]]:
        """Return what the encoder is asked: some pictures, and where the family pads, what of each is used.

        Shapes: picture (B, S, S, 3) of spec.picture_type; valid (B, 2) int32, height and width.
        """
        pictures = [self.pictures[i] for i in chosen]
        feed: dict[str, NDArray[Any]] = {
            "picture": np.stack([picture.square for picture in pictures]).astype(self.spec.picture_type)
        }
        if self.spec.keeps_aspect:
            used = [(one.frame.valid_height_px, one.frame.valid_width_px) for one in pictures]
            feed["valid"] = np.array(used, np.int32)
        return feed

    def to_bytes(self) -> bytes:
        """Return the file's content."""
        header = {
            **HEADER,
            "spec": self.spec.to_json(),
            "picture_px": self.picture_px,
            "reference": self.reference,
            "seed": self.seed,
            "pictures": [{"name": one.name, "frame": one.digest, "cases": len(one.answers)} for one in self.pictures],
        }
        arrays: dict[str, NDArray[Any]] = {}
        for i, picture in enumerate(self.pictures):
            arrays[f"picture{i}.photo"] = picture.photo
            for output, kept in picture.features.items():
                arrays.update({f"picture{i}.{output}.{part}": value for part, value in kept._asdict().items()})
            for j, answers in enumerate(picture.answers):
                arrays.update(_packed(f"picture{i}.case{j}", answers))
        return pack(header, arrays)

    @classmethod
    def load(cls, data: bytes, where: str = "encoder suite") -> EncoderSuite:
        """Read the file's content.

        Raises: ArtifactError for anything that to_bytes() would not have written.
        """
        reader = ArrayReader(data, where)
        header = reader.header((HEADER, FIELDS))
        spec, picture_px, entries = header["spec"], header["picture_px"], header["pictures"]
        if len(entries) > MOST_PICTURES:
            raise refusal(f"{where} has too many pictures", str(len(entries)), f"at most {MOST_PICTURES}")
        pictures = tuple(_picture(reader, spec, picture_px, i, entry) for i, entry in enumerate(entries))
        reader.finish()
        return cls(spec, picture_px, pictures, header["reference"], header["seed"])


def pixels(square: RgbArray, frame: Frame, spec: DecoderSpec) -> FloatArray:
    """Return what the reference encoder takes: normalised as the family does, zeros beyond the picture.

    Shapes: (S, S, 3) -> (1, 3, S, S).
    """
    scaled = square.astype(np.float32).transpose(2, 0, 1)[None] / np.float32(255)
    return normalised(scaled, frame, spec.pixels or PIXELS_OF_OLD)


def image_outputs(spec: DecoderSpec) -> list[TensorSpec]:
    """List what an encoder returns for a number of pictures."""
    return [TensorSpec(one.name, ("pictures", *one.shape[1:]), one.unit, one.meaning) for one in spec.image_inputs]


def _features(found: Feed, spec: DecoderSpec, name: str) -> Feed:
    problems = tensor_problems(image_outputs(spec), found, 1)
    problems += [] if problems else [f"{key} is zero throughout" for key, value in found.items() if not value.any()]
    if problems:
        raise _unusable(name, problems[0])
    return {key: value.copy() for key, value in found.items()}


def _unusable(name: str, found: str) -> ParityError:
    fix = "Nothing can be compared with it; check the checkpoint, or export with --no-encoder."
    return ParityError(f"the reference cannot answer for picture '{name}'", found=found, fix=fix)


def _prompts(spec: DecoderSpec, photo: RgbArray, rng: np.random.Generator, most_points: int | None) -> list[Feed]:
    """Draw points, and boxes where the export takes so many tokens."""
    frame = Frame.of(spec, photo.shape[1], photo.shape[0])
    draw = Draw(spec, rng, frame.valid_width_px, frame.valid_height_px)
    feeds = [draw.points(PROMPTS, [LABELS["foreground"]]), draw.boxes(PROMPTS)]
    return [feed for feed in feeds if most_points is None or feed["point_labels"].shape[1] <= most_points]


def _answers(reference: Session, name: str, prompts: Feed) -> Answers:
    spec = reference.spec
    outputs = reference.decode(prompts)
    if problems := output_problems(spec, outputs, len(prompts["point_labels"])):
        raise _unusable(name, problems[0])
    masks = outputs["low_res_masks"]
    logits = masks.reshape(*masks.shape[:2], -1)
    margin = np.abs(logits - np.float32(spec.mask_threshold))
    undecided = margin <= TIE_BAND * margin.max(axis=-1, keepdims=True)
    if (share := float(undecided.mean())) > UNDECIDED_CAP:
        raise _unusable(name, f"{share:.1%} of its masks' pixels lie on the threshold")
    return Answers(
        prompts=prompts,
        above=logits > spec.mask_threshold,
        undecided=undecided,
        stability=stability_scores(masks, spec.mask_threshold, STABILITY_DELTA),
        scores={key: value.copy() for key, value in outputs.items() if key != "low_res_masks"},
    )


def _packed(prefix: str, answers: Answers) -> dict[str, NDArray[Any]]:
    parts: dict[str, NDArray[Any]] = {
        "above": np.packbits(answers.above, axis=-1),
        "undecided": np.packbits(answers.undecided, axis=-1),
        "stability": answers.stability,
        **answers.scores,
    }
    return {**stored(prefix, answers.prompts), **{f"{prefix}.{name}": value for name, value in parts.items()}}


def _picture(reader: ArrayReader, spec: DecoderSpec, picture_px: int, index: int, entry: dict[str, Any]) -> Picture:
    prefix = f"picture{index}"
    where = f"{reader.where}: picture {index}"
    photo = reader.take(f"{prefix}.photo", np.uint8, (None, None, 3))
    try:
        check_photo(photo, where)
        frame = frame_of(spec, picture_px, photo)
    except ImageError as cause:
        raise refusal(f"{where} is no picture", str(cause)) from cause
    features = {one.name: _sketch(reader, f"{prefix}.{one.name}", one) for one in spec.image_inputs}
    answers = tuple(map(partial(_stored_answers, reader, spec), (f"{prefix}.case{j}" for j in range(entry["cases"]))))
    picture = Picture(entry["name"], photo, frame, framed(photo, frame), features, answers)
    if picture.digest != entry["frame"]:
        raise refusal(f"{where} is not the one that the reference saw", fix=OTHER_VERSION)
    return picture


def _sketch(reader: ArrayReader, prefix: str, tensor: TensorSpec) -> Sketch:
    count = groups(prod(map(int, tensor.shape)))
    sums, lattice = (reader.take(f"{prefix}.{part}", np.float32, (count,)) for part in ("sums", "lattice"))
    scale = reader.take(f"{prefix}.scale", np.float64, (2,))
    if not (scale > 0).all():
        raise refusal(f"{reader.where}: array '{prefix}.scale' has a size that is not more than 0")
    return Sketch(sums, lattice, scale)


def _stored_answers(reader: ArrayReader, spec: DecoderSpec, prefix: str) -> Answers:
    prompts = reader.feed(prefix, spec.prompt_inputs)
    count = len(prompts["point_labels"])
    if not np.isin(prompts["point_labels"], list(LABELS.values())).all() or not count:
        raise refusal(f"{reader.where}: {prefix} has no prompt, or labels that no decoder knows")
    planes = (count, spec.masks_out, spec.mask_size**2)
    return Answers(
        prompts=prompts,
        above=bits(reader, f"{prefix}.above", planes),
        undecided=bits(reader, f"{prefix}.undecided", planes),
        stability=reader.take(f"{prefix}.stability", np.float32, planes[:2]),
        scores={name: reader.take(f"{prefix}.{name}", np.float32, (count, *sizes))
                for name, sizes in score_shapes(spec).items()},
    )  # fmt: skip
