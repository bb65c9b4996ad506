"""Run an AOTInductor package on the processor that it was compiled for."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from samx.artifacts import trust
from samx.artifacts.manifest import ENCODER_ROLE
from samx.artifacts.store import Artifact
from samx.errors import ArtifactError
from samx.extras import require
from samx.formats.aoti import DECODER, ENCODER, STAMP_ROLE, Host, HostStamp, PackageNames
from samx.models.session import Feed, Outputs, Placement
from samx.models.spec import DecoderSpec, TensorSpec
from samx.runtimes.base import Runtime, check_device

if TYPE_CHECKING:
    from torch import Tensor

DEVICE = "cpu"
EXPORT = "samx export --target aoti -o"
# PyTorch asks the system for every large tensor anew: small chunks keep to pages that are there.
AOTI_CHUNK = 2

Model = Callable[..., "Sequence[Tensor]"]


def open_artifact(artifact: Artifact, device: str = DEVICE, threads: int | None = None) -> AotiRuntime:
    """Open a verified artifact. `threads` holds for all of PyTorch in this process.

    Raises: MissingExtraError without PyTorch; UnavailableError for another device; ArtifactError for a package that is
    not trusted, not of this machine, or does not load.
    """
    return AotiRuntime(artifact.manifest.spec, _models(artifact, DECODER, device, threads))


def open_encoder(
    artifact: Artifact, device: str = DEVICE, threads: int | None = None
) -> Callable[[Mapping[str, NDArray[Any]]], Feed]:
    """Open an artifact's own image encoder: a function from its inputs by name to its outputs by name.

    Raises: as open_artifact().
    """
    encoder, spec = _models(artifact, ENCODER, device, threads)[ENCODER_ROLE], artifact.manifest.spec
    torch = require("torch", "export", "target 'aoti'")

    def run(inputs: Mapping[str, NDArray[Any]]) -> Feed:
        """Hand inputs over in the graph's order, contiguous: compiled code does not look at strides."""
        names = ["picture", *(["valid"] if spec.keeps_aspect else [])]
        found = encoder(*(torch.tensor(np.ascontiguousarray(inputs[name])) for name in names))
        return {tensor.name: value.numpy() for tensor, value in zip(spec.image_inputs, found, strict=True)}

    return run


def _models(artifact: Artifact, names: PackageNames, device: str, threads: int | None) -> Mapping[str, Model]:
    """Load one of an artifact's packages, if it is trusted and of this machine."""
    check_device(device, [DEVICE], "unsupported device of a compiled package")
    torch = require("torch", "export", "target 'aoti'")
    name = artifact.file_with_role(names.role)
    sha256 = artifact.manifest.files[name].sha256
    trust.require_trusted(sha256, artifact.path, "package", EXPORT)
    check_stamp(artifact, sha256, Host.here(version("torch")), names.stamp_role)
    if threads is not None:
        torch.set_num_threads(threads)
    return load_models(artifact.read(name), str(artifact.path / name))  # the bytes whose hash is the trusted one


def devices() -> list[str]:
    """Name the devices that packages can run on here."""
    return [DEVICE]


def check_stamp(artifact: Artifact, sha256: str, here: Host, role: str = STAMP_ROLE) -> None:
    """Refuse a package that was compiled for another machine.

    Raises: ArtifactError naming what differs.
    """
    name = artifact.file_with_role(role)
    stamp = HostStamp.from_bytes(artifact.read(name), str(artifact.path / name))
    found = here.lacks(stamp.host)
    if stamp.sha256 != sha256:
        found.append("stamped for another package")
    if found:
        raise ArtifactError(
            f"the package of {artifact.path} does not belong to this machine", found="; ".join(found),
            fix=f"Export it here: {EXPORT} {artifact.path}",
        )  # fmt: skip


def load_models(package: bytes, where: str) -> Mapping[str, Model]:
    """Load a package whose origin is trusted and whose hash was checked: it becomes code. Gives its models by name.

    Raises: ArtifactError when PyTorch refuses it.
    """
    from torch.export.pt2_archive._package import load_pt2

    with tempfile.TemporaryDirectory(prefix="samx-aoti-") as folder:  # nobody else can reach into it
        path = Path(folder, "decoder.pt2")
        path.write_bytes(package)
        try:
            models: Mapping[str, Model] = load_pt2(str(path)).aoti_runners
        except (RuntimeError, ValueError) as cause:
            raise ArtifactError(
                f"PyTorch cannot load {where}", found=str(cause).strip().splitlines()[0], fix=f"Export again: {EXPORT}"
            ) from cause
    return models


class AotiRuntime(Runtime):
    """Run the image model once an image and the prompt model on what it gave."""

    def __init__(self, spec: DecoderSpec, models: Mapping[str, Model]) -> None:
        super().__init__(spec, AOTI_CHUNK)
        self._models = models
        self._state: Sequence[Tensor] = ()

    def placement(self) -> Placement:
        """Count the compiled models; their code knows no other device."""
        torch = require("torch", "export", "target 'aoti'")
        details = {
            "torch": torch.__version__,
            "capability": torch.backends.cpu.get_cpu_capability(),
            "threads": torch.get_num_threads(),
            "counted": "compiled models",
        }
        return Placement("aoti", DEVICE, {DEVICE: len(self._models)}, details)

    def _set_image(self, image: Feed) -> None:
        self._state = tuple(self._models["image"](*_tensors(image, self.spec.image_inputs)))

    def _decode(self, prompts: Feed) -> Outputs:
        return self._named(self._models["prompt"](*self._state, *_tensors(prompts, self.spec.prompt_inputs)))


def _tensors(feed: Feed, specs: Sequence[TensorSpec]) -> list[Tensor]:
    torch = require("torch", "export", "target 'aoti'")
    return [torch.tensor(feed[spec.name]) for spec in specs]
