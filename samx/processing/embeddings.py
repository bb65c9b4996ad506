"""Image embeddings in files: what an encoder made of a picture, tagged with the encoder and the picture.

A file that samx did not write has no tag, and is taken for what it is said to be.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from samx.artifacts.manifest import ENCODER_ROLES, Manifest
from samx.artifacts.strict_json import Document, Positive, Sha256, parse
from samx.errors import ArtifactError, ImageError
from samx.files import open_regular, reading
from samx.models.session import Feed, FloatArray
from samx.models.spec import DecoderSpec, TensorSpec

EMBEDDING_DTYPES = ("float16", "float32", "float64")
SUFFIX = ".npz"
TAG = "samx_embedding"  # beside the arrays: JSON as bytes
TAG_CAP_BYTES = 4096


@dataclass(frozen=True)
class Tag(Document):
    """Say what an embedding is of. Units: px of the picture."""

    HEADER = {"format": "samx-embedding", "schema_version": 1}
    INDENT = None

    encoder: Sha256
    picture: Sha256  # of its pixels
    height_px: Positive
    width_px: Positive

    @classmethod
    def of(cls, encoder: str, picture: NDArray[np.uint8]) -> Tag:
        """Describe what an encoder made of a picture."""
        return cls(encoder, hashlib.sha256(picture.tobytes()).hexdigest(), *picture.shape[:2])

    @property
    def original_size(self) -> tuple[int, int]:
        """Return the picture's height and width."""
        return self.height_px, self.width_px

    def check_encoder(self, own: str | None) -> None:
        """Refuse an embedding that another encoder made; None: it is not known which is meant.

        Raises: ImageError.
        """
        if own is not None and own != self.encoder:
            raise ImageError(
                "this embedding was made by another image encoder", found=f"sha256 {self.encoder}", expected=own,
                fix="Make it with this artifact: samx encode PICTURE --model DIR -o FILE.npz.",
            )  # fmt: skip

    def check_picture(self, picture: NDArray[np.uint8]) -> None:
        """Refuse an embedding of another picture.

        Raises: ImageError.
        """
        if self.original_size != picture.shape[:2]:
            raise ImageError(
                "embedding: it is of another picture", found=self.original_size, expected=picture.shape[:2]
            )
        if self != Tag.of(self.encoder, picture):
            fix = "Encode this one: samx encode PICTURE --model DIR -o FILE.npz; 16-bit ones with the same --levels."
            raise ImageError("embedding: it is of another picture of this size", fix=fix)

    def to_array(self) -> NDArray[np.uint8]:
        """Return the tag as it lies in a file."""
        return np.frombuffer(self.to_bytes(), np.uint8)

    @classmethod
    def from_array(cls, array: NDArray[Any], where: str) -> Tag:
        """Read the tag.

        Raises: ImageError for anything that to_array() would not have returned.
        """
        try:
            if array.dtype != np.uint8 or array.ndim != 1 or array.size > TAG_CAP_BYTES:
                raise ArtifactError(f"{where}: {TAG} is no tag", found=f"{array.dtype} {array.shape}")
            return cls.from_json(parse(array.tobytes(), f"{where}: {TAG}"), f"{where}: {TAG}")
        except ArtifactError as error:
            raise ImageError(error.what, found=error.found, expected=error.expected, fix=error.fix) from error


def encoder_id(manifest: Manifest) -> str | None:
    """Return what tells an artifact's encoder from others: its file's hash, of several files one over theirs."""
    hashes = sorted(file.sha256 for file in manifest.files.values() if file.role in ENCODER_ROLES)
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest() if hashes else None


def embedding_bytes(features: Feed, tag: Tag) -> bytes:
    """Return features and their tag as a file's content, .npz."""
    buffer = io.BytesIO()
    arrays: dict[str, Any] = {**features, TAG: tag.to_array()}
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def is_tagged(path: Path) -> bool:
    """Tell whether a file has a tag; one that cannot be read has none."""
    try:
        with zipfile.ZipFile(path) as archive:
            return f"{TAG}.npy" in archive.namelist()
    except (OSError, ValueError, zipfile.BadZipFile):
        return False


def read_embedding(path: Path, spec: DecoderSpec) -> Feed:
    """Read an embedding whose picture and encoder do not matter; the rest as read_tagged()."""
    return read_tagged(path, spec)[0]


def read_tagged(path: Path, spec: DecoderSpec) -> tuple[Feed, Tag | None]:
    """Read an image encoder's output: .npz with one array per image input, or .npy where there is only one;
    and its tag, if it has one.

    Shapes: DecoderSpec.image_inputs, from float16, float32 or float64.
    Raises: ImageError on other names, shapes or types, on values that are not finite, and on a damaged file.
    """
    what = f"file '{path}'"
    with open_regular(path, what, ImageError) as file, reading(what, ImageError):
        try:
            return _read_npz(path, file, spec) if zipfile.is_zipfile(file) else (_read_npy(path, file, spec), None)
        except (ImageError, MemoryError):
            raise
        except Exception as error:  # damaged files make zipfile and NumPy raise nearly anything
            fix = "Save it with numpy.savez or numpy.save, without pickled objects."
            raise ImageError(f"embedding '{path}' is no readable NumPy file", found=error, fix=fix) from error


def _read_npz(path: Path, file: IO[bytes], spec: DecoderSpec) -> tuple[Feed, Tag | None]:
    with zipfile.ZipFile(file) as archive:
        names = {name.removesuffix(".npy") for name in archive.namelist()}
        _check_names(path, names - {TAG}, spec)
        feed = {}
        for tensor in spec.image_inputs:
            with archive.open(f"{tensor.name}.npy") as stream:
                feed[tensor.name] = _read_tensor(path, stream, tensor)
        return feed, _read_tag(path, archive) if TAG in names else None


def _read_tag(path: Path, archive: zipfile.ZipFile) -> Tag:
    with archive.open(f"{TAG}.npy") as stream:
        shape, dtype = _header(stream)
        if len(shape) != 1 or shape[0] > TAG_CAP_BYTES:
            raise ImageError(f"'{TAG}' in embedding '{path}' is no tag", found=f"{dtype} {shape}")
        stream.seek(0)
        return Tag.from_array(npy_format.read_array(stream, allow_pickle=False), f"embedding '{path}'")


def _read_npy(path: Path, file: IO[bytes], spec: DecoderSpec) -> Feed:
    """Read a single array, which has no name: it can only be the first image input."""
    first = spec.image_inputs[0]
    file.seek(0)
    npy_format.read_magic(file)  # first, so that a file of another kind is told so
    _check_names(path, {first.name}, spec)
    file.seek(0)
    return {first.name: _read_tensor(path, file, first)}


def _check_names(path: Path, found: set[str], spec: DecoderSpec) -> None:
    expected = {tensor.name for tensor in spec.image_inputs}
    if found != expected:
        raise ImageError(
            f"embedding '{path}' holds other arrays than the decoder takes",
            found=", ".join(sorted(found)) or "none", expected=", ".join(sorted(expected)),
            fix=f"Save exactly these arrays in one .npz: {spec.embedding_contract}.",
        )  # fmt: skip


def _read_tensor(path: Path, stream: IO[bytes], tensor: TensorSpec) -> FloatArray:
    """Read one array; its header is checked first, so that no file makes samx allocate more than the spec's shape."""
    what = f"'{tensor.name}' in embedding '{path}'"
    shape, dtype = _header(stream)
    if shape != tensor.shape:
        fix = "Use the embedding of one picture, made for this model."
        raise ImageError(f"{what} has the wrong shape", found=shape, expected=tensor.shape, fix=fix)
    if dtype.name not in EMBEDDING_DTYPES:
        raise ImageError(f"{what} has the wrong type", found=dtype.name, expected=" or ".join(EMBEDDING_DTYPES))
    stream.seek(0)
    with np.errstate(over="ignore"):  # a value beyond float32 becomes inf, which the next line refuses
        values = npy_format.read_array(stream, allow_pickle=False).astype(np.float32, order="C")
    if not np.isfinite(values).all():
        raise ImageError(f"{what} has values that are not finite", fix="Run the image encoder again, at fp32.")
    return values


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = npy_format.read_magic(stream)
    read_header = npy_format.read_array_header_1_0 if version == (1, 0) else npy_format.read_array_header_2_0
    shape, _, dtype = read_header(stream)
    return shape, dtype
