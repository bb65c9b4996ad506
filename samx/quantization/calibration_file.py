"""The file of a CalibrationSet: one .npz without pickles, read strictly.

It is not compressed: float16 embeddings shrink by a sixth only, and the bytes, with them the hash, would depend on the
machine's version of zlib.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from samx.artifacts import strict_json as read
from samx.errors import ArtifactError
from samx.models.session import Feed, FloatArray
from samx.models.spec import DecoderSpec
from samx.quantization.samples import Sample
from samx.validators import suite_file
from samx.validators.suite_file import HEADER, UNPACKED_CAP_BYTES

if TYPE_CHECKING:
    from samx.quantization.calibration import CalibrationSet

FORMAT = "samx-calibration-set"
SCHEMA_VERSION = 1
PARTS = ("samples", "held_out")
HEADER_FIELDS = ("format", "schema_version", "spec", "source", "seed", "checkpoint_sha256", "scenes", "images", *PARTS)
SAMPLE_FIELDS = ("kind", "image", "mask")


def pack(found: CalibrationSet) -> bytes:
    """Write a set; the same set gives the same bytes."""
    header = {
        "format": FORMAT,
        "schema_version": SCHEMA_VERSION,
        "spec": found.spec.to_json(),
        "source": found.source,
        "seed": found.seed,
        "checkpoint_sha256": found.checkpoint_sha256,
        "scenes": list(found.scenes),
        "images": len(found.images),
        **{part: [_entry(sample) for sample in getattr(found, part)] for part in PARTS},
    }
    arrays: dict[str, Any] = {HEADER: np.frombuffer(json.dumps(header).encode(), np.uint8)}
    for i, image in enumerate(found.images):
        arrays.update(_stored(f"image{i}", image))
    for part in PARTS:
        for i, sample in enumerate(getattr(found, part)):
            arrays.update(_stored(f"{part}{i}", sample.prompts))
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def read_bytes(path: Path) -> bytes:
    """Read a file that the user named.

    Raises: ArtifactError when it is not there or too large.
    """
    try:
        size = path.stat().st_size
        if size > UNPACKED_CAP_BYTES:
            expected = f"at most {UNPACKED_CAP_BYTES} bytes"
            raise ArtifactError(f"file '{path}' is too large for a calibration set", found=size, expected=expected)
        return path.read_bytes()
    except OSError as cause:
        fix = "Check the path."
        raise ArtifactError(f"calibration set '{path}' cannot be read", found=cause.strerror, fix=fix) from cause


def unpack(data: bytes, where: str) -> dict[str, Any]:
    """Read a set's fields.

    Raises: ArtifactError when an array is missing, unknown, or of another type or shape than the spec says.
    """
    reader = suite_file.Reader(suite_file.read_arrays(data, where), where)
    header = read.fields(read.parse(reader.take(HEADER, np.uint8, None).tobytes(), where), HEADER_FIELDS, where)
    if (header["format"], header["schema_version"]) != (FORMAT, SCHEMA_VERSION):
        raise ArtifactError(f"{where} has another format", expected=f"{FORMAT} {SCHEMA_VERSION}", fix=read.REMEDY)
    spec = DecoderSpec.from_json(read.mapping(header["spec"], f"{where}: spec"))
    fields = {
        "spec": spec,
        "images": tuple(_images(reader, spec, read.count(header["images"], f"{where}: images"))),
        **{part: tuple(_samples(reader, spec, part, header[part])) for part in PARTS},
        "scenes": tuple(read.count(seed, f"{where}: scenes") for seed in read.items(header["scenes"], where)),
        "source": read.text(header["source"], f"{where}: source"),
        "seed": read.count(header["seed"], f"{where}: seed"),
        "checkpoint_sha256": read.text(header["checkpoint_sha256"], f"{where}: checkpoint_sha256"),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    reader.finish()
    return fields


def _stored(prefix: str, feed: Feed) -> dict[str, NDArray[Any]]:
    return {f"{prefix}.{name}": suite_file.stored_form(name, value) for name, value in sorted(feed.items())}


def _entry(sample: Sample) -> dict[str, Any]:
    return {"kind": sample.kind, "image": sample.image, "mask": "mask_input" in sample.prompts}


def _images(reader: suite_file.Reader, spec: DecoderSpec, count: int) -> Iterator[Feed]:
    for i in range(count):
        yield {tensor.name: suite_file.take_input(reader, f"image{i}", tensor, None) for tensor in spec.image_inputs}


def _samples(reader: suite_file.Reader, spec: DecoderSpec, part: str, entries: Any) -> Iterator[Sample]:
    for i, entry in enumerate(read.items(entries, f"{reader.where}: {part}")):
        prefix = f"{part}{i}"
        where = f"{reader.where}: {prefix}"
        found = read.fields(entry, SAMPLE_FIELDS, where)
        kind, image = read.text(found["kind"], f"{where}: kind"), read.count(found["image"], f"{where}: image")
        tensors = replace(spec, mask_input=read.flag(found["mask"], f"{where}: mask")).prompt_inputs
        prompts: dict[str, FloatArray] = {}
        for tensor in tensors:
            prompts[tensor.name] = suite_file.take_input(reader, prefix, tensor, prompts.get("point_coords"))
        yield Sample(kind, image, prompts)
