"""The pieces of a video's loop, built from a checkpoint, written as ONNX whatever the target, and compared here."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from samx.artifacts.commit import write_file
from samx.errors import UsageError
from samx.extras import require
from samx.models.session import Outputs
from samx.validators.video_pieces import CASES_FILE, CASES_ROLE, COMPARING, PIECES, compare, packed

if TYPE_CHECKING:
    from torch import Tensor

    from samx.exporters.base import Exported, ExportJob
    from samx.models.graph import Graph

POSITIONS_FILE, POSITIONS_ROLE = "memory_positions.npy", "memory_positions"
NOTE = "{files}: for ONNX Runtime or any reader of ONNX, whatever the target, in float32."


@dataclass(frozen=True)
class InTorch:
    """Hold a piece: the graph to write, what it is judged by, and the positions that go with it where it has some."""

    graph: Graph
    reference: Callable[..., Any]  # takes the graph's inputs in their order; gives a tensor, or outputs by name
    positions: Tensor | None = None

    @property
    def role(self) -> str:
        """Return the piece's name."""
        return self.graph.role

    def expected(self, job: ExportJob) -> list[Outputs]:
        """Answer the piece's calls."""
        import torch

        names = [tensor.name for tensor in self.graph.inputs]
        found = []
        with torch.inference_mode():
            for feed in PIECES[self.role].calls(job.spec):
                answer = self.reference(**{name: torch.from_numpy(feed[name]) for name in names})
                answer = answer if isinstance(answer, dict) else {self.graph.outputs[0].name: answer}
                found.append({name: value.numpy() for name, value in answer.items()})
        return found


def step(checkpoint: Path, job: ExportJob, roles: Collection[str]) -> Callable[[Exported, Path], Exported]:
    """Read the pieces that were asked for; return what writes them beside an export.

    Raises: CheckpointError, UsageError where there are none that samx knows; MissingExtraError for what compares them.
    """
    require("onnxruntime", "onnxruntime", COMPARING)
    pieces = in_torch(checkpoint, job, roles)
    return lambda exported, directory: with_pieces(exported, pieces, job, directory)


def in_torch(checkpoint: Path, job: ExportJob, roles: Collection[str]) -> list[InTorch]:
    """Build pieces from a checkpoint.

    Raises: CheckpointError, UsageError where there are none that samx knows.
    """
    return [BUILDERS[role](checkpoint, job) for role in roles]


def _memory_encoder(checkpoint: Path, job: ExportJob) -> InTorch:
    from samx.models.memory_encoder import load_memory_encoder
    from samx.models.weight_files import open_weights

    module = load_memory_encoder(open_weights(checkpoint), job.spec, job.loaded.prefix)
    names = [tensor.name for tensor in module.inputs]
    return InTorch(module.graph(), lambda **feed: module(*(feed[name] for name in names)), module.positions())


def _object_decoder(checkpoint: Path, job: ExportJob) -> InTorch:
    from samx.models.checkpoint import build_reference
    from samx.models.fast.graphs import object_graph

    rules = job.spec.rules
    if not rules.remembers:
        raise UsageError(
            f"{rules.title} has no objects with an embedding each", found="--object-embeddings",
            expected="SAM 2, whose memory gives each object of a video its own", fix="Leave it out.",
        )  # fmt: skip
    return InTorch(object_graph(job.loaded, job.spec), build_reference(replace(job.loaded, spec=job.spec)))


BUILDERS: Mapping[str, Callable[[Path, ExportJob], InTorch]] = {
    "memory_encoder": _memory_encoder, "object_decoder": _object_decoder,
}  # fmt: skip


def with_pieces(exported: Exported, pieces: Sequence[InTorch], job: ExportJob, directory: Path) -> Exported:
    """Write pieces beside an export, and compare them with PyTorch.

    Raises: ParityError when a graph computes something else.
    """
    from samx.exporters.onnx import write_onnx

    files, tools, said = dict(exported.files), dict(exported.tools), dict(exported.options)
    expected = {piece.role: piece.expected(job) for piece in pieces}
    for piece in pieces:
        written = write_onnx([piece.graph], directory, simplify=False)
        files |= written.files
        tools = {**written.tools, **tools}
        graph = (directory / f"{piece.role}.onnx").read_bytes()
        said[piece.role] = _said(piece.graph, compare(graph, piece.role, job.spec, expected[piece.role]))
        if piece.positions is not None:
            np.save(directory / POSITIONS_FILE, piece.positions.numpy())
            files[POSITIONS_FILE] = POSITIONS_ROLE
    write_file(directory / CASES_FILE, packed(expected))
    files[CASES_FILE] = CASES_ROLE
    note = NOTE.format(files=", ".join(f"{piece.role}.onnx" for piece in pieces))
    return replace(exported, files=files, options=said, tools=tools, notes=(*exported.notes, note))


def _said(graph: Graph, error: float) -> dict[str, Any]:
    """Return what the manifest says of a piece."""
    tensors = {"inputs": graph.inputs, "outputs": graph.outputs}
    return {
        **{name: [asdict(tensor) for tensor in of] for name, of in tensors.items()},
        "relative_error": error, "bound": PIECES[graph.role].bound,
    }  # fmt: skip
