"""The compact form of a ParitySuite: one .npz without pickles.

Every pixel's side of the threshold is kept as a bit. Logits are kept at one pixel of each 4x4 cell, the position
rotating from cell to cell, so that every image token and each of the 16 paths through the two upscalings is compared.
"""

from __future__ import annotations

import hashlib
import io
import json
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from samx.artifacts import strict_json as read
from samx.errors import ArtifactError
from samx.models.session import Feed, FloatArray
from samx.models.spec import LABELS, UPSCALING, DecoderSpec, TensorSpec
from samx.validators.cases import Case
from samx.validators.metrics import BoolArray, Expected
from samx.validators.synthetic import GENERATOR_VERSION, synthetic_images

if TYPE_CHECKING:
    from samx.validators.suite import ParitySuite

FORMAT = "samx-parity-suite"
SCHEMA_VERSION = 1
HEADER = "header"
HEADER_FIELDS = ("format", "schema_version", "spec", "image_source", "reference", "seed", "generator", "images",
                 "cases", "logits")  # fmt: skip
UNPACKED_CAP_BYTES = 1024**3  # the default suite unpacks to about 10 MiB; more is an attack on the memory
IMAGE_CAP = 64  # the same, for images that are made and not stored
ROW_STEP, COLUMN_STEP = 7, 3  # odd, so that 16 neighbours in a row or a column visit all 16 positions
DAMAGE = (ValueError, KeyError, OSError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error, struct.error,
          NotImplementedError, RuntimeError)  # fmt: skip
HALF = (  # tensors that are stored as float16
    "image_embeddings", "high_res_features_0", "high_res_features_1", "mask_input",
)  # fmt: skip


def lattice(grid: int) -> NDArray[np.int64]:
    """Choose one pixel of each cell. Shapes: -> (G*G,), positions in a flattened mask."""
    row, column = np.mgrid[:grid, :grid]
    inside = (ROW_STEP * row + COLUMN_STEP * column) % UPSCALING**2
    y, x = UPSCALING * row + inside // UPSCALING, UPSCALING * column + inside % UPSCALING
    pixels: NDArray[np.int64] = (y * UPSCALING * grid + x).ravel()
    return pixels


def storable(name: str, value: FloatArray) -> FloatArray:
    """Round an input to what the file keeps of it."""
    half = value.astype(np.float16) if name in HALF else value
    return half.astype(np.float32)


def pack(suite: ParitySuite) -> bytes:
    """Write a suite."""
    grid, synthetic = suite.spec.grid, suite.seed is not None
    header = {
        "format": FORMAT,
        "schema_version": SCHEMA_VERSION,
        "spec": suite.spec.to_json(),
        "image_source": suite.image_source,
        "reference": suite.reference,
        "seed": suite.seed,
        "generator": GENERATOR_VERSION,
        "images": [feed_digest(image) for image in suite.images],
        "cases": [{"name": case.name, "image": case.image} for case in suite.cases],
        "logits": "lattice",
    }
    arrays: dict[str, Any] = {HEADER: np.frombuffer(json.dumps(header).encode(), np.uint8)}
    for i, image in enumerate([] if synthetic else suite.images):
        arrays.update({f"image{i}.{name}": stored_form(name, value) for name, value in image.items()})
    for i, (case, expected) in enumerate(zip(suite.cases, suite.expected, strict=True)):
        arrays.update({f"case{i}.{name}": stored_form(name, value) for name, value in case.prompts.items()})
        arrays.update({f"case{i}.{name}": value for name, value in _packed_answer(expected, lattice(grid)).items()})
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # no array of objects among them, so nothing is pickled
    return buffer.getvalue()


def unpack(data: bytes, where: str) -> dict[str, Any]:
    """Read a suite's fields.

    Raises: ArtifactError when an array is missing, unknown, or of another type or shape than the spec says.
    """
    reader = Reader(read_arrays(data, where), where)
    header = read.fields(read.parse(reader.take(HEADER, np.uint8, None).tobytes(), where), HEADER_FIELDS, where)
    if (header["format"], header["schema_version"], header["logits"]) != (FORMAT, SCHEMA_VERSION, "lattice"):
        raise ArtifactError(f"{where} has another format", expected=f"{FORMAT} {SCHEMA_VERSION}", fix=read.REMEDY)
    spec = DecoderSpec.from_json(read.mapping(header["spec"], f"{where}: spec"))
    images = tuple(_images(reader, spec, header))
    cases = [_case(reader, spec, i, entry, len(images)) for i, entry in enumerate(read.items(header["cases"], where))]
    expected = [_expected(reader, spec, i, case) for i, case in enumerate(cases)]
    reader.finish()
    return {
        "spec": spec,
        "images": images,
        "cases": tuple(cases),
        "expected": tuple(expected),
        "image_source": read.text(header["image_source"], f"{where}: image_source"),
        "reference": read.text(header["reference"], f"{where}: reference"),
        "seed": None if header["seed"] is None else read.count(header["seed"], f"{where}: seed"),
    }


@dataclass(frozen=True)
class Reader:
    """Hand arrays out, each once and only as expected."""

    arrays: dict[str, NDArray[Any]]
    where: str

    def take(self, name: str, dtype: Any, shape: tuple[int | None, ...] | None) -> NDArray[Any]:
        """Take an array; None stands for any size. A half-stored input comes back as float32."""
        value = self.arrays.pop(name, None)
        if value is None:
            raise ArtifactError(f"{self.where} has no array '{name}'", fix=read.REMEDY)
        fits = shape is None or (
            len(shape) == value.ndim
            and all(want in (None, have) for want, have in zip(shape, value.shape, strict=True))
        )
        if value.dtype != dtype or not fits or not np.isfinite(value).all():
            raise ArtifactError(
                f"{self.where}: array '{name}' is unusable", found=f"{value.dtype} {value.shape}",
                expected=f"finite {np.dtype(dtype)} {shape}", fix=read.REMEDY,
            )  # fmt: skip
        return value

    def finish(self) -> None:
        """Refuse what nothing asked for."""
        if self.arrays:
            raise ArtifactError(f"{self.where} has unknown arrays", found=sorted(self.arrays)[0], fix=read.REMEDY)


def read_arrays(data: bytes, where: str) -> dict[str, NDArray[Any]]:
    """Read every array of an .npz without pickles and of bounded size.

    Raises: ArtifactError when it is damaged or unpacks to too much.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as file:
            if sum(entry.file_size for entry in file.infolist()) > UNPACKED_CAP_BYTES:
                raise ValueError("unpacks to too many bytes")
        with np.load(io.BytesIO(data), allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except DAMAGE as cause:
        raise ArtifactError(f"{where} cannot be read", found=type(cause).__name__, fix=read.REMEDY) from cause


def _images(reader: Reader, spec: DecoderSpec, header: Mapping[str, Any]) -> Iterator[Feed]:
    digests = read.items(header["images"], f"{reader.where}: images")
    if len(digests) > IMAGE_CAP:
        raise ArtifactError(f"{reader.where} has too many images", found=len(digests), expected=f"at most {IMAGE_CAP}")
    made: list[Feed] = []
    if header["seed"] is not None:
        made = synthetic_images(spec, read.count(header["seed"], f"{reader.where}: seed"), len(digests))
    for i, digest in enumerate(digests):
        image = made[i] if made else {t.name: take_input(reader, f"image{i}", t, None) for t in spec.image_inputs}
        if feed_digest(image) != digest:
            raise ArtifactError(
                f"{reader.where}: image {i} is not the one that the reference saw",
                found=f"image generator {GENERATOR_VERSION}", expected=f"image generator {header['generator']}",
                fix="Use the samx version that wrote it, or export again.",
            )  # fmt: skip
        yield image


def _case(reader: Reader, spec: DecoderSpec, index: int, entry: Any, images: int) -> Case:
    where = f"{reader.where}: case {index}"
    found = read.fields(entry, ("name", "image"), where)
    image = read.count(found["image"], f"{where}: image")
    if image >= images:
        raise ArtifactError(f"{where} names image {image}, which the suite does not have", fix=read.REMEDY)
    prompts: dict[str, FloatArray] = {}
    for tensor in spec.prompt_inputs:
        prompts[tensor.name] = take_input(reader, f"case{index}", tensor, prompts.get("point_coords"))
    if not np.isin(prompts["point_labels"], list(LABELS.values())).all() or not len(prompts["point_coords"]):
        raise ArtifactError(f"{where} has no prompt, or labels that no decoder knows", fix=read.REMEDY)
    return Case(read.text(found["name"], f"{where}: name"), image, prompts)


def take_input(reader: Reader, prefix: str, tensor: TensorSpec, coords: FloatArray | None) -> FloatArray:
    """Take a decoder's input in float32; its named axes are those of the coordinates, once they are known."""
    known = {} if coords is None else {"prompts": coords.shape[0], "points": coords.shape[1]}
    shape = tuple(known.get(size) if isinstance(size, str) else size for size in tensor.shape)
    stored = np.float16 if tensor.name in HALF else np.float32
    return reader.take(f"{prefix}.{tensor.name}", stored, shape).astype(np.float32)


def _expected(reader: Reader, spec: DecoderSpec, index: int, case: Case) -> Expected:
    prompts, masks, pixels = len(case.prompts["point_coords"]), spec.masks_out, lattice(spec.grid)
    planes = (prompts, masks, spec.mask_size**2)
    scores = {
        tensor.name: reader.take(f"case{index}.{tensor.name}", np.float32, (prompts, *_fixed(tensor)))
        for tensor in spec.outputs
        if tensor.name != "low_res_masks"
    }
    return Expected(
        logits=reader.take(f"case{index}.logits", np.float32, (prompts, masks, len(pixels))),
        pixels=pixels,
        above=_bits(reader, f"case{index}.above", planes),
        undecided=_bits(reader, f"case{index}.undecided", planes),
        scores=scores,
    )


def _fixed(tensor: TensorSpec) -> tuple[int, ...]:
    return tuple(size for size in tensor.shape if isinstance(size, int))


def _packed_answer(expected: Expected, pixels: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    kept = np.searchsorted(expected.pixels, pixels)  # a stored suite that is stored again has only these
    return {
        "logits": expected.logits[..., kept] if len(expected.pixels) > len(pixels) else expected.logits,
        "above": np.packbits(expected.above, axis=-1),
        "undecided": np.packbits(expected.undecided, axis=-1),
        **expected.scores,
    }


def _bits(reader: Reader, name: str, shape: tuple[int, int, int]) -> BoolArray:
    packed = reader.take(name, np.uint8, (*shape[:2], -(-shape[2] // 8)))
    return np.unpackbits(packed, axis=-1, count=shape[2]).astype(np.bool_)


def stored_form(name: str, value: FloatArray) -> NDArray[Any]:
    """Give an input in the type that a file keeps it in."""
    return value.astype(np.float16) if name in HALF else value


def feed_digest(image: Feed) -> str:
    """Identify a feed by its values."""
    digest = hashlib.sha256()
    for name in sorted(image):
        digest.update(name.encode() + np.ascontiguousarray(image[name], "<f4").tobytes())
    return digest.hexdigest()
