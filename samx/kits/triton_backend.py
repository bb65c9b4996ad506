"""Parts of an artifact that Triton's own backends run: model.py asks for them over the server, without leaving it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from samx.artifacts.manifest import ENCODER_ROLE
from samx.artifacts.store import Artifact
from samx.artifacts.strict_json import Document
from samx.errors import ArtifactError, ParityError, UnavailableError
from samx.models.session import Feed, Outputs, Placement
from samx.models.spec import DecoderSpec
from samx.picture_encoder import RunLevels
from samx.runtimes.base import Padding, Runtime, graph_roles

PARTS_FILE = "backend.json"  # beside model.py
VERSION = "1"

Tensors = Mapping[str, Any]  # of Triton, by name; they lie where Triton put them


@dataclass(frozen=True)
class Port:
    """Describe one tensor that goes in or comes out; a string in the shape is a dynamic axis."""

    name: str
    dtype: str
    shape: tuple[str | int, ...]


@dataclass(frozen=True)
class Part:
    """Describe one model of the repository: its files, that which is opened first, each with the artifact's name."""

    files: Mapping[str, str]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]


@dataclass(frozen=True)
class Parts(Document):
    """Describe what one of Triton's backends runs, by the files' roles; most_prompts: in one call."""

    HEADER = {"format": "samx-triton-backend", "schema_version": 1}

    backend: str
    most_prompts: int
    parts: Mapping[str, Part]

    def check_copies(self, artifact: Artifact, models: Path) -> None:
        """Compare the models that lie beside with the artifact's hashes. Where Triton brought this one here alone, from
        a store in the cloud, none does.

        Raises: ArtifactError.
        """
        copies = [
            (models / model_name(role) / VERSION / file, source)
            for role, part in self.parts.items() for file, source in part.files.items()
        ]  # fmt: skip
        for copy, source in copies:
            true = artifact.manifest.files[source].sha256
            if copy.is_file() and hashlib.sha256(copy.read_bytes()).hexdigest() != true:
                raise ArtifactError(f"{copy} is not the artifact's {source}", fix="Write the folder again.")


def model_name(role: str) -> str:
    """Return what a part is called in the repository."""
    return f"samx_{role}"


@dataclass(frozen=True)
class Remote:
    """One of the server's other models."""

    triton: Any
    role: str
    part: Part

    def ask(self, inputs: Tensors, **where: Any) -> Tensors:
        """Return its outputs.

        Raises: UnavailableError for an error of the backend; ParityError for other tensors than its file has.
        """
        request = self.triton.InferenceRequest(
            model_name=model_name(self.role), requested_output_names=[port.name for port in self.part.outputs],
            inputs=list(inputs.values()), **where,
        )  # fmt: skip
        response = request.exec()
        if response.has_error():
            fix = "The server's log has more; load the model again, or write the folder without --backend."
            raise UnavailableError(self._named("gives no answer"), found=response.error().message(), fix=fix)
        found = {tensor.name(): tensor for tensor in response.output_tensors()}
        self._compare({name: tuple(tensor.shape()) for name, tensor in found.items()}, self._shapes(inputs))
        return found

    def arrays(self, inputs: Tensors) -> dict[str, NDArray[Any]]:
        """Return its outputs, copied: Triton's own memory is shared and small.

        Raises: as ask().
        """
        memory = self.triton.PreferredMemory(self.triton.TRITONSERVER_MEMORY_CPU, 0)
        found = self.ask(inputs, preferred_memory=memory)
        copies = {name: np.array(tensor.as_numpy()) for name, tensor in found.items()}
        types = {port.name: port.dtype for port in self.part.outputs}
        self._compare({name: value.dtype.name for name, value in copies.items()}, types)
        return copies

    def __call__(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Compute as a runtime's function does.

        Raises: as ask().
        """
        return self.arrays(sent(self.triton, inputs))

    def _shapes(self, inputs: Tensors) -> dict[str, tuple[int, ...]]:
        """Return the outputs' shapes; a dynamic axis has the size that it has among the inputs."""
        pairs = [pair for port in self.part.inputs for pair in zip(port.shape, inputs[port.name].shape(), strict=True)]
        sizes = {axis: size for axis, size in pairs if isinstance(axis, str)}
        return {
            port.name: tuple(sizes[axis] if isinstance(axis, str) else axis for axis in port.shape)
            for port in self.part.outputs
        }

    def _compare(self, found: Mapping[str, object], expected: Mapping[str, object]) -> None:
        if wrong := [name for name in {**expected, **found} if expected.get(name) != found.get(name)]:
            told = [", ".join(f"{name} {of.get(name, 'nothing')}" for name in wrong) for of in (found, expected)]
            what = self._named("answers with other tensors than the file has")
            raise ParityError(what, found=told[0], expected=told[1], fix="Write the folder again.")

    def _named(self, words: str) -> str:
        return f"Triton's model '{model_name(self.role)}' {words}"


def sent(triton: Any, arrays: Mapping[str, NDArray[Any]]) -> Tensors:
    """Make Triton's tensors."""
    return {name: triton.Tensor(name, np.ascontiguousarray(value)) for name, value in arrays.items()}


class BackendRuntime(Runtime):
    """Decode over the server. What a picture's calls share stays in Triton's memory: it is handed on, not copied."""

    def __init__(
        self, spec: DecoderSpec, decoder: Sequence[Remote], most_prompts: int, padding: Padding | None = None
    ) -> None:
        super().__init__(spec, most_prompts, padding)
        self._decoder = decoder
        self._kept: Tensors = {}

    def placement(self) -> Placement:
        """Say that the server knows."""
        return Placement("triton", "server", {}, {})

    def _set_image(self, image: Feed) -> None:
        self._kept = sent(self._decoder[0].triton, image)
        for part in self._decoder[:-1]:
            self._kept = part.ask(self._kept)

    def _decode(self, prompts: Feed) -> Outputs:
        part = self._decoder[-1]
        return part.arrays({**self._kept, **sent(part.triton, prompts)})


class Served(NamedTuple):
    """What answers over the server; encode: None where the artifact's encoder is not among the parts."""

    session: BackendRuntime
    encode: RunLevels | None


def served(triton: Any, parts: Parts, artifact: Artifact) -> Served | None:
    """Return what the server's backend runs; None where one of its models is not loaded, which the log is told."""
    missing = [name for name in map(model_name, parts.parts) if not triton.is_model_ready(model_name=name)]
    if missing:
        words = f"samx: not loaded by Triton's {parts.backend} backend: {', '.join(missing)}; model.py computes itself"
        triton.Logger.log_warn(words)
        return None
    remotes = {role: Remote(triton, role, part) for role, part in parts.parts.items()}
    options = artifact.manifest.options
    decoder = [remotes[role] for role in graph_roles(options) if role in remotes]
    padding = Padding.of(options, str(artifact.path))
    triton.Logger.log_info(f"samx: Triton's {parts.backend} backend computes: {', '.join(map(model_name, remotes))}")
    return Served(
        BackendRuntime(artifact.manifest.spec, decoder, parts.most_prompts, padding), remotes.get(ENCODER_ROLE)
    )
