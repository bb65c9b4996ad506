"""Export the image encoder of a checkpoint beside its decoder, as the target runs it."""

from __future__ import annotations

import importlib
from pathlib import Path

from samx.artifacts.manifest import EncoderEntry
from samx.demo.model import demo_encoder, is_demo
from samx.errors import CheckpointError
from samx.exporters import onnx
from samx.exporters.base import Exported, ExportJob
from samx.models.encoders.load import LoadedEncoder, find_encoder
from samx.models.encoders.picture import ONE_PICTURE, picture_graph
from samx.models.shape_range import ShapeRange
from samx.registry import backend

UNKNOWN = (
    "NO IMAGE ENCODER was exported: samx finds none of an architecture that it knows in '{name}'. The artifact is the "
    "decoder alone; give it embeddings, or an encoder as ONNX: 'samx segment --embedding', '--encoder'."
)
ON_CPU = "The image encoder is run by ONNX Runtime on the CPU: target '{target}' does not run it itself."


def export_encoder(checkpoint: Path, job: ExportJob, pictures: ShapeRange | None, directory: Path) -> Exported:
    """Write a checkpoint's encoder into a directory, with what the manifest says of it; or a note that there is none.

    Raises: CheckpointError for half of one, or where pictures are asked for and there is none; as the exporter.
    """
    found = _loaded(checkpoint, job)
    if found is None:
        unknown = UNKNOWN.format(name=checkpoint.name)
        if pictures is not None:
            fix = "Leave --pictures out."
            raise CheckpointError(
                unknown, found=f"--pictures {pictures}", expected="an encoder that takes them", fix=fix
            )
        return Exported({}, {}, {}, notes=(unknown,))
    taken, entry = pictures or ONE_PICTURE, backend(job.target)
    writer = onnx if entry.encoder is None else importlib.import_module(entry.exporter)
    written: Exported = writer.write_encoder(picture_graph(found.module, job.spec, taken), job, directory)
    said = EncoderEntry(found.architecture.name, found.module.picture_px, "fp32", taken)
    notes = () if entry.encoder else (ON_CPU.format(target=job.target),)
    return Exported(written.files, {"encoder": said.to_json()}, written.tools, notes=(*found.notes, *notes))


def _loaded(checkpoint: Path, job: ExportJob) -> LoadedEncoder | None:
    return demo_encoder(checkpoint, job.spec) if is_demo(checkpoint) else find_encoder(checkpoint, job.loaded)
