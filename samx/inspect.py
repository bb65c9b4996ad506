"""Say what a file or directory is, without loading a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from samx.artifacts.store import Artifact
from samx.errors import InputError
from samx.extras import require

METADATA_PREFIX = "samx."


def inspect(path: Path) -> dict[str, Any]:
    """Describe an artifact, or one of its ONNX files by the metadata inside.

    Raises: ArtifactError for a damaged artifact; InputError for anything else.
    """
    if path.is_dir():
        return {"kind": "artifact", **Artifact.inspect(path)}
    if path.suffix == ".onnx" and path.is_file():
        return {"kind": "onnx", "path": str(path), "bytes": path.stat().st_size, **_onnx_facts(path)}
    raise InputError(
        f"cannot inspect '{path}'", found="a file of another kind" if path.exists() else "nothing",
        expected="an artifact directory or an .onnx file", fix="Name what 'samx export' left.",
    )  # fmt: skip


def _onnx_facts(path: Path) -> dict[str, Any]:
    onnx = require("onnx", "export", "looking into an ONNX file")
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as cause:  # protobuf's errors share no base class with onnx's
        raise InputError(f"'{path}' is no ONNX file", found=cause, fix="Export it again.") from cause
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    return {
        "opset": {entry.domain or "ai.onnx": entry.version for entry in model.opset_import},
        "inputs": [value.name for value in model.graph.input],
        "outputs": [value.name for value in model.graph.output],
        "samx": {
            key.removeprefix(METADATA_PREFIX): json.loads(value)
            for key, value in metadata.items()
            if key.startswith(METADATA_PREFIX)
        },
    }
