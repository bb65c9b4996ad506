"""Feeds in .npz files without pickles: what suites and calibration sets are kept in, read strictly."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samx.artifacts.strict_json import contents, parse, refusal
from samx.models.session import Feed, FloatArray
from samx.models.spec import TensorSpec

HEADER, VERSION = "header", "schema_version"
UNPACKED_CAP_BYTES = 1024**3  # the default suite unpacks to about 10 MiB; more is an attack on the memory
HALF = (  # tensors that are stored as float16
    "image_embeddings", "high_res_features_0", "high_res_features_1", "interm_embeddings", "mask_input",
)  # fmt: skip


def stored_form(name: str, value: FloatArray) -> NDArray[Any]:
    """Return an input in the type that a file keeps it in."""
    return value.astype(np.float16) if name in HALF else value


def storable(name: str, value: FloatArray) -> FloatArray:
    """Round an input to what a file keeps of it."""
    return stored_form(name, value).astype(np.float32)


def frozen(feed: Feed) -> Feed:
    """Round a feed to what a file keeps of it, and forbid to write into it."""
    with np.errstate(over="ignore"):  # a value beyond float16 becomes inf, which is refused
        rounded = {name: storable(name, value) for name, value in feed.items()}
    for value in rounded.values():
        value.setflags(write=False)
    return rounded


def feed_digest(feed: Feed) -> str:
    """Identify a feed by its values."""
    digest = hashlib.sha256()
    for name in sorted(feed):
        digest.update(name.encode() + np.ascontiguousarray(feed[name], "<f4").tobytes())
    return digest.hexdigest()


def stored(prefix: str, feed: Feed) -> dict[str, NDArray[Any]]:
    """Return a feed as the arrays of a file, each under the prefix and its own name."""
    return {f"{prefix}.{name}": stored_form(name, value) for name, value in sorted(feed.items())}


def pack(
    header: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]], save: Callable[..., None] = np.savez_compressed
) -> bytes:
    """Return a file's content. No array of objects is among them, so nothing is pickled."""
    buffer = io.BytesIO()
    save(buffer, **{HEADER: np.frombuffer(json.dumps(header).encode(), np.uint8), **arrays})
    return buffer.getvalue()


class ArrayReader:
    """Hand a file's arrays out, each once and only as expected.

    Raises: ArtifactError when it is damaged or unpacks to too much.
    """

    def __init__(self, data: bytes, where: str) -> None:
        self.arrays, self.where = _arrays(data, where), where

    def header(self, *forms: tuple[Mapping[str, Any], Mapping[str, Any]]) -> dict[str, Any]:
        """Take the header: fixed values, and fields of these types; of the first form, or of an earlier one."""
        found = parse(self.take(HEADER, np.uint8, None).tobytes(), self.where)
        version = found.get(VERSION) if isinstance(found, dict) else None
        fixed, shape = next((form for form in forms if form[0][VERSION] == version), forms[0])
        return contents(found, fixed, shape, self.where)

    def take(self, name: str, dtype: Any, shape: tuple[int | None, ...] | None) -> NDArray[Any]:
        """Take an array; None stands for any size."""
        value = self.arrays.pop(name, None)
        if value is None:
            raise refusal(f"{self.where} has no array '{name}'")
        fits = shape is None or (
            len(shape) == value.ndim
            and all(want in (None, have) for want, have in zip(shape, value.shape, strict=True))
        )
        if value.dtype != dtype or not fits or not np.isfinite(value).all():
            found, expected = f"{value.dtype} {value.shape}", f"finite {np.dtype(dtype)} {shape}"
            raise refusal(f"{self.where}: array '{name}' is unusable", found, expected)
        return value

    def feed(self, prefix: str, tensors: Sequence[TensorSpec]) -> Feed:
        """Take a decoder's inputs in float32; named axes are those of the coordinates, which come first."""
        feed: dict[str, FloatArray] = {}
        known: dict[str, int] = {}
        for tensor in tensors:
            shape = tuple(known.get(size) if isinstance(size, str) else size for size in tensor.shape)
            dtype = np.float16 if tensor.name in HALF else np.float32
            feed[tensor.name] = self.take(f"{prefix}.{tensor.name}", dtype, shape).astype(np.float32)
            if tensor.name == "point_coords":
                known = dict(zip(("prompts", "points"), feed[tensor.name].shape, strict=False))
        return feed

    def finish(self) -> None:
        """Refuse what nothing asked for."""
        if self.arrays:
            raise refusal(f"{self.where} has unknown arrays", sorted(self.arrays)[0])


def _arrays(data: bytes, where: str) -> dict[str, NDArray[Any]]:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as file:
            if sum(entry.file_size for entry in file.infolist()) > UNPACKED_CAP_BYTES:
                raise ValueError("unpacks to too many bytes")
        with np.load(io.BytesIO(data), allow_pickle=False) as found:
            return {name: found[name] for name in found.files}
    except Exception as cause:  # damaged files make zipfile and NumPy raise nearly anything
        raise refusal(f"{where} cannot be read", type(cause).__name__) from cause
