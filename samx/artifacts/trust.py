"""Engines and compiled packages are executable code: only those that this user built or named are loaded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from samx.artifacts import strict_json as read
from samx.artifacts.manifest import utc_now
from samx.artifacts.private import exclusive, read_private, state_directory, write_private
from samx.errors import ArtifactError

HEADER = {"format": "samx-trusted-engines", "schema_version": 1}


def trust_file() -> Path:
    """Name the file that holds the hashes of this user's engines."""
    return state_directory() / "trusted-engines.json"


def remember(sha256: str, what: str) -> None:
    """Add an engine's hash to this user's list.

    Raises: WriteError; ArtifactError when the list is damaged or was open to others.
    """
    path = trust_file()
    with exclusive(path):
        engines = {**_engines(path), sha256: {"what": what, "since": utc_now()}}
        write_private(path, (json.dumps({**HEADER, "engines": engines}, indent=2) + "\n").encode())


def is_trusted(sha256: str) -> bool:
    """Return whether this user built or named an engine.

    Raises: ArtifactError when the list is damaged or was open to others.
    """
    return sha256 in _engines(trust_file())


def require_trusted(sha256: str, path: Path, what: str = "engine", build: str = "samx build") -> None:
    """Refuse code that this user neither built nor named; `build` is the command that makes it here.

    Raises: ArtifactError saying how to name it or build it.
    """
    if not is_trusted(sha256):
        raise ArtifactError(
            f"the {what} of {path} was neither built nor named by this user, and it is executable code",
            found=f"sha256 {sha256}",
            fix=f"Build it here with '{build} {path}', or, if you know where it comes from, 'samx trust {path}'.",
        )


def _engines(path: Path) -> Mapping[str, Any]:
    data = read_private(path)
    if data is None:
        return {}
    where = f"the list of trusted engines {path}"
    shape = {"engines": Mapping[read.Sha256, Any]}
    try:
        engines: Mapping[str, Any] = read.contents(read.parse(data, where), HEADER, shape, where)["engines"]
    except ArtifactError as cause:
        fix = "Remove it, and build or name your engines again."
        raise ArtifactError(cause.what, found=cause.found, expected=cause.expected, fix=fix) from cause
    return engines
