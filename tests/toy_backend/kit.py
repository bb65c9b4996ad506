"""Where a toy's kit runs."""

from __future__ import annotations

from samx.kits.places import Place, onnx_places

from samx.artifacts.store import Artifact


def places(artifact: Artifact) -> dict[str, Place]:
    """Describe a kit that runs the toy's graph on processors."""
    return {"cpu": onnx_places(artifact)["cpu"]}
