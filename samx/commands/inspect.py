"""Describe a file or directory without loading a model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from samx import registry
from samx.artifacts.store import Artifact
from samx.errors import InputError
from samx.registry import load
from samx.validators.report import PARITY_ROLE, ParityReport

PACKAGE_SUFFIX = ".mlpackage"


def inspect(path: Path) -> dict[str, Any]:
    """Describe an artifact, a graph by the metadata inside, or a Core ML package by its functions.

    Raises: ArtifactError for a damaged artifact; InputError for anything else.
    """
    if path.suffix == PACKAGE_SUFFIX and os.path.isdir(path):
        return {"kind": "coreml package", "path": str(path), **_package_facts(path)}
    if os.path.isdir(path):
        artifact = Artifact.open(path)
        return {"kind": "artifact", **artifact.facts(), "shown": _shown(artifact)}
    graphs = {suffix: found for entry in registry.BACKENDS for suffix, found in entry.describes.items()}
    if path.suffix in graphs and os.path.isfile(path):
        facts = load(graphs[path.suffix])(path)
        return {"kind": facts["kind"], "path": str(path), "bytes": path.stat().st_size, **facts}
    raise InputError(
        f"cannot inspect '{path}'", found="a file of another kind" if os.path.exists(path) else "nothing",
        expected=f"an artifact directory, a file {' or '.join(graphs)}, or an {PACKAGE_SUFFIX}",
        fix="Name what 'samx export' left.",
    )  # fmt: skip


def _shown(artifact: Artifact) -> dict[str, str]:
    """Return the verdict of each parity report in an artifact, in one line."""
    return {
        name: ParityReport.from_bytes(artifact.read(name), f"{artifact.path}: {name}").summary()
        for name, entry in artifact.manifest.files.items()
        if entry.role == PARITY_ROLE
    }


def _package_facts(path: Path) -> dict[str, Any]:
    from samx.formats.coreml.lint import lint, lint_lines
    from samx.formats.coreml.package import package_from_directory
    from samx.formats.coreml.program import load_program

    files = package_from_directory(path)
    program = load_program(files, str(path))
    return {
        "bytes": files.size,
        "minimum_os": program.minimum_os,
        "default_function": program.default,
        "functions": {
            name: {
                "inputs": [str(tensor) for tensor in program.inputs(name)],
                "outputs": [str(tensor) for tensor in program.outputs(name)],
            }
            for name in program.functions
        },
        "lint": lint_lines(lint(program.functions)),
    }
