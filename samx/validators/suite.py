"""ParitySuite: images, cases, and what the reference computed for them; live, or read back from an artifact.

Its file is compact. Every pixel's side of the threshold is kept as a bit, and its logit as a coarse code. Logits are
kept in full at one pixel of each 4x4 patch, the position rotating from patch to patch, so that every image token and
each of the 16 paths through the two upscalings is compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from samx.artifacts.commit import write_file
from samx.artifacts.strict_json import OTHER_VERSION, Count, refusal, shaped
from samx.errors import ParityError
from samx.models.session import Feed, Session
from samx.models.spec import LABELS, UPSCALING, DecoderSpec, TensorSpec
from samx.validators.arrays import VERSION, ArrayReader, feed_digest, frozen, pack, stored
from samx.validators.cases import GENERATOR_VERSION, ONE_POINT, Case, far_image, parity_cases, synthetic_images
from samx.validators.metrics import CODE_STEPS, BoolArray, Expected, encode, expect

FORMAT = "samx-parity-suite"
HEADER = {"format": FORMAT, VERSION: 2, "logits": "lattice and codes"}
EARLIER = {"format": FORMAT, VERSION: 1, "logits": "lattice"}  # of 0.1.0: without codes, draws and a far image
CASE = Annotated[dict[str, Any], shaped({"name": str, "image": Count})]
FIELDS = {"spec": DecoderSpec, "image_source": str, "reference": str, "seed": Count | None, "generator": Count,
          "images": tuple[str, ...], "cases": tuple[CASE, ...]}  # fmt: skip
MORE_FIELDS = {"drawn": Count | None, "far": bool}
IMAGE_CAP = 64  # of images that are made and not stored; more is an attack on the memory
MADE_CAP_BYTES, FLOAT_BYTES = 1 << 29, 4  # those of a suite take 50 MiB
ROW_STEP, COLUMN_STEP = 7, 3  # odd, so that 16 neighbours in a row or a column visit all 16 positions

# A reference whose mask has more of its pixels on the threshold than this says nothing (see metrics.TIE_BAND).
UNDECIDED_CAP = 0.01
# Where all of a case's masks together are smaller, one pixel is more than its bound (0.99): other prompts are drawn.
CASE_PIXELS, MOST_DRAWS = 256, 8
UNSEEN = "Not compared: object_pointers where the object {kind}; on no picture of the comparison was it so."


@dataclass(frozen=True)
class ParitySuite:
    """Keep cases with the reference's answers."""

    spec: DecoderSpec
    images: tuple[Feed, ...]
    cases: tuple[Case, ...]
    expected: tuple[Expected, ...]
    image_source: str
    reference: str  # what computed the answers
    seed: int | None  # of synthetic_images, when the images are those
    drawn: int | None = None  # seed of what was drawn anew for this suite
    far: bool = False  # the last image is the first one's far_image()
    # The session that computed the answers, so that it cannot be judged by them. A stored suite has none.
    reference_session: object = field(default=None, compare=False, repr=False)

    @classmethod
    def build(
        cls,
        reference: Session,
        images: Sequence[Feed] | None = None,
        cases: Sequence[Case] | None = None,
        image_source: str | None = None,
        *,
        seed: int = 0,
        drawn: int | None = None,
        far: bool | None = None,
    ) -> ParitySuite:
        """Return a suite of the reference's answers. Without images or cases, make synthetic ones from the seed.

        `far`: ask about the first image's far_image() too, as the last one; None: where a case does.
        Raises: ParityError when the reference's own answers are unusable.
        """
        spec = reference.spec
        chosen = list(synthetic_images(spec, seed) if images is None else images)
        asked = parity_cases(spec, seed, drawn=drawn) if cases is None else cases
        if far is None:
            far = any(case.image == len(chosen) for case in asked)
        chosen += [far_image(frozen(chosen[0]))] if far else []
        # Rounded first: the stored suite must ask exactly what the reference was asked.
        kept = tuple(frozen(feed) for feed in chosen)
        cases, expected = _resolved(reference, kept, asked)
        return cls(
            spec=spec,
            images=kept,
            cases=cases,
            expected=expected,
            image_source=image_source or (f"synthetic, seed {seed}" if images is None else "given, unnamed"),
            reference=describe(reference),
            seed=seed if images is None else None,
            drawn=drawn,
            far=far,
            reference_session=reference,
        )

    def unseen(self) -> tuple[str, ...]:
        """Say which kind of object pointer no case asks about."""
        if not self.spec.object_pointer:
            return ()
        scores = np.concatenate([expected.scores["object_score_logits"] for expected in self.expected])
        kinds = {"is in the picture": (scores > 0).any(), "is not": (scores <= 0).any()}
        return tuple(UNSEEN.format(kind=kind) for kind, seen in kinds.items() if not seen)

    def to_bytes(self) -> bytes:
        """Return the file's content."""
        header = {
            **HEADER,
            "spec": self.spec.to_json(),
            "image_source": self.image_source,
            "reference": self.reference,
            "seed": self.seed,
            "drawn": self.drawn,
            "far": self.far,
            "generator": GENERATOR_VERSION,
            "images": [feed_digest(image) for image in self.images],
            "cases": [{"name": case.name, "image": case.image} for case in self.cases],
        }
        arrays: dict[str, NDArray[Any]] = {}
        for i, image in enumerate(self.images[: len(self.images) - self.far] if self.seed is None else ()):
            arrays.update(stored(f"image{i}", image))
        for i, (case, expected) in enumerate(zip(self.cases, self.expected, strict=True)):
            arrays.update(stored(f"case{i}", case.prompts))
            arrays.update({f"case{i}.{name}": value for name, value in _packed(expected, self.spec.grid).items()})
        return pack(header, arrays)

    def save(self, path: Path) -> int:
        """Write the file whole or not at all, and return its size in bytes."""
        data = self.to_bytes()
        write_file(path, data)
        return len(data)

    @classmethod
    def load(cls, data: bytes, where: str = "parity suite") -> ParitySuite:
        """Read the file's content.

        Raises: ArtifactError for anything that save() would not have written: an array is missing, unknown, or of
        another type or shape than the spec says.
        """
        reader = ArrayReader(data, where)
        found = reader.header((HEADER, FIELDS | MORE_FIELDS), (EARLIER, FIELDS))
        header = {"drawn": None, "far": False} | found
        spec: DecoderSpec = header["spec"]
        images = _images(reader, spec, header)
        cases = tuple(_case(reader, spec, i, entry, len(images)) for i, entry in enumerate(header["cases"]))
        expected = tuple(_expected(reader, spec, i, case, coded="far" in found) for i, case in enumerate(cases))
        reader.finish()
        kept = {name: header[name] for name in ("image_source", "reference", "seed", "drawn", "far")}
        return cls(spec, images, cases, expected, **kept)


def describe(session: Session) -> str:
    """Name a session by its runtime and class."""
    placement = session.placement()
    return f"{placement.runtime} {type(session).__name__} on {placement.requested}"


def output_problems(spec: DecoderSpec, outputs: object, prompts: int) -> list[str]:
    """Return what keeps a decoder's outputs from being compared."""
    return tensor_problems(spec.outputs, outputs, prompts)


def tensor_problems(tensors: Sequence[TensorSpec], outputs: object, count: int) -> list[str]:
    """Return what keeps outputs from being compared: names, types, shapes, values that are not finite.

    count: what a named axis stands for.
    """
    if not isinstance(outputs, dict):
        return [f"outputs are {type(outputs).__name__}, must be a dict of arrays"]
    names = [tensor.name for tensor in tensors]
    missing = [f"output {name} is missing" for name in names if name not in outputs]
    unknown = [f"output {name} is not in the spec" for name in outputs if name not in names]
    present = [tensor for tensor in tensors if tensor.name in outputs]
    return [*missing, *unknown, *(line for tensor in present for line in _array_problems(tensor, outputs, count))]


def _array_problems(tensor: TensorSpec, outputs: dict[str, object], count: int) -> list[str]:
    value = outputs[tensor.name]
    shape = tuple(count if isinstance(size, str) else size for size in tensor.shape)
    if type(value) is not np.ndarray or value.dtype != np.float32:  # exactly: a masked array hides values
        kind = value.dtype if type(value) is np.ndarray else type(value).__name__
        return [f"{tensor.name} has type {kind}, must be float32 array"]
    if value.shape != shape:
        return [f"{tensor.name} has shape {value.shape}, must be {shape}"]
    bad = int(value.size - np.isfinite(value).sum())
    return [f"{tensor.name} has {bad} values that are not finite"] if bad else []


def _resolved(
    reference: Session, images: Sequence[Feed], asked: Sequence[Case]
) -> tuple[tuple[Case, ...], tuple[Expected, ...]]:
    """Answer cases; those whose masks are too small to be judged are drawn again, and with one those of its prompt."""
    cases = [replace(case, prompts=frozen(case.prompts)) for case in asked]
    expected = [_answer(reference, images, case) for case in cases]
    for attempt in range(1, MOST_DRAWS):
        small = {_kind(case) for case, answer in zip(cases, expected, strict=True) if answer.above.sum() < CASE_PIXELS}
        for i, case in enumerate(cases):
            if case.again is not None and _kind(case) in small:
                cases[i] = replace(case, prompts=frozen(case.again(attempt)))
                expected[i] = _answer(reference, images, cases[i])
    return tuple(cases), tuple(expected)


def _kind(case: Case) -> str:
    return ONE_POINT if case.name.startswith(ONE_POINT) else case.name


def _answer(reference: Session, images: Sequence[Feed], case: Case) -> Expected:
    reference.set_image(images[case.image])
    outputs = reference.decode(case.prompts)
    problems = output_problems(reference.spec, outputs, len(case.prompts["point_coords"]))
    if not problems:
        kept = {name: value.copy() for name, value in outputs.items()}
        for value in kept.values():
            value.setflags(write=False)
        expected = expect(reference.spec, kept)
        worst = float(expected.undecided.mean(axis=-1).max())
        if worst <= UNDECIDED_CAP:
            return expected
        problems = [f"{worst:.1%} of a mask's pixels lie on the threshold"]
    raise ParityError(
        f"the reference cannot answer case '{case.name}'", found=problems[0],
        fix="Nothing can be compared with it; check the checkpoint and the images.",
    )  # fmt: skip


def lattice(grid: int) -> NDArray[np.int64]:
    """Choose one pixel of each patch. Shapes: -> (G*G,), positions in a flattened mask."""
    row, column = np.mgrid[:grid, :grid]
    inside = (ROW_STEP * row + COLUMN_STEP * column) % UPSCALING**2
    y, x = UPSCALING * row + inside // UPSCALING, UPSCALING * column + inside % UPSCALING
    return (y * UPSCALING * grid + x).ravel()


def _images(reader: ArrayReader, spec: DecoderSpec, header: dict[str, Any]) -> tuple[Feed, ...]:
    digests, seed, far = header["images"], header["seed"], header["far"]
    if len(digests) > IMAGE_CAP:
        raise refusal(f"{reader.where} has too many images", str(len(digests)), f"at most {IMAGE_CAP}")
    if far and len(digests) < 2:
        raise refusal(f"{reader.where} has a far image of no image")
    size = sum(prod(map(int, tensor.shape)) for tensor in spec.image_inputs) * FLOAT_BYTES
    if len(digests) * size > MADE_CAP_BYTES:
        found, expected = f"{len(digests)} of {size} bytes", f"at most {MADE_CAP_BYTES} bytes together"
        raise refusal(f"{reader.where} has too large images", found, expected)
    if seed is None:
        images = [reader.feed(f"image{i}", spec.image_inputs) for i in range(len(digests) - far)]
    else:
        images = synthetic_images(spec, seed, len(digests) - far)
    images += [far_image(images[0])] if far else []
    for i, (image, digest) in enumerate(zip(images, digests, strict=True)):
        if feed_digest(image) != digest:
            found, expected = (f"image generator {one}" for one in (GENERATOR_VERSION, header["generator"]))
            raise refusal(
                f"{reader.where}: image {i} is not the one that the reference saw", found, expected, OTHER_VERSION
            )
    return tuple(images)


def _case(reader: ArrayReader, spec: DecoderSpec, index: int, entry: dict[str, Any], images: int) -> Case:
    where = f"{reader.where}: case {index}"
    if entry["image"] >= images:
        raise refusal(f"{where} names image {entry['image']}, which the suite does not have")
    prompts = reader.feed(f"case{index}", spec.prompt_inputs)
    if not np.isin(prompts["point_labels"], list(LABELS.values())).all() or not len(prompts["point_coords"]):
        raise refusal(f"{where} has no prompt, or labels that no decoder knows")
    return Case(entry["name"], entry["image"], prompts)


def _expected(reader: ArrayReader, spec: DecoderSpec, index: int, case: Case, coded: bool) -> Expected:
    prompts, masks, pixels = len(case.prompts["point_coords"]), spec.masks_out, lattice(spec.grid)
    planes = (prompts, masks, spec.mask_size**2)
    scores = {
        name: reader.take(f"case{index}.{name}", np.float32, (prompts, *sizes))
        for name, sizes in score_shapes(spec).items()
    }
    codes = reader.take(f"case{index}.codes", np.uint8, planes) if coded else None
    if codes is not None and codes.max() > 2 * CODE_STEPS:
        raise refusal(f"{reader.where}: array 'case{index}.codes' has a code that no logit has")
    return Expected(
        logits=reader.take(f"case{index}.logits", np.float32, (prompts, masks, len(pixels))),
        pixels=pixels,
        above=bits(reader, f"case{index}.above", planes),
        undecided=bits(reader, f"case{index}.undecided", planes),
        scores=scores,
        codes=codes,
        peaks=reader.take(f"case{index}.peaks", np.float32, planes[:2]) if coded else None,
    )


def _packed(expected: Expected, grid: int) -> dict[str, NDArray[Any]]:
    codes, peaks, logits = expected.codes, expected.peaks, expected.logits
    if codes is None or peaks is None:  # of the reference itself; a suite that was read has logits on the lattice only
        codes, peaks = encode(logits)
        logits = logits[..., lattice(grid)]
    return {
        "logits": logits,
        "codes": codes,
        "peaks": peaks,
        "above": np.packbits(expected.above, axis=-1),
        "undecided": np.packbits(expected.undecided, axis=-1),
        **expected.scores,
    }


def score_shapes(spec: DecoderSpec) -> dict[str, list[int]]:
    """Return the sizes of the outputs that are no masks, of one prompt."""
    fixed = {tensor.name: [size for size in tensor.shape if isinstance(size, int)] for tensor in spec.outputs}
    return {name: sizes for name, sizes in fixed.items() if name != "low_res_masks"}


def bits(reader: ArrayReader, name: str, shape: tuple[int, int, int]) -> BoolArray:
    """Take an array that is kept as bits, and unpacks to eight times its size. Shapes: -> shape."""
    if prod(shape) > MADE_CAP_BYTES:
        raise refusal(f"{reader.where}: array '{name}' is too large", str(shape), f"at most {MADE_CAP_BYTES} pixels")
    packed = reader.take(name, np.uint8, (*shape[:2], -(-shape[2] // 8)))
    return np.unpackbits(packed, axis=-1, count=shape[2]).astype(np.bool_)
