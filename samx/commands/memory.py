"""The memory encoder of a checkpoint beside its decoder: written as ONNX, whatever the target, and compared here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from samx.errors import ParityError
from samx.extras import require
from samx.models.session import Feed, FloatArray
from samx.models.spec import DecoderSpec
from samx.validators.cases import Draw, synthetic_images
from samx.validators.metrics import relative_error

if TYPE_CHECKING:
    from samx.exporters.base import Exported, ExportJob
    from samx.models.memory_encoder import MemoryEncoder

POSITIONS_FILE, POSITIONS_ROLE = "memory_positions.npy", "memory_positions"
COMPARING = "comparing the memory encoder"
BOUND = 5e-5  # of the largest value; sums in another order differ by about 1e-6
OBJECTS = (4, 1, 3)  # a call; four have all of: there or not, from clicks or not
SCORE, LOGIT = 5.0, 4.0  # of an object that is there; of masks, small enough that a sigmoid is no step
NOTE = (
    "memory_encoder.onnx is for ONNX Runtime or any reader of ONNX, whatever the target; it was compared with PyTorch "
    "at this export, and 'samx validate' does not compare it again."
)


def step(checkpoint: Path, job: ExportJob) -> Callable[[Exported, Path], Exported]:
    """Read a checkpoint's memory encoder; return what writes it beside an export.

    Raises: CheckpointError where it has none that samx knows; MissingExtraError for what compares it.
    """
    require("onnxruntime", "onnxruntime", COMPARING)
    from samx.models.memory_encoder import load_memory_encoder
    from samx.models.weight_files import open_weights

    module = load_memory_encoder(open_weights(checkpoint), job.spec, job.loaded.prefix)
    return lambda exported, directory: with_memory_encoder(exported, module, directory)


def with_memory_encoder(exported: Exported, module: MemoryEncoder, directory: Path) -> Exported:
    """Write the memory encoder and its positions beside an export, and compare it with PyTorch.

    Raises: ParityError when the graph computes something else.
    """
    from samx.exporters.onnx import write_onnx

    graph = module.graph()
    written = write_onnx([graph], directory, simplify=False)
    error = compare(directory / f"{graph.role}.onnx", module)
    np.save(directory / POSITIONS_FILE, module.positions().numpy())
    said: dict[str, Any] = {
        "inputs": [asdict(tensor) for tensor in graph.inputs], "outputs": [asdict(tensor) for tensor in graph.outputs],
        "calls": len(OBJECTS), "relative_error": error, "bound": BOUND,
    }  # fmt: skip
    return replace(
        exported, files={**exported.files, **written.files, POSITIONS_FILE: POSITIONS_ROLE},
        options={**exported.options, graph.role: said}, tools={**written.tools, **exported.tools},
        notes=(*exported.notes, NOTE),
    )  # fmt: skip


def compare(path: Path, module: MemoryEncoder) -> float:
    """Return how far a graph's memories are from PyTorch's, relative to the largest value.

    Raises: ParityError beyond the bound, and for what cannot be compared.
    """
    import torch

    onnxruntime = require("onnxruntime", "onnxruntime", COMPARING)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    worst = 0.0
    for feed in questions(module.spec):
        with torch.inference_mode():
            expected = module(*(torch.from_numpy(feed[tensor.name]) for tensor in module.inputs)).numpy()
        worst = max(worst, _distance(session.run(None, dict(feed))[0], expected))
    if worst > BOUND:
        raise _refusal(f"relative error {worst:.3g}")
    return worst


def _distance(found: FloatArray, expected: FloatArray) -> float:
    if found.shape != expected.shape or not np.isfinite(found).all() or not np.isfinite(expected).all():
        raise _refusal(f"shape {found.shape}, or values that are not finite")
    return relative_error(expected, found)


def questions(spec: DecoderSpec) -> Iterator[Feed]:
    """Draw calls of several objects: there or not, of masks from clicks or not.

    Masks are in steps that enlarging keeps exact, so that no pixel lies on one side here and on the other there.
    """
    for seed, objects in enumerate(OBJECTS):
        draw = Draw(spec, np.random.default_rng([seed, objects]), spec.image_size, spec.image_size)
        number = np.arange(objects)
        yield {
            "image_embeddings": synthetic_images(spec, seed, 1)[0]["image_embeddings"],
            "low_res_masks": draw.blobs(objects, LOGIT),
            "object_score_logits": np.where(number % 4 < 2, SCORE, -SCORE).astype(np.float32)[:, None],
            "is_mask_from_points": ((number + seed) % 2).astype(np.float32),
        }


def _refusal(found: str) -> ParityError:
    return ParityError(
        "the memory encoder's graph computes something else than PyTorch", found=found,
        expected=f"at most {BOUND:g} of the largest value",
        fix="Nothing was written. Leave --memory-encoder out, and please report this.",
    )  # fmt: skip
