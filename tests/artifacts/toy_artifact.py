"""A small artifact to build and to damage."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from samx.artifacts.commit import seal, staging
from samx.artifacts.manifest import CheckpointEntry, Manifest
from samx.decoders.spec import DecoderSpec

ROLES = {"decoder.onnx": "decoder", "cases.npz": "parity_cases"}
CHECKPOINT = CheckpointEntry("toy.pth", "sam1", hashlib.sha256(b"toy").hexdigest(), 3)
MANIFEST = Manifest("onnx", "fp32", DecoderSpec(), CHECKPOINT, {"opset": 18}, {"numpy": "2"})


def build(
    target: Path,
    content: bytes = b"model",
    *,
    overwrite: bool = False,
    before_seal: Callable[[Path], object] = lambda directory: None,
    after_seal: Callable[[Path], object] = lambda directory: None,
) -> Path:
    """Write an artifact whose decoder holds this content; the hooks get the directory being filled."""
    with staging(target, overwrite=overwrite) as directory:
        (directory / "decoder.onnx").write_bytes(content)
        (directory / "cases.npz").write_bytes(b"cases")
        before_seal(directory)
        seal(directory, MANIFEST, ROLES)
        after_seal(directory)
    return target


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change an artifact's manifest in place."""
    file = path / "manifest.json"
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))


def fail(error: type[BaseException]) -> Callable[[Path], None]:
    """Make a hook that raises."""

    def hook(directory: Path) -> None:
        raise error("stop")

    return hook
