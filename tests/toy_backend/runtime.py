"""Run a toy engine, in a box of its own."""

from __future__ import annotations

from typing import Any

from samx.artifacts.store import Artifact
from samx.models.session import Feed, Outputs, Placement, Session
from samx.models.spec import DecoderSpec
from samx.runtimes.base import Runtime, check_device
from samx.runtimes.onnxruntime import open_models
from toy_backend.compiler import ENGINE_ROLE, MARK

DEVICE = "toybox"


def devices() -> list[str]:
    """List the toy's one device."""
    return [DEVICE]


def open_artifact(artifact: Artifact, device: str = DEVICE, threads: int | None = None) -> ToyRuntime:
    """Open a verified artifact."""
    check_device(device, devices(), "a toy runs in its box")
    spec, options = artifact.manifest.spec, artifact.manifest.options
    engine = artifact.read(artifact.file_with_role(ENGINE_ROLE))
    inside = open_models({"decoder": engine.removeprefix(MARK)}, spec, options, threads=threads)
    return ToyRuntime(spec, inside, options["loudness"])


class ToyRuntime(Runtime):
    """Ask what is in the box."""

    def __init__(self, spec: DecoderSpec, inside: Session, loudness: Any) -> None:
        super().__init__(spec)
        self.inside, self.loudness = inside, loudness

    def placement(self) -> Placement:
        """Report that all was computed in the box."""
        return Placement("toy", DEVICE, {DEVICE: 1}, {**self.inside.placement().details, "loudness": self.loudness})

    def _set_image(self, image: Feed) -> None:
        self.inside.set_image(image)

    def _decode(self, prompts: Feed) -> Outputs:
        return self.inside.decode(prompts)
