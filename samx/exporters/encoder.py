"""Export the image encoder of a checkpoint beside its decoder, as the target runs it."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from samx.artifacts.manifest import EncoderEntry
from samx.demo.model import demo_encoder, is_demo
from samx.errors import CheckpointError
from samx.exporters import onnx
from samx.exporters.base import Exported, ExportJob
from samx.models.encoders.load import Found, find_encoder
from samx.models.encoders.picture import ONE_PICTURE, picture_graph
from samx.models.graph import Graph
from samx.models.shape_range import ShapeRange
from samx.models.weight_files import open_weights
from samx.registry import INT8, backend

UNKNOWN = (
    "NO IMAGE ENCODER was exported: samx finds none of an architecture that it knows in '{name}'. The artifact is the "
    "decoder alone; give it embeddings, or an encoder as ONNX: 'samx segment --embedding', '--encoder'."
)
IN_FLOAT32 = "The image encoder computes in float32: target '{target}' has none in {precision}."
NOT_ASKED = "The image encoder computes in float32: '--encoder-precision int8' asks for it in INT8."
NO_CLIENT = "client/ has no image encoder: none of INT8 is written in the programs' signature."
ON_CPU = "The image encoder is run by ONNX Runtime on the CPU: target '{target}' does not run it itself."


def export_encoder(
    checkpoint: Path, job: ExportJob, pictures: ShapeRange | None, directory: Path, precision: str | None = None,
    write: Callable[[Graph, ExportJob, Path], Exported] | None = None,
) -> Exported:  # fmt: skip
    """Write a checkpoint's encoder into a directory, with what the manifest says of it; or a note that there is none.

    `write` stands in the place of the exporter's write_encoder().
    Raises: CheckpointError for half of one, or where pictures are asked for and there is none; as the exporter.
    """
    encoder, notes = load_encoder(checkpoint, job)
    if encoder is None:
        unknown = UNKNOWN.format(name=checkpoint.name)
        if pictures is not None:
            asked, expected = f"--pictures {pictures}", "an encoder that takes them"
            raise CheckpointError(unknown, found=asked, expected=expected, fix="Leave it out.")
        return Exported({}, {}, {}, notes=(unknown, *notes))
    taken, entry = pictures or ONE_PICTURE, backend(job.target)
    own = entry.encoder_precision(precision, job.precision)
    assert (own == INT8) == (write is not None), "an exporter writes what it is given, which is in floating point"
    writer = onnx if entry.encoder is None else importlib.import_module(entry.exporter)
    written: Exported = (write or writer.write_encoder)(
        picture_graph(encoder.module, job.spec, taken), replace(job, precision=own, pictures=taken), directory
    )
    said = EncoderEntry(encoder.architecture.name, encoder.module.picture_px, own, taken)
    if write is not None and getattr(job.options, "contract", None) is not None:
        notes = (*notes, NO_CLIENT)
    if not entry.encoder:
        notes = (*notes, ON_CPU.format(target=job.target))
    elif precision is None and own != job.precision:
        why = NOT_ASKED if job.precision in entry.encoder_precisions else IN_FLOAT32
        notes = (*notes, why.format(target=job.target, precision=job.precision))
    return Exported(written.files, {"encoder": said.to_json()}, written.tools, notes=(*notes, *written.notes))


def load_encoder(checkpoint: Path, job: ExportJob) -> Found:
    """Build a checkpoint's image encoder; none where there is none that is known."""
    if is_demo(checkpoint):
        return Found(demo_encoder(checkpoint, job.spec))
    return find_encoder(open_weights(checkpoint), job.spec, job.loaded.prefix)
