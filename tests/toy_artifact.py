"""A small artifact to build and to damage."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from samx.artifacts.commit import seal, staging
from samx.artifacts.manifest import CheckpointEntry, Manifest
from samx.artifacts.store import Artifact
from samx.models.spec import DecoderSpec

ROLES = {"decoder.onnx": "decoder", "cases.npz": "parity_cases"}
# Laid out like a Core ML package.
MODEL, WEIGHTS = (f"decoder.mlpackage/Data/com.apple.CoreML/{name}" for name in ("model.mlmodel", "weights/weight.bin"))
PACKAGE = {"decoder.mlpackage/Manifest.json": b"{}", MODEL: b"program", WEIGHTS: b"weights"}
CHECKPOINT = CheckpointEntry("toy.pth", "sam1", hashlib.sha256(b"toy").hexdigest(), 3)
MANIFEST = Manifest("onnx", "fp32", DecoderSpec(), CHECKPOINT, {"opset": 18}, {"numpy": "2"})


def build(
    target: Path,
    content: bytes = b"model",
    *,
    more: Mapping[str, bytes] = {},
    overwrite: bool = False,
    before_seal: Callable[[Path], object] = lambda directory: None,
    after_seal: Callable[[Path], object] = lambda directory: None,
) -> Path:
    """Write an artifact whose decoder holds this content; the hooks get the directory being filled."""
    with staging(target, overwrite=overwrite) as directory:
        (directory / "decoder.onnx").write_bytes(content)
        (directory / "cases.npz").write_bytes(b"cases")
        for name, data in more.items():
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            (directory / name).write_bytes(data)
        before_seal(directory)
        seal(directory, MANIFEST, {**ROLES, **dict.fromkeys(more, "package")})
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


def link(name: str) -> Callable[[Path], None]:
    """Put the same content elsewhere, and a link to it in its place."""

    def plant(path: Path) -> None:
        shutil.move(path / name, path.parent / "elsewhere")
        (path / name).symlink_to(path.parent / "elsewhere")

    return plant


def pipe(path: Path) -> None:
    """Put a named pipe in a nested file's place."""
    (path / MODEL).unlink()
    os.mkfifo(path / MODEL)


def directory_for_a_file(path: Path) -> None:
    """Put a directory in a nested file's place."""
    (path / MODEL).unlink()
    (path / MODEL).mkdir()


LINKS: dict[str, Callable[[Path], None]] = {
    "file": link(MODEL),
    "inner directory": link("decoder.mlpackage/Data/com.apple.CoreML"),
    "outer directory": link("decoder.mlpackage"),
}


def resealed(path: Path, name: str, change: Callable[[Path], object]) -> Artifact:
    """Change a file of an artifact, and make the manifest say so: what no hash finds."""
    manifest = Artifact.open(path).manifest
    change(path / name)
    seal(path, manifest, {name: entry.role for name, entry in manifest.files.items()})
    return Artifact.open(path)
