"""The pieces of a video's loop, graphs of their own beside the decoder: what each is asked, and what it has to answer.

All are ONNX, whatever the target, and answer on ONNX Runtime's CPU. Every value is compared at the export; a sample of
PyTorch's answers is kept, so that they can be compared again without PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from samx.artifacts.store import Artifact
from samx.errors import ParityError
from samx.extras import require
from samx.models.session import Feed, FloatArray, Outputs
from samx.models.spec import LABELS, DecoderSpec
from samx.validators.arrays import ArrayReader, pack
from samx.validators.cases import Draw, synthetic_images
from samx.validators.metrics import relative_error

CASES_FILE, CASES_ROLE = "video_cases.npz", "video_cases"
HEADER = {"format": "samx-video-cases", "schema_version": 1}
COMPARING = "comparing the pieces of a video's loop"
OBJECTS = (4, 1, 3)  # a call; four have all of: there or not, from clicks or not
SCORE, LOGIT = 5.0, 4.0  # of an object that is there; of masks, small enough that a sigmoid is no step
KEPT, STRIDE = 4096, 13  # of each answer's values; how the positions of those move on within their share of it


@dataclass(frozen=True)
class Piece:
    """Name a piece, what it is asked, and how far from PyTorch it may be, relative to an output's largest value."""

    title: str
    calls: Callable[[DecoderSpec], Iterator[Feed]]
    bound: float


def memory_calls(spec: DecoderSpec) -> Iterator[Feed]:
    """Draw calls of several objects: there or not, of masks from clicks or not.

    Masks are in steps that enlarging keeps exact, so that no pixel lies on one side here and on the other there.
    """
    for seed, objects in enumerate(OBJECTS):
        number = np.arange(objects)
        yield {
            "image_embeddings": synthetic_images(spec, seed, 1)[0]["image_embeddings"],
            "low_res_masks": _draw(spec, seed, objects).blobs(objects, LOGIT),
            "object_score_logits": np.where(number % 4 < 2, SCORE, -SCORE).astype(np.float32)[:, None],
            "is_mask_from_points": ((number + seed) % 2).astype(np.float32),
        }


def object_calls(spec: DecoderSpec) -> Iterator[Feed]:
    """Draw calls of several objects, each with an embedding of its own: clicked on, and without a prompt."""
    padding = np.full((1, 2), LABELS["padding"], np.float32)
    for seed, objects in enumerate(OBJECTS):
        images, draw = synthetic_images(spec, seed, objects), _draw(spec, seed, objects)
        embeddings = np.concatenate([image["image_embeddings"] for image in images])
        clicked = draw.points(objects, [LABELS["foreground"]])
        clicked = draw.with_mask(clicked, draw.blobs(objects, LOGIT), [1, 0]) if spec.mask_input else clicked
        frame = {**images[0], "image_embeddings": embeddings}
        yield {**frame, **clicked}
        nothing = {"point_coords": np.zeros((objects, 2, 2), np.float32), "point_labels": padding.repeat(objects, 0)}
        yield {**frame, **draw.with_mask(nothing, None, [0])}


# A sum in another order differs by about 1e-6; the masks' products add up more of those, as in the decoder's gate.
PIECES: Mapping[str, Piece] = {
    "memory_encoder": Piece("memory encoder", memory_calls, 5e-5),
    "object_decoder": Piece("decoder of objects", object_calls, 1e-4),
}


def _draw(spec: DecoderSpec, seed: int, objects: int) -> Draw:
    return Draw(spec, np.random.default_rng([seed, objects]), spec.image_size, spec.image_size)


def compare(graph: bytes, role: str, spec: DecoderSpec, expected: Sequence[Outputs]) -> float:
    """Return how far a graph is from PyTorch's answers, relative to each output's largest value.

    expected: all values of each call's outputs, or the sample() of each.
    Raises: ParityError beyond the bound, and for what cannot be compared.
    """
    onnxruntime = require("onnxruntime", "onnxruntime", COMPARING)
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    worst, piece = 0.0, PIECES[role]
    for feed, answers in zip(piece.calls(spec), expected, strict=True):
        found = dict(zip(names, session.run(None, dict(feed)), strict=True))
        if found.keys() != answers.keys():
            raise _refusal(piece, f"outputs {', '.join(found)}")
        worst = max(worst, *(_distance(piece, found[name], value) for name, value in answers.items()))
    if worst > piece.bound:
        raise _refusal(piece, f"relative error {worst:.3g}")
    return worst


def _distance(piece: Piece, found: FloatArray, expected: FloatArray) -> float:
    found = sample(found) if expected.ndim == 1 else found
    if found.shape != expected.shape or not np.isfinite(found).all() or not np.isfinite(expected).all():
        raise _refusal(piece, f"shape {found.shape}, or values that are not finite")
    return relative_error(expected, found)


def _refusal(piece: Piece, found: str) -> ParityError:
    return ParityError(
        f"the {piece.title}'s graph computes something else than PyTorch", found=found,
        expected=f"at most {piece.bound:g} of the largest value",
        fix="Do not use it; export without it, and please report this.",
    )  # fmt: skip


def sample(value: FloatArray) -> FloatArray:
    """Choose values spread over all of an answer. Shapes: any -> (KEPT or fewer,)."""
    flat = value.reshape(-1)
    number, share = np.arange(min(KEPT, flat.size)), max(flat.size // KEPT, 1)
    return flat[number * share + number * STRIDE % share]


def packed(expected: Mapping[str, Sequence[Outputs]]) -> bytes:
    """Return the file of what PyTorch answered each piece's calls, a sample of it."""
    arrays = {
        f"{role}{i}.{name}": sample(value)
        for role, calls in expected.items() for i, answers in enumerate(calls) for name, value in answers.items()
    }  # fmt: skip
    return pack({**HEADER, "outputs": {role: sorted(calls[0]) for role, calls in expected.items()}}, arrays)


def stored(artifact: Artifact) -> dict[str, list[Outputs]]:
    """Read what PyTorch answered at the export.

    Raises: ArtifactError for anything that packed() would not have returned.
    """
    reader = ArrayReader(artifact.read(artifact.file_with_role(CASES_ROLE)), CASES_FILE)
    fixed: dict[str, Any] = {"outputs": dict[str, list[str]]}
    outputs = reader.header((HEADER, fixed))["outputs"]
    spec = artifact.manifest.spec
    found = {
        role: [
            {name: reader.take(f"{role}{i}.{name}", np.float32, (None,)) for name in outputs.get(role, ())}
            for i, _ in enumerate(PIECES[role].calls(spec))
        ]
        for role in written(artifact)
    }
    reader.finish()
    return found


def written(artifact: Artifact) -> list[str]:
    """Name the pieces that an artifact has."""
    return [role for role in PIECES if role in artifact.manifest.options]


def check(artifact: Artifact, expected: Mapping[str, Sequence[Outputs]]) -> list[str]:
    """Compare an artifact's pieces again; gives what is wrong."""
    return list(chain.from_iterable(_check(artifact, role, answers) for role, answers in expected.items()))


def _check(artifact: Artifact, role: str, expected: Sequence[Outputs]) -> list[str]:
    try:
        compare(artifact.read(artifact.file_with_role(role)), role, artifact.manifest.spec, expected)
    except ParityError as error:
        return [f"{error.what}: {error.found}"]
    return []
